"""Assets and checks of the stage `corpus`: from bytes to passages."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import corpus, retrieval
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, outs, spec, table_check, tasks_partitions
from ev_platform.identity import code_version
from ev_platform.settings import get_settings
from ev_platform.storage import Record
from ev_platform.training import tokens
from ev_platform.training.tokens import text_counter

GROUP = "corpus"
CODE = code_version(corpus, retrieval, tokens)
VECTORS_CODE = code_version(retrieval)


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("documents", "Text and metadata of every body; rows without text carry the reason.", GROUP),
)
def documents(
    context: dg.AssetExecutionContext, store: StoreResource, raw_pages: Table, raw_pdfs: Table, raw_texts: Table
) -> Iterator[dg.Output[Record]]:
    """Extract main text; bodies that are known from the last run are not extracted again."""
    opened, task = store.store(), context.partition_key
    limits = store.task(task).config.corpus
    bodies = pl.concat([raw_pages.frame, raw_pdfs.frame, raw_texts.frame])
    # What a page does not declare comes from the sources; a text extracted under other words is extracted again.
    config = {
        "licence": bodies["licence"].unique().sort().to_list(),
        "publisher": bodies["publisher"].unique().sort().to_list(),
        "extract_timeout_s": limits.extract_timeout_s,
        "max_pdf_pages": limits.max_pdf_pages,
    }
    before = opened.current("documents", task)
    is_same = before is not None and before.code_version == CODE and before.config == config
    previous = opened.read("documents", task) if is_same else None
    yield from build(
        context,
        store,
        ["documents"],
        inputs={"raw_pages": raw_pages, "raw_pdfs": raw_pdfs, "raw_texts": raw_texts},
        config=config,
        code=CODE,
        compute=lambda: {
            "documents": corpus.extract_documents(
                bodies,
                opened,
                previous,
                workers=get_settings().workers,
                timeout_s=limits.extract_timeout_s,
                max_pdf_pages=limits.max_pdf_pages,
                spread=get_settings().spread,
            )
        },
    )


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "clean_documents": "Documents in the task's language, about its subject, of good quality, each once.",
            "dropped_documents": "Documents that were set aside, each with its reason and figure.",
        },
    ),
    partitions_def=tasks_partitions,
    code_version=CODE,
    name="clean",
)
def clean(context: dg.AssetExecutionContext, store: StoreResource, documents: Table) -> Iterator[dg.Output[Record]]:
    """Filter and deduplicate."""
    task, opened = store.task(context.partition_key), store.store()
    before = [opened.current(table, task.name) for table in ("clean_documents", "dropped_documents")]
    known = [
        opened.read(record.table, task.name)
        for record in before
        if record and record.code_version == CODE and record.config["description"] == task.description
    ]
    yield from build(
        context,
        store,
        ["clean_documents", "dropped_documents"],
        inputs={"documents": documents},
        config={"description": task.description, **task.config.corpus.model_dump(mode="json")},
        code=CODE,
        compute=lambda: corpus.clean_documents(
            documents.frame, task.description, task.config.corpus, known, get_settings().spread
        ),
    )


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("chunks", "Passages with their span, headings and page, sized in the student's tokens.", GROUP),
)
def chunks(
    context: dg.AssetExecutionContext, store: StoreResource, clean_documents: Table, base_model: Table
) -> Iterator[dg.Output[Record]]:
    """Cut documents along their headings."""
    task = store.task(context.partition_key)
    yield from build(
        context,
        store,
        ["chunks"],
        inputs={"clean_documents": clean_documents, "base_model": base_model},
        config=task.config.corpus.model_dump(mode="json"),
        code=CODE,
        compute=lambda: {
            "chunks": corpus.chunk_documents(
                clean_documents.frame, text_counter(base_model.artifact), task.config.corpus
            )
        },
    )


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=VECTORS_CODE,
    **spec("chunk_vectors", "The sentence embedding of every passage; each is embedded once.", GROUP),
)
def chunk_vectors(
    context: dg.AssetExecutionContext, store: StoreResource, chunks: Table
) -> Iterator[dg.Output[Record]]:
    """Embed the passages that are new."""
    opened, task = store.store(), context.partition_key
    yield from build(
        context,
        store,
        ["chunk_vectors"],
        inputs={"chunks": chunks},
        config={},
        code=VECTORS_CODE,
        compute=lambda: {
            "chunk_vectors": retrieval.embed_chunks(
                chunks.frame, opened.read("chunk_vectors", task), get_settings().spread
            )
        },
    )


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("corpus_report", "What came in, what was set aside and why, as figures, plots and a page.", GROUP),
)
def corpus_report(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    clean_documents: Table,
    dropped_documents: Table,
    chunks: Table,
) -> Iterator[dg.Output[Record]]:
    """Count, plot and write the page."""
    task, opened = store.task(context.partition_key), store.store()
    tables = {"clean_documents": clean_documents, "dropped_documents": dropped_documents, "chunks": chunks}
    frames = {name: table.frame for name, table in tables.items()}
    for output in build(
        context,
        store,
        ["corpus_report"],
        inputs=tables,
        config={},
        code=CODE,
        compute=lambda: {"corpus_report": corpus.summarise_corpus(*frames.values())},
    ):
        report = opened.read("corpus_report", task.name)
        page, plots = corpus.write_corpus_report(opened, task, report, frames)
        shown = {name: dg.MetadataValue.md(image) for name, image in plots.items()}
        yield output.with_metadata({**output.metadata, "report": dg.MetadataValue.path(str(page)), **shown})


@table_check("clean_documents", "dropped_documents", is_blocking=True)
def corpus_is_not_empty(clean_documents: Table, dropped_documents: Table) -> dg.AssetCheckResult:
    """Of what was collected, at least one document is left to learn from; a task may bring rows only."""
    n_kept, n_dropped = clean_documents.record.n_rows, dropped_documents.record.n_rows
    passed = n_kept > 0 or n_dropped == 0
    reasons = dropped_documents.frame["drop_reason"].value_counts(sort=True).rows()
    return dg.AssetCheckResult(
        passed=passed,
        description=None
        if passed
        else f"The corpus is empty: {n_dropped} documents were dropped "
        f"({', '.join(f'{reason}: {n}' for reason, n in reasons)}); see dropped_documents.",
        metadata={"kept": n_kept, "dropped": n_dropped},
    )


@table_check("clean_documents", "documents", "dropped_documents", is_blocking=True)
def counts_add_up(documents: Table, clean_documents: Table, dropped_documents: Table) -> dg.AssetCheckResult:
    """Documents in equal documents kept plus documents dropped."""
    n_in, n_kept, n_dropped = (t.record.n_rows for t in (documents, clean_documents, dropped_documents))
    return dg.AssetCheckResult(
        passed=n_in == n_kept + n_dropped, metadata={"in": n_in, "kept": n_kept, "dropped": n_dropped}
    )


@table_check("chunks", "clean_documents", is_blocking=True)
def chunks_are_spans(chunks: Table, clean_documents: Table) -> dg.AssetCheckResult:
    """Chunk ids are unique and every chunk's text is exactly its span of its document."""
    texts = dict(clean_documents.frame.select("document_id", "text").iter_rows())
    wrong = [
        c["chunk_id"]
        for c in chunks.frame.iter_rows(named=True)
        if texts.get(c["document_id"], "")[c["start"] : c["end"]] != c["text"]
    ]
    n_repeated = chunks.record.n_rows - chunks.frame["chunk_id"].n_unique()
    return dg.AssetCheckResult(
        passed=not wrong and not n_repeated, metadata={"wrong": len(wrong), "repeated": n_repeated}
    )


assets: list[Any] = [documents, clean, chunks, chunk_vectors, corpus_report]
checks = [corpus_is_not_empty, counts_add_up, chunks_are_spans]
