"""The asset that gives the test rows a version, and the check that says so when there is a new one."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, spec, tasks_partitions
from ev_platform.evaluation import benchmarks
from ev_platform.identity import code_version
from ev_platform.storage import Record

GROUP = "evaluation"
CODE = code_version(benchmarks)
CHECK = "benchmark_is_announced"


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    check_specs=[
        dg.AssetCheckSpec(
            CHECK,
            asset="benchmark_versions",
            partitions_def=tasks_partitions,
            description="The test rows are those of the run before, so that its figures compare.",
        )
    ],
    **spec("benchmark_versions", "Versions of the test rows, each with what is new in it and a card.", GROUP),
)
def benchmark_versions(
    context: dg.AssetExecutionContext, store: StoreResource, benchmark: Table
) -> Iterator[dg.Output[Record] | dg.AssetCheckResult]:
    """Announce the rows if they are new."""
    task, opened = store.task(context.partition_key), store.store()
    earlier = opened.current("benchmark_versions", task.name)
    before = earlier.inputs["benchmark"] if earlier else benchmark.fingerprint
    for output in build(
        context,
        store,
        ["benchmark_versions"],
        inputs={"benchmark": benchmark},
        config={},
        code=CODE,
        compute=lambda: {
            "benchmark_versions": benchmarks.announce(opened, task, benchmark.version, benchmark.fingerprint)
        },
    ):
        versions = opened.read("benchmark_versions", task.name)
        in_force = benchmarks.version_of(versions, benchmark.fingerprint)
        yield output.with_metadata({**output.metadata, "card": dg.MetadataValue.md(in_force["card"])})
        yield dg.AssetCheckResult(
            check_name=CHECK,
            passed=before == benchmark.fingerprint,
            severity=dg.AssetCheckSeverity.WARN,
            description=benchmarks.announcement(versions, benchmark.fingerprint, before),
            metadata={name: in_force[name] for name in ("benchmark", "n_rows", "n_added", "n_removed")},
        )


assets: list[Any] = [benchmark_versions]
