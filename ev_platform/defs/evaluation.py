"""Assets and checks of the stage `evaluation`: answers of every system, and what they say."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import decoding, encoder, engine, engine_base, evaluation, pooling, prompting, registry, retrieval
from ev_platform.dataset import grounding, quantities
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import COMPUTE, build, markdown_table, spec, table_check, tasks_partitions
from ev_platform.defs.training import CODE_EXPORT, CODE_SERVING, CODE_TRAIN, answers_of, trainer
from ev_platform.errors import UserError
from ev_platform.evaluation import (
    abstention,
    answering,
    floors,
    groundedness,
    labels,
    local_metric,
    metrics,
    plots,
    predicting,
    seeds,
    statistics,
    summary,
    systems,
)
from ev_platform.evaluation.calibration import min_score_of
from ev_platform.evaluation.names import METRIC_NAMES
from ev_platform.evaluation.pages import write_report
from ev_platform.identity import code_version, fingerprint
from ev_platform.records import to_frame
from ev_platform.registry import releases
from ev_platform.storage import Record, Store
from ev_platform.tasks import Task, splitting
from ev_platform.tasks.types import TASK_TYPES, get_task_type
from ev_platform.training.kept import rows_behind
from ev_platform.training.loop import Job
from ev_platform.training.recipes import Recipe

GROUP = "evaluation"
_TYPES = [sys.modules[type(task_type).__module__] for task_type in TASK_TYPES.values()]
# Not the whole package: another colour in a plot must not have every question answered again.
ANSWERING = (predicting, answering, systems, floors, metrics, labels, abstention, groundedness, local_metric)
CODE = code_version(
    *ANSWERING,
    decoding,
    encoder,
    engine,
    engine_base,
    grounding,
    pooling,
    prompting,
    quantities,
    releases,
    retrieval,
    splitting,
    *_TYPES,
)
CODE_REPORT = code_version(summary, statistics, metrics, labels, local_metric)
CODE_SEEDS = fingerprint([CODE, CODE_TRAIN, CODE_EXPORT, CODE_SERVING, code_version(seeds, summary)])[:16]
# Of the rows' differences between two systems, before any have answered: as if one of the two were right and the other
# wrong on a quarter of the rows, either as often as the other.
ASSUMED_SD = 0.5


def _answering(task: Task) -> dict[str, Any]:
    """Return what decides answers and their scores beside tables and code."""
    config = task.config
    return {
        "instructions": task.instructions,
        "type": config.type,
        "no_answer": config.no_answer,
        "retrieval": config.retrieval.model_dump(mode="json", include={"top_k", "candidates"}),
        "evaluation": config.evaluation.model_dump(mode="json", include={"max_rows", "max_new_tokens"}),
        "libraries": metrics.libraries(),
    }


@dg.asset(
    partitions_def=tasks_partitions,
    pool=COMPUTE,
    code_version=CODE,
    **spec(
        "predictions", "Answers to the benchmark of base and tuned model, floors, champion and teacher, scored.", GROUP
    ),
)
def predictions(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    benchmark: Table,
    chunks: Table,
    chunk_vectors: Table,
    abstention_calibration: Table,
    training_set: Table,
    teacher_answers: Table,
    base_serving_model: Table,
    serving_model: Table,
) -> Iterator[dg.Output[Record]]:
    """Ask every system every question."""
    task, opened = store.task(context.partition_key), store.store()
    task_type = get_task_type(task.config.type)
    inputs = {"benchmark": benchmark, "chunks": chunks, "chunk_vectors": chunk_vectors}
    inputs |= {"base_serving_model": base_serving_model, "serving_model": serving_model}
    # What takes no part does not make the answers stale.
    rows = evaluation.evaluated_rows(benchmark.frame, task.config.evaluation.max_rows)
    if systems.answers_by_teacher(rows, teacher_answers.frame).height:
        inputs["teacher_answers"] = teacher_answers
    if task_type.has_classes:
        inputs["training_set"] = training_set
    # Of the calibration only what was chosen takes part.
    min_score = min_score_of(abstention_calibration.frame)
    reference = registry.reference_of(
        opened,
        task.name,
        serving_model_id=serving_model.frame.item(0, "artifact_id"),
        chunks_fingerprint=chunks.fingerprint,
        benchmark_fingerprint=benchmark.fingerprint,
        answering=registry.answering_now(task, serving_model.artifact, min_score),
    )
    left_out: dict[str, str] = {}

    def compute() -> dict[str, pl.DataFrame]:
        champion = _load_champion(opened, task, reference, left_out)
        answers = evaluation.predict(
            benchmark.frame,
            chunks.frame,
            {
                name: (table.frame.item(0, "artifact_id"), engine.load_engine(table.artifact))
                for name, table in (("base", base_serving_model), ("tuned", serving_model))
            },
            task_type,
            task.instructions,
            task.config,
            vectors=chunk_vectors.frame,
            training_set=training_set.frame,
            teacher_answers=teacher_answers.frame,
            champion=champion,
            min_score=min_score,
        )
        return {"predictions": answers}

    config = {**_answering(task), "champion": reference, "min_score": min_score}
    for output in build(
        context,
        store,
        ["predictions"],
        inputs=inputs,
        config=config,
        code=CODE,
        compute=compute,
        force=_is_back(opened, task, reference),
    ):
        for reason in left_out.values():
            context.log.warning(f"The champion takes no part: {reason}")
        yield output.with_metadata({**output.metadata, **left_out})


def _load_champion(
    store: Store, task: Task, reference: str | None, left_out: dict[str, str]
) -> registry.Release | None:
    if reference is None:
        return None
    try:
        return registry.load_release(store, task, reference, needs_corpus=False)
    except Exception as error:
        # Whatever it is: a champion that can no longer answer must not keep its successor from being evaluated.
        left_out["champion_left_out"] = str(error) if isinstance(error, UserError) else repr(error)
        return None


def _is_back(store: Store, task: Task, reference: str | None) -> bool:
    """Return whether a champion that could not take part when the stored answers were made can do so now."""
    stored = store.current("predictions", task.name)
    if reference is None or stored is None or stored.config.get("champion") != reference:
        return False
    if systems.CHAMPION in store.read("predictions", task.name)["system"]:
        return False
    return _load_champion(store, task, reference, {}) is not None


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE_REPORT,
    **spec("eval_report", "Scores with 95 % intervals, paired differences, the verdict, and a page to read.", GROUP),
)
def eval_report(
    context: dg.AssetExecutionContext, store: StoreResource, predictions: Table
) -> Iterator[dg.Output[Record]]:
    """Summarise the predictions and write the report."""
    task, opened = store.task(context.partition_key), store.store()
    task_type = get_task_type(task.config.type)
    resamples, seed = task.config.evaluation.bootstrap, task.config.dataset.seed
    for output in build(
        context,
        store,
        ["eval_report"],
        inputs={"predictions": predictions},
        config={"bootstrap": resamples, "seed": seed, "type": task_type.name, "libraries": metrics.libraries()},
        code=CODE_REPORT,
        compute=lambda: {
            "eval_report": summary.summarise(
                predictions.frame, resamples=resamples, seed=seed, is_labels=not task_type.has_corpus
            )
        },
    ):
        page, verdict = write_report(opened, task)
        scores = opened.read("eval_report", task.name)
        images = {"scores": plots.scores_image(scores), "differences": plots.differences_image(scores)}
        yield output.with_metadata(
            {
                **output.metadata,
                "verdict": verdict.verdict,
                "reason": verdict.reason,
                "report": dg.MetadataValue.path(str(page)),
                **{name: dg.MetadataValue.md(image) for name, image in images.items() if image},
            }
        )


@dg.asset(
    partitions_def=tasks_partitions,
    pool=COMPUTE,
    code_version=CODE_SEEDS,
    **spec("seed_scores", "Scores of the recipe trained with other seeds; empty without evaluation.seeds.", GROUP),
)
def seed_scores(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    base_model: Table,
    adapter: Table,
    training_set: Table,
    validation_set: Table,
    benchmark: Table,
    chunks: Table,
    chunk_vectors: Table,
    abstention_calibration: Table,
    predictions: Table,
) -> Iterator[dg.Output[Record]]:
    """Train the recipe again with each seed, and let what comes of it answer the benchmark."""
    task = store.task(context.partition_key)
    wanted, task_type = task.config.evaluation.seeds, get_task_type(task.config.type)
    trained_on = {"training_set": training_set, "validation_set": validation_set}
    if wanted:
        trained_on = {name: _behind(adapter, name, table) for name, table in trained_on.items()}
    asked = {"benchmark": benchmark, "chunks": chunks, "chunk_vectors": chunk_vectors, "predictions": predictions}
    inputs = {"base_model": base_model, "adapter": adapter, **trained_on, **asked} if wanted else {}
    min_score = min_score_of(abstention_calibration.frame)
    config = {"seeds": list(wanted), **({**_answering(task), "min_score": min_score} if wanted else {})}

    def compute() -> dict[str, pl.DataFrame]:
        return {
            "seed_scores": seeds.score_seeds(
                wanted,
                _job_of(task, store.store(), base_model, adapter, **trained_on),
                predictions.frame,
                lambda model: evaluation.predict(
                    benchmark.frame,
                    chunks.frame,
                    {"tuned": (model.parent.name, engine.load_engine(model))},
                    task_type,
                    task.instructions,
                    task.config,
                    vectors=chunk_vectors.frame,
                    min_score=min_score,
                ),
                # The evaluated model's own answers change with the champion beside it; other seeds do not.
                {"code": CODE_SEEDS, **config, **{n: t.fingerprint for n, t in inputs.items() if n != "predictions"}},
                trainer(),
                is_labels=not task_type.has_corpus,
            )
        }

    for output in build(
        context,
        store,
        ["seed_scores"],
        inputs=inputs,
        config=config,
        code=CODE_SEEDS,
        compute=compute if wanted else lambda: {"seed_scores": to_frame("seed_scores", [])},
    ):
        spread = seeds.spread_over_seeds(store.store().read("seed_scores", task.name))
        shown = {"spread": dg.MetadataValue.md(markdown_table(spread))} if spread.height else {}
        yield output.with_metadata({**output.metadata, **shown})


def _behind(adapter: Table, name: str, now: Table) -> Table:
    """Return the rows that the model was trained on, which may be older than those of today."""
    known = json.loads(adapter.frame.item(0, "inputs"))[name]
    if known == now.fingerprint:
        return now
    record = rows_behind(now.store, now.record.task, name, known)
    if record is None:
        raise UserError(
            f"The rows of {name} that the model was trained on are no longer stored, so that other seeds could not be "
            f"compared with it: run `ev-platform run --task {now.record.task}`."
        )
    return Table(now.store, record)


def _job_of(
    task: Task, store: Store, base_model: Table, adapter: Table, training_set: Table, validation_set: Table
) -> Job:
    folder, answers = store.root / "seeds", answers_of(task)
    recipe = Recipe.model_validate_json(adapter.frame.item(0, "recipe"))
    rows = (training_set.frame, validation_set.frame)
    return Job(base_model.artifact, *rows, recipe, answers.labels, answers.no_answer, folder, folder)


@table_check("benchmark")
def benchmark_can_decide(store: StoreResource, benchmark: Table) -> dg.AssetCheckResult:
    """There are rows enough for a verdict; tells how large a difference they can show, before anything is trained."""
    task = store.task(benchmark.record.task)
    task_type, min_rows = get_task_type(task.config.type), task.config.promotion.min_rows
    n_rows = min(benchmark.record.n_rows, task.config.evaluation.max_rows)
    known = summary.sd_of_difference(store.store().read("predictions", task.name), task_type)
    sd, source = (known, "as in the last predictions") if known else (ASSUMED_SD, "assumed, as there are none yet")
    metric = METRIC_NAMES[summary.deciding_metric(task_type)]
    told, figures = f"{n_rows} test rows", {"rows": n_rows, "min_rows": min_rows, "sd": sd}
    if n_rows < min_rows:
        told += f" of at least {min_rows}: every verdict will be inconclusive; write more"
    if n_rows > 1:
        figures["minimum_detectable_effect"] = effect = statistics.minimum_detectable_effect(n_rows, sd)
        told += (
            f". A true difference in {metric} of {effect:.3f} is found four times in five (standard deviation of the "
            f"rows' differences {sd:.2f}, {source})"
        )
    return dg.AssetCheckResult(
        passed=n_rows >= min_rows, severity=dg.AssetCheckSeverity.WARN, description=f"{told}.", metadata=figures
    )


@table_check("eval_report")
def tuned_beats_base(store: StoreResource, eval_report: Table) -> dg.AssetCheckResult:
    """Tuned is better than base on equal terms, by the task type's metric: interval, test and number of rows say so."""
    task_type = get_task_type(eval_report.record.config["type"])
    metric = summary.deciding_metric(task_type)
    tuned, base = summary.equal_terms(task_type, set(eval_report.frame["system"]))
    difference = summary.differences_of(eval_report.frame, metric)[tuned, base]
    figures = {name: getattr(difference, name) for name in ("value", "low", "high", "p_value", "n_rows")}
    return dg.AssetCheckResult(
        passed=difference.is_better(store.task(eval_report.record.task).config.promotion.min_rows),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "compared": f"{metric} of {tuned} with {base}",
            **{name: value for name, value in figures.items() if value is not None},
        },
    )


@table_check("predictions", "benchmark", is_blocking=True)
def every_system_answered(predictions: Table, benchmark: Table) -> dg.AssetCheckResult:
    """Base and tuned model are there, and every system answered the same benchmark rows once."""
    frame = predictions.frame
    answered = {
        name: sorted(rows["example_id"]) for (name,), rows in frame.partition_by("system", as_dict=True).items()
    }
    models = {
        model for name, model, _ in get_task_type(predictions.record.config["type"]).systems() if name in answered
    }
    wanted = next(iter(answered.values()), [])
    return dg.AssetCheckResult(
        passed=models == {"base", "tuned"}
        and len(set(wanted)) == len(wanted)
        and set(wanted) <= set(benchmark.frame["example_id"])
        and all(rows == wanted for rows in answered.values()),
        metadata={name: len(rows) for name, rows in sorted(answered.items())},
    )


assets: list[Any] = [predictions, eval_report, seed_scores]
checks = [benchmark_can_decide, tuned_beats_base, every_system_answered]
