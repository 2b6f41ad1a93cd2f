"""Seconds of the licence report, other views and traces on a large store, beside plain DuckDB over the same files.

In quiet, and report and traces also while another process publishes a table and rebuilds the catalogue again and again.
The plain join answers less: one join from training rows to documents, no counts of what is in force and no requests.
The processor's own time tells what a busy machine hides.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import duckdb

from ev_platform.records import Metric, to_frame
from ev_platform.storage import Store
from ev_platform_tests.benchmarks.bench_trace import measure_traces
from ev_platform_tests.benchmarks.big_store import write_big_store

VIEWS = ["licence_report", "document_coverage", "costs", "drop_reasons"]
PLAIN = """
    SELECT d.licence, d.publisher, count(DISTINCT t.example_id) AS n_rows, count(DISTINCT d.document_id) AS n_documents
    FROM (
        FROM read_parquet('{root}/training_set/*/*.parquet') SELECT example_id, unnest(context_chunk_ids) AS chunk_id
    ) AS t
    JOIN read_parquet('{root}/chunks/*/*.parquet') AS c USING (chunk_id)
    JOIN read_parquet('{root}/clean_documents/*/*.parquet') AS d USING (document_id)
    GROUP BY ALL"""
REPEATS = 5
ROUNDS = 11


def publish_again_and_again(root: Path, stop: Event) -> None:
    n = 0
    while not stop.is_set():
        n += 1
        rows = [Metric("base", None, "f1", float(n), None, None, 1)]
        Store(root).publish("eval_report", "other", to_frame("eval_report", rows))


def measure(what: str, query: Callable[[], int]) -> None:
    walls, processors = [], []
    for _ in range(REPEATS):
        wall, processor = time.perf_counter(), time.process_time()
        n = query()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    print(
        f"{what:32} {n:>7} rows  {statistics.median(walls):6.2f} s  {statistics.median(processors):6.2f} s of processor"
    )


def asked(store: Store, sql: str) -> int:
    with duckdb.connect(str(store.catalogue), read_only=True) as connection:
        return len(connection.execute(sql).fetchall())


def test_lineage_of_a_million_chunks(tmp_path: Path) -> None:
    begun = time.perf_counter()
    store = write_big_store(tmp_path / "data")
    print(f"\n1,000,000 chunks and 200,000 examples written in {time.perf_counter() - begun:.1f} s")
    plain = PLAIN.format(root=store.root / "tables")
    measure("plain join of the files", lambda: asked(store, plain))
    for view in VIEWS:
        measure(view, lambda view=view: asked(store, f"FROM {view}"))
    measure_traces(store, ROUNDS)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    publisher = context.Process(target=publish_again_and_again, args=(store.root, stop))
    publisher.start()
    try:
        time.sleep(5)
        print("while another process publishes again and again:")
        measure("licence_report", lambda: asked(store, "FROM licence_report"))
        measure_traces(store, ROUNDS)
    finally:
        stop.set()
        publisher.join()
