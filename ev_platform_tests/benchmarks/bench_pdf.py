"""Pages per second of real PDFs: ours on two processes against pymupdf4llm in one, with equal options, both warm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ev_platform.corpus.extract import pdf_job
from ev_platform.corpus.workers import run_jobs, worker_pool

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "ev_pdf"
PDFS = {"ocpp-2.0.1-part4-ocppj.pdf": 27, "ocpp-2.0.1-part0-introduction.pdf": 15}
WORKERS = 2
ROUNDS = 3


def test_pdf_speed() -> None:
    paths = [FOLDER / name for name in PDFS]
    if not all(path.exists() for path in paths):
        pytest.skip("the real PDFs are not beside this checkout")
    import pymupdf4llm

    def plain(chosen: list[Path]) -> None:
        for path in chosen:
            pymupdf4llm.to_markdown(path, header=False, footer=False, use_ocr=False, show_progress=False)

    with worker_pool(WORKERS) as pool:

        def ours(chosen: list[Path]) -> None:
            jobs = ((n, pdf_job(path, path.name, 600, 1000)) for n, path in enumerate(chosen))
            assert all(got.text for _, got in run_jobs(jobs, pool, WORKERS))

        sides: dict[str, Callable[[list[Path]], None]] = {
            "pymupdf4llm, 1 process": plain,
            f"ours, {WORKERS} processes": ours,
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for read in sides.values():
            read(paths[1:])
        for _ in range(ROUNDS):
            for name, read in sides.items():
                started = time.perf_counter()
                read(paths)
                rates[name].append(sum(PDFS.values()) / (time.perf_counter() - started))
    base, *_ = (statistics.median(values) for values in rates.values())
    print(f"\n{'PDF, ' + str(sum(PDFS.values())) + ' pages, median of ' + str(ROUNDS):<32}        pages/s   ratio")
    for name, values in rates.items():
        median = statistics.median(values)
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{name:<32} {median:14.2f} {median / base:7.2f}   ({spread})")
