"""A large store with every relation in it, written in seconds: for measuring what lineage costs.

Ids are random in the real form, texts short; every row refers to rows that exist. One document in a hundred names no
licence. Passages and documents have two versions, of which the older one lacks a tenth of the rows and has a tenth that
went away since.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from ev_platform.records import schema_of
from ev_platform.serving.segments import Segments, stored_schema
from ev_platform.storage import Record, Store

TASK = "big"
LICENCES = ["CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "OGL-UK-3.0", "MIT", "proprietary, with permission"]
N_PUBLISHERS, CHUNKS_PER_DOCUMENT = 40, 20
BEGIN = datetime(2026, 1, 5, 4, tzinfo=UTC)
_EMPTY = {pl.String: "", pl.Int64: 0, pl.Float64: 0.0, pl.Boolean: False, pl.Datetime: BEGIN}


def write_big_store(root: Path, *, n_chunks: int = 1_000_000, n_examples: int = 200_000, seed: int = 17) -> Store:
    """Write tables and their history, three model versions and 20,000 served requests; return the store.

    Args:
        root: Data folder, which must be empty.
        n_chunks: Passages in force.
        n_examples: Examples in force, of which four fifths are training rows.
        seed: Of every draw.
    """
    store, rng = Store(root), np.random.default_rng(seed)
    documents = _documents(rng, n_chunks // CHUNKS_PER_DOCUMENT * 11 // 10)
    chunks = _chunks(rng, documents)
    n_gone = documents.height // 11
    gone = documents.head(n_gone).select("document_id")
    new = documents.tail(n_gone).select("document_id")
    for n, left_out in enumerate((new, gone)):
        for table, frame in (("documents", documents), ("clean_documents", documents), ("chunks", chunks)):
            _write(store, table, frame.join(left_out, on="document_id", how="anti", maintain_order="left"), day=n)
    _write(store, "raw_pages", documents.select("url", "licence", "publisher", "fetched_at", final_url="url"), day=1)
    in_force = chunks.join(gone, on="document_id", how="anti", maintain_order="left")
    examples = _examples(rng, in_force, n_examples)
    _write(store, "examples", examples, day=1)
    train = examples.filter(pl.col("split") == "train").select(set(examples.columns) & set(schema_of("training_set")))
    other = in_force["chunk_id"].gather(rng.integers(0, in_force.height, train.height))
    train = train.with_columns(context_chunk_ids=pl.concat_list("chunk_id", other))
    asked = examples.filter(pl.col("split") != "train").select(
        "example_id", "question", context_chunk_ids=pl.concat_list("chunk_id")
    )
    asked = asked.with_columns(prediction_id=_ids(rng, "prd", asked.height), system=pl.lit("tuned_rag"))
    _write(store, "predictions", asked, day=2)
    versions = [
        _write(store, "training_set", train.head(train.height * share // 10), day=n)
        for n, share in enumerate((8, 9, 10))
    ]
    chunks_record = store.current("chunks", TASK)
    assert chunks_record is not None
    _write(
        store,
        "registered_model",
        pl.DataFrame(
            {
                "model_version": [f"{TASK}@{n}" for n in (1, 2, 3)],
                "number": [1, 2, 3],
                "registered_at": [BEGIN + timedelta(days=n, hours=6) for n in range(3)],
                "training_set_version": [record.version for record in versions],
                "training_set_fingerprint": [record.fingerprint for record in versions],
                "chunks_version": chunks_record.version,
                "chunks_fingerprint": chunks_record.fingerprint,
            }
        ),
        day=3,
    )
    _serve(rng, store, in_force["chunk_id"], 20_000)
    store.rebuild_catalogue()
    return store


def _ids(rng: np.random.Generator, prefix: str, n: int) -> pl.Series:
    digits = rng.bytes(10 * n).hex()
    return pl.Series([f"{prefix}_{digits[20 * i : 20 * i + 20]}" for i in range(n)])


def _documents(rng: np.random.Generator, n: int) -> pl.DataFrame:
    publisher = pl.Series("publisher", rng.integers(0, N_PUBLISHERS, n))
    licence = pl.Series(LICENCES).gather(rng.integers(0, len(LICENCES), n))
    made = pl.DataFrame(
        {
            "document_id": _ids(rng, "doc", n),
            "cluster_id": _ids(rng, "cls", n),
            "url": pl.select(pl.format("https://publisher-{}.example/page/{}", publisher, pl.int_range(n))).to_series(),
            "publisher": pl.select(pl.format("Publisher {}", publisher)).to_series(),
            "licence": pl.select(
                pl.when(pl.Series(rng.random(n) < 0.01)).then(pl.lit("")).otherwise(licence)
            ).to_series(),
            "fetched_at": [BEGIN] * n,
            "n_chars": [CHUNKS_PER_DOCUMENT * 400] * n,
        }
    )
    return made.with_columns(fetched_url="url")


def _chunks(rng: np.random.Generator, documents: pl.DataFrame) -> pl.DataFrame:
    n = documents.height * CHUNKS_PER_DOCUMENT
    ordinal = pl.int_range(n) % CHUNKS_PER_DOCUMENT
    return (
        documents.select("document_id", "cluster_id")
        .select(pl.all().repeat_by(CHUNKS_PER_DOCUMENT).explode())
        .with_columns(
            chunk_id=_ids(rng, "chk", n),
            ordinal=ordinal,
            start=ordinal * 400,
            end=ordinal * 400 + 400,
            heading_path=pl.format("Page > Section {}", ordinal),
            text=pl.format("Passage {} says what a charging station does when a car is plugged in.", pl.int_range(n)),
            n_tokens=pl.lit(90, pl.Int64),
        )
    )


def _examples(rng: np.random.Generator, chunks: pl.DataFrame, n: int) -> pl.DataFrame:
    picked = chunks.select("chunk_id", "document_id", "cluster_id")[rng.integers(0, chunks.height, n)]
    return picked.with_columns(
        example_id=_ids(rng, "exm", n),
        question=pl.format("What does passage {} say?", pl.int_range(n)),
        answer=pl.lit("what a charging station does"),
        origin=pl.lit("generated"),
        kind=pl.lit("fact"),
        split=pl.when(pl.int_range(n) % 5 == 0).then(pl.lit("test")).otherwise(pl.lit("train")),
        cost_usd=pl.lit(0.0004),
    )


def _serve(rng: np.random.Generator, store: Store, chunk_ids: pl.Series, n: int) -> None:
    segments = Segments(store.root, "requests")
    segments.ensure()
    rows = pl.DataFrame(
        {
            "request_id": _ids(rng, "req", n),
            "asked_at": [BEGIN + timedelta(days=4)] * n,
            "key_id": "key_1",
            "route": "/v1/answers",
            "status": 200,
            "task": TASK,
            "model_version": f"{TASK}@3",
            "chunk_ids": chunk_ids.gather(rng.integers(0, len(chunk_ids), 2 * n)).reshape((n, 2)).arr.to_list(),
            "segment": f"{BEGIN + timedelta(days=4):%Y%m%dT%H%M%S%f}-1",
        }
    )
    folder = segments.root / f"{BEGIN + timedelta(days=4):%Y-%m-%d}"
    folder.mkdir(parents=True)
    _filled(rows, stored_schema("requests")).write_parquet(folder / f"{rows['segment'][0]}.parquet")


def _filled(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    def column(name: str, kind: pl.DataType) -> pl.Expr:
        if name in frame.columns:
            return pl.col(name).cast(kind)
        return pl.lit([] if isinstance(kind, pl.List) else _EMPTY[type(kind)], kind).alias(name)

    return frame.select(column(name, kind) for name, kind in schema.items())


def _write(store: Store, table: str, frame: pl.DataFrame, *, day: int) -> Record:
    """Publish without the fingerprint over every row, which would take longer than all the rest."""
    stored = _filled(frame, schema_of(table)).select(pl.lit(TASK).alias("task"), pl.all())
    print_ = hashlib.sha256(f"{table} {day} {stored.height}".encode()).hexdigest()
    at = BEGIN + timedelta(days=day, minutes=len(table))
    record = Record(
        table,
        TASK,
        f"{at:%Y%m%dT%H%M%S%f}-{print_[:12]}",
        print_,
        "",
        {},
        {},
        stored.height,
        at.isoformat(),
        at.isoformat(),
        "",
        "bench",
        None,
    )
    folder = store.root / "tables" / table / TASK
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_parquet(folder / f"{record.version}.parquet", compression="zstd")
    (folder / f"{record.version}.json").write_text(json.dumps(asdict(record)))
    (folder / "CURRENT").write_text(record.version)
    return record
