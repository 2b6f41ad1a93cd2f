"""Whether stored training rows meet stored test rows, found once for the same rows.

Looking takes the sentence embedder, whose start alone is ten seconds: rows that were found clean are not looked at
again. What does not belong here: what counts as the same question (`overlap`).
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ev_platform import retrieval
from ev_platform.dataset import grounding, locate, overlap, quantities
from ev_platform.dataset.overlap import Overlap, find_overlaps
from ev_platform.files import write_atomic
from ev_platform.identity import code_version, fingerprint
from ev_platform.storage import Record, Store
from ev_platform.tasks.config import DatasetConfig


def find_leaks(
    store: Store, trained_on: Sequence[Record], benchmark: Record, chunks: Record, config: DatasetConfig
) -> list[Overlap]:
    """Return every way in which a training row meets a test row.

    Args:
        store: Where the rows lie.
        trained_on: Versions of `training_set` and `validation_set`.
        benchmark: Version of the test rows.
        chunks: Version of the passages.
        config: Says from when on two questions are the same.
    """
    code = code_version(overlap, locate, grounding, quantities, retrieval)
    prints = [record.fingerprint for record in (*trained_on, benchmark, chunks)]
    key = fingerprint([prints, config.max_test_similarity, code])
    # Named by a hash, so that it holds nothing of the rows; leaks are looked for anew, to be told with their words.
    clean = store.root / "checked" / benchmark.task / f"no_leakage-{key[:20]}"
    if clean.exists():
        return []

    def rows(record: Record) -> pl.DataFrame:
        return store.read(record.table, record.task, record.version)

    leaks = find_overlaps(pl.concat([rows(it) for it in trained_on]), rows(benchmark), rows(chunks), config)
    if not leaks:
        write_atomic(clean, b"")
    return leaks
