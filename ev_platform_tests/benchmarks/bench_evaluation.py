"""Seconds that evaluating the four main systems takes with the bundled model, and the share that is not generation.

The questions are the example's, the passages its pages', both models the untrained one. Generation is what the engine
measures itself; all else is importing, loading, search, prompts, scores, intervals and tests. A process of its own does
it, so that nothing is imported or loaded yet.

`EV_BENCH_ROWS=100 EV_BENCH_PROFILE=1` asks 100 questions and tells where the rest of the time goes.
"""

from __future__ import annotations

import contextlib
import cProfile
import os
import pstats
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import polars as pl

from ev_platform.engine import load_engine
from ev_platform.evaluation import predict
from ev_platform.evaluation.statistics import MAIN
from ev_platform.evaluation.summary import summarise
from ev_platform.identity import short_id
from ev_platform.records import Chunk, to_frame
from ev_platform.retrieval import embed_chunks
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.types import get_task_type
from ev_platform.training.packages import write_ctranslate2

N_ROWS = int(os.environ.get("EV_BENCH_ROWS", "10"))
IS_PROFILED = "EV_BENCH_PROFILE" in os.environ


def evaluate(model: Path, benchmark: pl.DataFrame, chunks: pl.DataFrame, vectors: pl.DataFrame, instructions: str):
    """Return the predictions, and the seconds that they and their report took."""
    started = time.perf_counter()
    with cProfile.Profile() if IS_PROFILED else contextlib.nullcontext() as profile:
        engines = {name: (name, load_engine(model)) for name in ("base", "tuned")}
        kind = get_task_type("open_book_qa")
        predictions = predict(benchmark, chunks, engines, kind, instructions, TaskConfig(), vectors=vectors)
        summarise(predictions, resamples=2000, seed=17)
    if profile is not None:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    return predictions, time.perf_counter() - started


def test_evaluation_speed(base: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    model = tmp_path / "serving"
    model.mkdir()
    write_ctranslate2(base, model)
    texts = [text.rpartition("\n\nQuestion: ")[0] for text in rows["input"].to_list()]
    chunks = to_frame(
        "chunks",
        [
            Chunk(short_id("chk", n, text), f"doc_{n}", f"doc_{n}", 0, 0, len(text), "Page", None, text, 100)
            for n, text in enumerate(texts)
        ],
    )
    many = pl.concat([rows] * (N_ROWS // len(rows) + 1)).head(N_ROWS)
    benchmark = many.with_columns(example_id=pl.Series([f"exm_{n:04d}" for n in range(N_ROWS)]))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        given = (model, benchmark, chunks, embed_chunks(chunks), rows.item(0, "instruction"))
        predictions, seconds = process.submit(evaluate, *given).result()

    totals = (
        predictions.filter(pl.col("system").is_in(list(MAIN)))
        .group_by("system", maintain_order=True)
        .agg(seconds=pl.col("latency_ms").sum() / 1000, tokens=pl.col("n_completion_tokens").sum())
    )
    generation = totals["seconds"].sum()
    print(f"\n{f'evaluation of {N_ROWS} questions':<32}  seconds   tokens")
    for name, spent, n_tokens in totals.iter_rows():
        print(f"{name:<32} {spent:8.1f} {n_tokens:8}")
    print(f"{'all of it':<32} {seconds:8.1f} {totals['tokens'].sum():8}")
    rest = seconds - generation
    whole = generation / N_ROWS * 100 + rest
    print(f"{'outside generation':<32} {rest:8.1f} {rest / seconds:8.1%}")
    # What is outside hardly grows with the questions.
    print(f"{'100 questions':<32} {whole:8.1f} {rest / whole:8.1%} outside generation")
