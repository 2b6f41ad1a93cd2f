"""Table of contents: the stages in the order of the data."""

from __future__ import annotations

import dagster as dg

from ev_platform.defs import (
    abstention,
    benchmarks,
    collect,
    corpus,
    dataset,
    evaluation,
    judging,
    lineage,
    measures,
    publication,
    registry,
    serving,
    training,
)
from ev_platform.defs.automation import after_runs
from ev_platform.defs.console import step_lines
from ev_platform.defs.jobs import jobs
from ev_platform.defs.resources import ParquetIOManager, StoreResource, WandbResource
from ev_platform.defs.sensors import sensors
from ev_platform.settings import get_settings

_settings = get_settings()
_store = StoreResource(data_dir=str(_settings.data_root), tasks_dir=str(_settings.tasks_root))

defs = dg.Definitions(
    assets=[
        *collect.assets,
        *corpus.assets,
        *dataset.assets,
        *training.assets,
        *benchmarks.assets,
        *abstention.assets,
        *evaluation.assets,
        *judging.assets,
        *measures.assets,
        *registry.assets,
        *publication.assets,
        *serving.assets,
        *after_runs(lineage.assets),
    ],
    asset_checks=[
        *corpus.checks,
        *dataset.checks,
        *training.checks,
        *abstention.checks,
        *evaluation.checks,
        *judging.checks,
        *measures.checks,
        *registry.checks,
        *serving.checks,
        *lineage.checks,
    ],
    jobs=jobs,
    sensors=sensors,
    resources={
        "store": _store,
        "io_manager": ParquetIOManager(store=_store),
        "wandb": WandbResource(data_dir=str(_settings.data_root)),
    },
    loggers={"console": dg.colored_console_logger, "steps": step_lines},
    executor=dg.in_process_executor,
)
