"""Assets and checks of the stage `registry`: a version for each new model, what it has to show, and who answers."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import registry, serving
from ev_platform.dataset import grounding, locate, overlap, quantities
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, is_forced, markdown_table, spec, table_check, tasks_partitions
from ev_platform.evaluation import abstention
from ev_platform.evaluation.calibration import min_score_of, strange_questions
from ev_platform.evaluation.pages import is_about, write_report
from ev_platform.evaluation.summary import judge as judge_scores
from ev_platform.identity import code_version, fingerprint
from ev_platform.registry import digests, evidence, gate, promotion, releases, strangers, versions
from ev_platform.registry.note import write_note
from ev_platform.registry.takedown import tainted_versions
from ev_platform.storage import Record
from ev_platform.tasks.types import get_task_type
from ev_platform.training.kept import rows_behind, version_kept

GROUP = "registry"
CODE = code_version(versions, digests)
# With what finds leaks, and all of serving: the replay before a promotion goes through it.
CODE_GATE = code_version(
    gate, evidence, strangers, abstention, releases, overlap, locate, grounding, quantities, serving
)
CODE_PROMOTION = code_version(promotion)


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("registered_model", "Every version of the task's model, and what it was made from.", GROUP),
)
def registered_model(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    serving_model: Table,
    adapter: Table,
    training_set: Table,
    chunks: Table,
    benchmark: Table,
    abstention_calibration: Table,
    eval_report: Table,
) -> Iterator[dg.Output[Record]]:
    """Register the model as a candidate."""
    task, opened = store.task(context.partition_key), store.store()
    task_type = get_task_type(task.config.type)
    verdict = judge_scores(eval_report.frame, task_type, task.config.promotion.min_rows)
    settings = registry.serving_settings(task, verdict.verdict, min_score_of(abstention_calibration.frame))
    template = registry.template_fingerprint(serving_model.artifact, task_type)
    scores = eval_report.frame.filter(
        pl.col("compared_to").is_null() & ~pl.col("metric").str.starts_with("confusion/")
    ).select("system", "metric", "value")
    # A model that was kept though a few rows changed was trained on those before.
    trained = rows_behind(opened, task.name, "training_set", adapter.record.inputs.get("training_set", ""))
    trained = trained or training_set.record
    kept: list[str] = []

    def compute() -> dict[str, pl.DataFrame]:
        versions = registry.register(
            opened,
            task.name,
            serving_model=serving_model.frame,
            adapter=adapter.frame,
            training_set=(trained.version, trained.fingerprint),
            chunks=(chunks.version, chunks.fingerprint),
            serving=settings,
            benchmark_fingerprint=benchmark.fingerprint,
            git_commit=eval_report.record.git_commit,
            template=template,
            verdict=verdict.verdict,
            reason=verdict.reason,
            scores={f"{system}/{metric}": value for system, metric, value in scores.rows()},
        )
        before = opened.read("registered_model", task.name)
        if versions.height == before.height or before.is_empty() or is_forced(context, store):
            return {"registered_model": versions}
        newest, made = before.tail(1).to_dicts()[0], versions.tail(1).to_dicts()[0]
        is_judged = promotion.gate_of(opened, task.name, newest["model_version"]).height > 0
        # One that was never judged could not be any more: the evaluation is about other passages than it has.
        if is_judged and newest["model_version"] not in tainted_versions(opened, task.name):
            now = {"chunks": chunks.record, "benchmark": benchmark.record}
            now |= {"abstention_calibration": abstention_calibration.record}
            kept.append(version_kept(opened, newest, made, now, task.config.training.min_changed_share))
        return {"registered_model": before if any(kept) else versions}

    # Two runs at once must not give one number to two models.
    with registry.locked(opened, task.name):
        outputs = list(
            build(
                context,
                store,
                ["registered_model"],
                inputs={
                    "serving_model": serving_model,
                    "adapter": adapter,
                    "training_set": training_set,
                    "chunks": chunks,
                    "benchmark": benchmark,
                    "eval_report": eval_report,
                },
                config={
                    "serving": settings,
                    "template": template,
                    "verdict": verdict.verdict,
                    "answering_code": registry.answering_code(task_type),
                },
                code=CODE,
                compute=compute,
            )
        )
        aliases = registry.name_candidate(opened, task.name)
    for output in outputs:
        told = {"kept": kept[0]} if any(kept) else {}
        yield output.with_metadata({**output.metadata, "aliases": aliases, **told})


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE_GATE,
    **spec("promotion_gate", "What the newest version has to show before it answers, and whether it does.", GROUP),
)
def promotion_gate(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    registered_model: Table,
    eval_report: Table,
    predictions: Table,
    benchmark: Table,
    general_answers: Table,
    adapter: Table,
    merged_model: Table,
    serving_model: Table,
    base_serving_model: Table,
) -> Iterator[dg.Output[Record]]:
    """Judge the newest version by the margins of config.yaml."""
    task, opened = store.task(context.partition_key), store.store()
    champion = predictions.record.config.get("champion")  # the version that took part in the evaluation
    tables = {
        "eval_report": eval_report,
        "predictions": predictions,
        "benchmark": benchmark,
        "general_answers": general_answers,
        "adapter": adapter,
        "merged_model": merged_model,
        "serving_model": serving_model,
        "base_serving_model": base_serving_model,
    }

    version = registered_model.frame.tail(1).to_dicts()[0]
    tainted = tainted_versions(opened, task.name)
    left = pl.DataFrame()
    if version["model_version"] not in tainted and not is_about(predictions.record, version):
        left = promotion.gate_of(opened, task.name, version["model_version"])

    def compute() -> dict[str, pl.DataFrame]:
        if left.height:
            return {"promotion_gate": left}
        found = evidence.collect(
            opened,
            task,
            champion,
            version=version,
            tables={name: table.frame for name, table in tables.items()},
        )
        return {"promotion_gate": gate.judge(found, get_task_type(task.config.type), task.config.promotion)}

    for output in build(
        context,
        store,
        ["promotion_gate"],
        inputs={"registered_model": registered_model, **tables},
        config={
            "promotion": task.config.promotion.model_dump(mode="json"),
            "champion": champion,
            "tainted": sorted(tainted),
            "strangers": fingerprint([asdict(it) for it in strange_questions(task)]),
        },
        code=CODE_GATE,
        compute=compute,
        force=left.is_empty() and evidence.may_tell_more(opened, task),
    ):
        if left.height:
            context.log.info(f"{version['model_version']} keeps its checks: the evaluation is about other passages.")
        vain = {} if left.height else gate.asked_in_vain(opened.read("promotion_gate", task.name))
        for name, reason in vain.items():
            context.log.warning(f"{name}: {reason} The next run asks again.")
        yield output


def _check_of(name: str, asks: str) -> dg.AssetChecksDefinition:
    def check(promotion_gate: Table) -> dg.AssetCheckResult:
        (row,) = promotion_gate.frame.filter(pl.col("check") == name).to_dicts()
        return dg.AssetCheckResult(
            passed=row["passed"],
            severity=dg.AssetCheckSeverity.WARN,
            description=row["reason"],
            metadata={key: row[key] for key in ("model_version", "champion", "value", "limit") if row[key] is not None},
        )

    check.__name__, check.__doc__ = name, asks
    return table_check("promotion_gate")(check)


@dg.asset(
    # Shown on the report's page, which is written once more when all is decided.
    deps=["benchmark_versions", "inference_benchmark", "pair_judgements", "retrieval_report", "seed_scores"],
    partitions_def=tasks_partitions,
    code_version=CODE_PROMOTION,
    **spec("promotions", "Every decision about which version answers, the gate's and people's.", GROUP),
)
def promotions(
    context: dg.AssetExecutionContext, store: StoreResource, promotion_gate: Table
) -> Iterator[dg.Output[Record]]:
    """Let the newest version take the champion's place if it passed; write down what was decided and why."""
    task, opened = store.task(context.partition_key), store.store()
    with registry.locked(opened, task.name):
        decisions, outcome = promotion.decide(opened, task.name, promotion_gate.frame)
        outputs = list(
            build(
                context,
                store,
                ["promotions"],
                inputs={"promotion_gate": promotion_gate},
                config={},
                code=CODE_PROMOTION,
                compute=lambda: {"promotions": decisions},
                force=outcome.outcome != promotion.NOTHING,
            )
        )
        aliases = promotion.settle(opened, task.name)
    note = write_note(opened, task.name, promotion_gate.frame, outcome)
    write_report(opened, task)
    context.log.info(f"{outcome.outcome}: {outcome.reason}")
    for output in outputs:
        yield output.with_metadata(
            {
                **output.metadata,
                "outcome": outcome.outcome,
                "reason": outcome.reason,
                "aliases": aliases,
                "checks": dg.MetadataValue.md(
                    markdown_table(promotion_gate.frame.select("check", "passed", "reason"), 200)
                ),
                "note": dg.MetadataValue.path(str(note)),
            }
        )


assets: list[Any] = [registered_model, promotion_gate, promotions]
checks = [_check_of(name, asks) for name, asks in gate.CHECKS.items()]
