"""Milliseconds of one question over 100,000 passages: ours, part by part, and plain libraries on the same data.

Passages are 80 words drawn by Zipf's law from the embedder's own vocabulary, whose words stand about in the order of
their frequency, and their vectors are random; questions are ten such words. Every number of threads is measured in a
process of its own, peers and ours in turn, question by question, so that noise hits all alike; the processors' own time
tells what a busy machine hides. The peers' rows of FAISS and rank_bm25, which are no part of this project, need
`pip install faiss-cpu rank-bm25`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

N_PASSAGES, N_WORDS, N_QUESTIONS, N_QUESTION_WORDS = 100_000, 80, 60, 10
CANDIDATES, TOP_K = 20, 2
THREADS = (1, 2)
SEED = 17

Search = Callable[[str, np.ndarray], Any]


def draw_texts(n: int, n_words: int, rng: np.random.Generator) -> list[str]:
    from ev_platform.retrieval import load_embedder

    vocabulary = load_embedder().tokenizer.get_vocab()
    words = [w for w in sorted(vocabulary, key=vocabulary.__getitem__) if re.fullmatch("[a-z]{2,}", w)]
    chances = 1 / (np.arange(len(words)) + 2.7)  # Zipf and Mandelbrot
    drawn = rng.choice(len(words), size=(n, n_words), p=chances / chances.sum())
    return [" ".join(words[index] for index in row) for row in drawn]


def peers(passages: list[str], vectors: np.ndarray) -> dict[str, Search]:
    """Return searches that give the first `CANDIDATES` by words and by meaning, as their documentation shows them."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, stopwords="en", show_progress=False), show_progress=False)

    def by_words(question: str) -> Any:
        tokens = bm25s.tokenize(question, stopwords="en", show_progress=False)
        return index.retrieve(tokens, k=CANDIDATES, show_progress=False)

    def sort_all(vector: np.ndarray) -> Any:
        return np.argsort(-(vectors @ vector), kind="stable")[:CANDIDATES]

    found: dict[str, Search] = {
        "numpy argsort + bm25s": lambda question, vector: (by_words(question), sort_all(vector))
    }
    if find_spec("faiss"):
        import faiss  # pyright: ignore[reportMissingImports]

        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        found["FAISS flat + bm25s"] = lambda question, vector: (
            by_words(question),
            flat.search(vector[None], CANDIDATES),
        )
    if find_spec("rank_bm25"):
        from rank_bm25 import BM25Okapi  # pyright: ignore[reportMissingImports]

        okapi = BM25Okapi([passage.split() for passage in passages])
        found["numpy argsort + rank_bm25"] = lambda question, vector: (
            np.argsort(-okapi.get_scores(question.split()))[:CANDIDATES],
            sort_all(vector),
        )
    return found


def measure() -> dict[str, Any]:
    """Return the median milliseconds of every part and peer, and how long loading took."""
    from ev_platform import retrieval

    rng = np.random.default_rng(SEED)
    passages, questions = draw_texts(N_PASSAGES, N_WORDS, rng), draw_texts(N_QUESTIONS, N_QUESTION_WORDS, rng)
    vectors = rng.standard_normal((N_PASSAGES, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.perf_counter()
    ours = retrieval.Retriever([str(n) for n in range(N_PASSAGES)], passages, vectors, CANDIDATES)
    loaded_s = time.perf_counter() - started
    embed, known = retrieval.embed, dict(zip(questions, retrieval.embed(questions), strict=True))
    parts: dict[str, Search] = {
        "embedding the question": lambda question, _: embed([question]),
        "search, by meaning": lambda question, _: ours.search([question], TOP_K, "embedding"),
        "search, by words": lambda question, _: ours.search([question], TOP_K, "lexical"),
        "search, hybrid": lambda question, _: ours.search([question], TOP_K),
    } | peers(passages, vectors)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in [*parts, "all of it"]}

    def run(name: str, part: Search, question: str) -> None:
        before = time.perf_counter(), time.process_time()
        part(question, known[question])
        spent[name].append(((time.perf_counter() - before[0]) * 1000, (time.process_time() - before[1]) * 1000))

    for question in questions:
        retrieval.embed = lambda texts: np.stack([known[text] for text in texts])  # the search without the embedding
        for name, part in parts.items():
            run(name, part, question)
        retrieval.embed = embed
        run("all of it", parts["search, hybrid"], question)
    same = all(
        [hit.chunk_id for hit in hits]
        == [str(n) for n in np.argsort(-(vectors @ known[question]).round(5), kind="stable")[:CANDIDATES]]
        for question, hits in zip(questions, ours.search(questions, CANDIDATES, "embedding"), strict=True)
    )
    return {
        "loaded_s": loaded_s,
        "is_exact": same,
        # The first ones warm up.
        "ms": {name: np.median(times[3:], axis=0).tolist() for name, times in spent.items()},
        "p95": np.percentile(spent["all of it"][3:], 95, axis=0).tolist(),
    }


def test_retrieval_speed() -> None:
    for threads in THREADS:
        done = subprocess.run(
            [sys.executable, __file__],
            capture_output=True,
            text=True,
            env=os.environ
            | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
            | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        figures = json.loads(done.stdout.splitlines()[-1])
        assert figures["is_exact"]
        print(f"\n{N_PASSAGES:,} passages, threads: {threads}, indexed in {figures['loaded_s']:.1f} s")
        print(f"{'median milliseconds of a question':<40}{'passed':>8}{'of processors':>15}")
        plain = figures["ms"]["search, hybrid"]
        for name, (passed, worked) in [*figures["ms"].items(), ("all of it, 95th percentile", figures["p95"])]:
            ratio = f"   ours is {passed / plain[0]:.1f} times as fast" if "+" in name else ""
            print(f"{name:<40}{passed:>8.1f}{worked:>15.1f}{ratio}")


if __name__ == "__main__":
    print(json.dumps(measure()))
