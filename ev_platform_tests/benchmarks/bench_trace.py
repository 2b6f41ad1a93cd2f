"""How long a trace takes on a store of a million passages, beside the same question put to the catalogue's views.

Run: `python -m ev_platform_tests.benchmarks.bench_trace DATA_FOLDER [ROUNDS]` on a store of yours; `bench_lineage` runs
it on a generated one, in quiet and while another process publishes. The store is only read, but for the index below
`lineage/`, which the first trace builds.
"""

import statistics
import sys
import time
from pathlib import Path

import duckdb

from ev_platform.lineage.index import tasks_of
from ev_platform.lineage.trace import trace
from ev_platform.storage import Store

# The naive way: from a page to the passages and examples of all versions that were made of it.
NAIVE = """
    SELECT count(DISTINCT c.chunk_id), count(DISTINCT e.example_id)
    FROM documents_history AS d
    JOIN chunks_history AS c USING (task, document_id)
    LEFT JOIN examples_history AS e USING (task, chunk_id)
    WHERE d.fetched_url = ?
"""
SAMPLES = {
    "url": ("raw_pages", "url"),
    "document": ("documents", "document_id"),
    "chunk": ("chunks", "chunk_id"),
    "example": ("examples", "example_id"),
    "prediction": ("predictions", "prediction_id"),
    "request": ("requests", "request_id"),
    "model": ("registered_model", "model_version"),
}


def main(folder: Path, rounds: int) -> None:
    store = Store(folder)
    measure_traces(store, rounds)


def measure_traces(store: Store, rounds: int) -> None:
    """Print the times of each kind of trace, warm, in milliseconds."""
    task = tasks_of(store)[0]
    with duckdb.connect(str(store.catalogue), read_only=True) as catalogue:
        names = {}
        for kind, (table, column) in SAMPLES.items():
            # One from the middle, so that no row group is favoured.
            row = catalogue.execute(
                f"SELECT {column} FROM {table} WHERE task = $1 "
                f"OFFSET (SELECT count(*) // 2 FROM {table} WHERE task = $1) LIMIT 1",
                [task],
            ).fetchone()
            names |= {kind: row[0]} if row else {}
        begun = time.perf_counter()
        trace(store, names["url"], task=task)
        print(f"first trace, which builds what is missing of the index: {time.perf_counter() - begun:.1f} s")
        print(f"{'traced':<12}{'direction':<10}{'wall p50':>9}{'p95':>8}{'CPU p50':>9}  reached")
        for kind, name in names.items():
            for direction in ("back", "forward"):
                wall, cpu = [], []
                for _ in range(rounds):
                    started, used = time.perf_counter(), time.process_time()
                    (found,) = trace(store, name, task=task, direction=direction, limit=5)
                    wall.append(1000 * (time.perf_counter() - started))
                    cpu.append(1000 * (time.process_time() - used))
                side = getattr(found, direction)
                p95 = sorted(wall)[int(0.95 * (rounds - 1))]
                print(
                    f"{kind:<12}{direction:<10}{statistics.median(wall):>6.0f} ms{p95:>5.0f} ms"
                    f"{statistics.median(cpu):>6.0f} ms  {sum(side.counts.values()):,}"
                )
        wall = []
        for _ in range(rounds):
            started = time.perf_counter()
            catalogue.execute(NAIVE, [names["url"]]).fetchall()
            wall.append(1000 * (time.perf_counter() - started))
        print(f"{'url':<12}{'views':<10}{statistics.median(wall):>6.0f} ms  passages and examples only")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 11)
