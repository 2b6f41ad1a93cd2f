"""Assets of the stage `collect`: bytes from the web and from files."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from ev_platform import collect
from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import NETWORK, RETRY, build, final_user_errors, spec, tasks_partitions
from ev_platform.identity import code_version
from ev_platform.settings import get_settings
from ev_platform.storage import Record

GROUP = "collect"
CODE = code_version(collect)


@dg.asset(
    partitions_def=tasks_partitions,
    pool=NETWORK,
    retry_policy=RETRY,
    code_version=CODE,
    **spec("raw_pages", "Every address the crawl met: its bytes, or the reason why there are none.", GROUP),
)
@final_user_errors
def raw_pages(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.Output[Record]]:
    """Crawl the task's seeds; unchanged pages transfer headers only."""
    task, opened = store.task(context.partition_key), store.store()
    yield from build(
        context,
        store,
        ["raw_pages"],
        inputs={},
        config=task.sources.model_dump(mode="json"),
        code=CODE,
        compute=lambda: {
            "raw_pages": collect.collect_pages(
                task, opened, previous=opened.read("raw_pages", task.name), user_agent=get_settings().user_agent
            )
        },
        force=True,  # the world may have changed; the crawl itself is conditional
    )


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("raw_pdfs", "PDF files that the task names by path.", GROUP),
)
def raw_pdfs(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.Output[Record]]:
    """Read the task's PDF globs."""
    task, opened = store.task(context.partition_key), store.store()
    yield from build(
        context,
        store,
        ["raw_pdfs"],
        inputs={},
        config=task.sources.model_dump(mode="json"),
        code=CODE,
        compute=lambda: {"raw_pdfs": collect.collect_pdfs(task, opened, previous=opened.read("raw_pdfs", task.name))},
        force=True,
    )


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("raw_texts", "Text files that the task names by path, and its own texts, one row each.", GROUP),
)
def raw_texts(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.Output[Record]]:
    """Read the task's text globs and its unlabelled texts."""
    task, opened = store.task(context.partition_key), store.store()
    yield from build(
        context,
        store,
        ["raw_texts"],
        inputs={},
        config=task.sources.model_dump(mode="json"),
        code=CODE,
        compute=lambda: {
            "raw_texts": collect.collect_texts(task, opened, previous=opened.read("raw_texts", task.name))
        },
        force=True,
    )


assets: list[Any] = [raw_pages, raw_pdfs, raw_texts]
