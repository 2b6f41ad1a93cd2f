"""Asset and check of the judge: which of two systems' answers the teacher prefers, and whether it can be believed."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from ev_platform import teachers
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import RETRY, TEACHER, build, final_user_errors, spec, table_check, tasks_partitions
from ev_platform.evaluation import judge, judgements, summary
from ev_platform.evaluation.judge_agreement import find_flaw
from ev_platform.identity import code_version
from ev_platform.storage import Record

GROUP = "evaluation"
CODE = code_version(judge, judgements, summary, teachers)


@dg.asset(
    partitions_def=tasks_partitions,
    pool=TEACHER,
    retry_policy=RETRY,
    code_version=CODE,
    **spec("pair_judgements", "Which answer the teacher prefers, asked in both orders, and what people say.", GROUP),
)
@final_user_errors
def pair_judgements(
    context: dg.AssetExecutionContext, store: StoreResource, predictions: Table, benchmark: Table, chunks: Table
) -> Iterator[dg.Output[Record]]:
    """Let the teacher judge the tuned system against its base; stored replies cost nothing."""
    task, opened = store.task(context.partition_key), store.store()
    for output in build(
        context,
        store,
        ["pair_judgements"],
        inputs={"predictions": predictions, "benchmark": benchmark, "chunks": chunks},
        config=judge.describe_judge(task),
        code=CODE,
        force=judge.has_news(opened, task.name),
        compute=lambda: {
            "pair_judgements": judge.judge_task(
                task, opened, context.run_id, predictions.frame, benchmark.frame, chunks.frame
            )
        },
    ):
        made = opened.read("pair_judgements", task.name)
        sheet = judge.write_task_sheet(task, opened, judge.choose_pairs(predictions.frame, benchmark.frame, task))
        yield output.with_metadata(
            {
                **output.metadata,
                **judge.summarise_judgements(made, task),
                **({"sheet_for_people": dg.MetadataValue.path(str(sheet))} if sheet else {}),
            }
        )


@table_check("pair_judgements")
def judge_can_be_believed(pair_judgements: Table) -> dg.AssetCheckResult:
    """The judge's verdicts seldom turn with the order of the answers, and agree with people where they judged."""
    flaw = find_flaw(pair_judgements.frame)
    return dg.AssetCheckResult(passed=flaw is None, severity=dg.AssetCheckSeverity.WARN, description=flaw)


assets: list[Any] = [pair_judgements]
checks = [judge_can_be_believed]
