"""What one unit of each stage costs on this machine: the figures from which `deploy/SCALING.md` reckons.

Seconds are of processor time in one thread, so that other work beside it changes little; files are read in this
process, without the workers that guard it. Bytes are those on the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import polars as pl
import pytest

from ev_platform.corpus import chunk_documents, clean_documents, extract, extract_documents, workers
from ev_platform.corpus.duplicates import similar_pairs
from ev_platform.corpus.relevance import relevances
from ev_platform.retrieval import embed_chunks, load_embedder
from ev_platform.storage import Store
from ev_platform.tasks import get_task
from ev_platform.training.tokens import text_counter
from ev_platform_tests.corpus.files import bodies_of
from ev_platform_tests.tiny import write_tiny_model

T = TypeVar("T")
EXAMPLE = get_task("ev_charging", Path("no-such-folder"))
COPIES = int(os.environ.get("EV_BENCH_COPIES", "2"))


def costs(work: Callable[[], T]) -> tuple[float, T]:
    started = time.process_time()
    made = work()
    return time.process_time() - started, made


def in_this_process(
    jobs: Iterable[tuple[int, workers.Job]], pool: object, n_workers: int
) -> Iterator[tuple[int, object]]:
    """Run jobs as `workers.run_jobs` does, one call after the other."""
    for number, job in jobs:
        results: list[object] | None = None
        while True:
            try:
                calls = next(job) if results is None else job.send(results)
            except StopIteration as end:
                yield number, end.value
                break
            results = [call.function(*call.args) for call in calls]


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, pl.DataFrame, pl.DataFrame]:
    """Return the example's pages, each some times over with another text at its end, and its PDFs."""
    store = Store(tmp_path_factory.mktemp("data"))
    site = sorted((EXAMPLE.folder / "site").glob("*.html"))
    pages = [
        (f"https://a.example/{copy}/{file.name}", file.read_bytes().replace(b"</p>", f" {copy}.</p>".encode()))
        for copy in range(COPIES)
        for file in site
    ]
    pdfs = [(f"https://a.example/{file.name}", file.read_bytes()) for file in (EXAMPLE.folder / "pdfs").glob("*.pdf")]
    return store, bodies_of(store, *pages), bodies_of(store, *pdfs)


def test_unit_costs(
    bodies: tuple[Store, pl.DataFrame, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    store, pages, pdfs = bodies
    torch.set_num_threads(1)
    monkeypatch.setattr(extract, "run_jobs", in_this_process)
    extract_documents(pages.head(1), store)  # imports
    extract_documents(pdfs.head(1), store)
    rows: list[tuple[str, int, float, str]] = []

    def note(what: str, spent_s: float, n: int, unit: str) -> None:
        rows.append((what, n, spent_s / n * 1000, unit))

    spent_s, documents = costs(lambda: extract_documents(pages, store))
    note("page read (HTML)", spent_s, documents.height, "page")
    spent_s, from_pdfs = costs(lambda: extract_documents(pdfs, store))
    note("PDF read", spent_s, sum(len(offsets) for offsets in from_pdfs["page_offsets"]), "PDF page")

    load_embedder().encode(["warm up"])
    asked = documents.select("title", "text").to_dicts()
    spent_s, _ = costs(lambda: relevances(asked, EXAMPLE.description))
    note("relevance judged", spent_s, len(asked), "page")
    texts = [f"{n} {text}" for n, text in enumerate(documents["text"])]
    spent_s, _ = costs(lambda: similar_pairs(texts, 0.5))
    note("duplicates sought", spent_s, len(texts), "page")

    config = EXAMPLE.config.corpus.model_copy(update={"near_duplicate_jaccard": 1.0, "min_relevance": 0.0})
    clean = clean_documents(documents, EXAMPLE.description, config)["clean_documents"]
    count = text_counter(write_tiny_model(tmp_path / "model"))
    spent_s, chunks = costs(lambda: chunk_documents(clean, count, config))
    note("cut into passages", spent_s, chunks.height, "passage")
    spent_s, vectors = costs(lambda: embed_chunks(chunks))
    note("embedded", spent_s, vectors.height, "passage")

    sizes = []
    for table, frame in (("documents", documents), ("chunks", chunks), ("chunk_vectors", vectors)):
        record = store.publish(table, "bench", frame)
        file = store.root / "tables" / table / "bench" / f"{record.version}.parquet"
        sizes.append((table, frame.height, file.stat().st_size / frame.height))

    print(f"\n{'work':<22} {'units':>7} {'CPU ms a unit':>14}   unit")
    for what, n, milliseconds, unit in rows:
        print(f"{what:<22} {n:>7} {milliseconds:>14.2f}   {unit}")
    print(f"{'passages a page':<22} {chunks.height / clean.height:>22.1f}")
    print(f"\n{'table':<22} {'rows':>7} {'bytes a row':>14}")
    for table, n, size in sizes:
        print(f"{table:<22} {n:>7} {size:>14.0f}")
