"""Assets and checks of the stage `training`: base model, adapter, merged model, serving export."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import dagster as dg

from ev_platform import encoder, pooling
from ev_platform.dataset.leakage import find_leaks
from ev_platform.defs.resources import StoreResource, Table, WandbResource, track_artifacts
from ev_platform.defs.stage import (
    COMPUTE,
    NETWORK,
    RETRY,
    build,
    final_user_errors,
    is_forced,
    outs,
    spec,
    table_check,
    tasks_partitions,
)
from ev_platform.errors import UserError
from ev_platform.identity import code_version, fingerprint
from ev_platform.registry.takedown import tainted_versions
from ev_platform.settings import get_settings
from ev_platform.storage import Record
from ev_platform.tasks import Task
from ev_platform.training import (
    artifacts,
    base,
    causal,
    checkpoints,
    export,
    exports,
    heads,
    loop,
    order,
    packages,
    parity,
)
from ev_platform.training.artifacts import Answers
from ev_platform.training.base import base_model_identity
from ev_platform.training.distributed import train_distributed
from ev_platform.training.kept import change_since
from ev_platform.training.recipes import Recipe, load_recipe
from ev_platform.training.sweep import chosen_recipe, plan_trials
from ev_platform.training.train import train as train_here

GROUP = "training"
CODE_BASE = code_version(base)
CODE_TRAIN = code_version(causal, checkpoints, encoder, heads, loop, order, pooling)
CODE_EXPORT = code_version(export, pooling)
CODE_SERVING = code_version(export, exports, heads, packages, parity, pooling)
MIN_AGREEMENT = 0.9


def answers_of(task: Task) -> Answers:
    """Return what a head must know of a task."""
    return Answers(tuple(task.classes), task.config.no_answer)


@dg.asset(
    partitions_def=tasks_partitions,
    pool=NETWORK,
    retry_policy=RETRY,
    code_version=CODE_BASE,
    **spec("base_model", "The model before training, as safetensors with its tokenizer.", GROUP),
)
@final_user_errors
def base_model(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.Output[Record]]:
    """Bring the base model into the store."""
    recipe = load_recipe(store.task(context.partition_key))
    yield from build(
        context,
        store,
        ["base_model"],
        inputs={},
        config=base_model_identity(recipe.base_model),
        code=CODE_BASE,
        compute=lambda: {"base_model": artifacts.build_base_model(store.store(), recipe)},
    )


def trainer() -> Any:
    """Return what runs a job: this process, or `EV_TRAIN_WORKERS` workers of Ray."""
    settings = get_settings()
    is_spread = settings.engine == "ray" or settings.train_workers > 1
    return partial(train_distributed, n_workers=settings.train_workers) if is_spread else train_here


def _refuse_leaks(task: Task, training_set: Table, validation_set: Table, benchmark: Table, chunks: Table) -> None:
    # The check no_leakage stops a whole run; this stops a run that starts here.
    records = [training_set.record, validation_set.record]
    leaks = find_leaks(training_set.store, records, benchmark.record, chunks.record, task.config.dataset)
    if leaks:
        first = leaks[0]
        raise UserError(
            f"{len(leaks)} training rows meet a test row, such as {first.training_question!r} and "
            f"{first.test_question!r} ({first.reason}): "
            "look at the check no_leakage of training_set, then materialize the stage dataset."
        )


def _rows_to_train_on(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    table: str,
    config: Mapping[str, Any],
    now: Mapping[str, Table],
) -> tuple[Table, Table, str]:
    """Return the training and validation rows that `table` is made from, and why where they are not the current ones.

    Args:
        context: Of the running asset.
        store: Where the rows lie.
        table: `adapter` or `sweep_trials`.
        config: What it depends on beside its inputs.
        now: The current inputs by table, `benchmark` and `chunks` among them.
    """
    task, opened = store.task(context.partition_key), store.store()
    current = (now["training_set"], now["validation_set"], "")
    made = opened.current(table, task.name)
    if made is None or is_forced(context, store):
        return current
    is_made_so = made.code_version == CODE_TRAIN and fingerprint(made.config) == fingerprint(dict(config))
    if not is_made_so or made.inputs.get("base_model") != now["base_model"].fingerprint:
        return current
    change = change_since(opened, made, {name: now[name].record for name in ("training_set", "validation_set")})
    least = task.config.training.min_changed_share
    if change is None or not change.n_changed or change.n_changed >= least * change.n_rows:
        return current
    if find_leaks(opened, change.before, now["benchmark"].record, now["chunks"].record, task.config.dataset):
        return current
    adapters = dict(opened.read("registered_model", task.name).select("model_version", "adapter_id").iter_rows())
    tainted = {adapters.get(version) for version in tainted_versions(opened, task.name)}
    if tainted & set(opened.read("adapter", task.name)["artifact_id"]):
        return current
    said = (
        f"{change.n_changed} of {change.n_rows} rows changed, less than training.min_changed_share ({least:g}): "
        "the trained model is kept"
    )
    context.log.info(said)
    training_set, validation_set = (Table(opened, record) for record in change.before)
    return training_set, validation_set, said


@dg.asset(
    partitions_def=tasks_partitions,
    pool=COMPUTE,
    code_version=CODE_TRAIN,
    **spec(
        "sweep_trials", "Recipes that config.yaml's `sweep` tried, and which of them the validation set chose.", GROUP
    ),
)
def sweep_trials(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    base_model: Table,
    training_set: Table,
    validation_set: Table,
    benchmark: Table,
    chunks: Table,
) -> Iterator[dg.Output[Record]]:
    """Search hyper-parameters; empty where the task names none to try."""
    task = store.task(context.partition_key)
    trials, answers = plan_trials(task), answers_of(task)
    settings = {"trials": [trial.recipe.model_dump(mode="json") for trial in trials], **dataclasses.asdict(answers)}
    if trials:
        now = {"training_set": training_set, "validation_set": validation_set, "base_model": base_model}
        now |= {"benchmark": benchmark, "chunks": chunks}
        training_set, validation_set, _ = _rows_to_train_on(context, store, "sweep_trials", settings, now)
    fingerprints = {"training_set": training_set.fingerprint, "validation_set": validation_set.fingerprint}

    def compute() -> dict[str, Any]:
        if trials:
            _refuse_leaks(task, training_set, validation_set, benchmark, chunks)
        return artifacts.build_sweep(
            store.store(),
            trials,
            answers,
            base_model.frame,
            training_set.frame,
            validation_set.frame,
            {**fingerprints, "code": CODE_TRAIN},
            trainer(),
        )

    yield from build(
        context,
        store,
        ["sweep_trials"],
        inputs={"base_model": base_model, "training_set": training_set, "validation_set": validation_set}
        if trials
        else {},
        config=settings,
        code=CODE_TRAIN,
        compute=compute,
    )


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "adapter": "LoRA weights trained on the training set, and the figures of the run.",
            "training_log": "Loss, validation loss, learning rate and gradient norm of every step.",
        },
    ),
    partitions_def=tasks_partitions,
    pool=COMPUTE,
    code_version=CODE_TRAIN,
    name="fine_tune",  # a job is named train
)
def fine_tune(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    wandb: WandbResource,
    base_model: Table,
    sweep_trials: Table,
    training_set: Table,
    validation_set: Table,
    benchmark: Table,
    chunks: Table,
) -> Iterator[dg.Output[Record]]:
    """Fine-tune, tracked by Weights & Biases."""
    task = store.task(context.partition_key)
    recipe, answers = chosen_recipe(load_recipe(task), sweep_trials.frame), answers_of(task)
    made_by = {"recipe": recipe.model_dump(mode="json"), **dataclasses.asdict(answers)}
    now = {"training_set": training_set, "validation_set": validation_set, "base_model": base_model}
    now |= {"benchmark": benchmark, "chunks": chunks}
    training_set, validation_set, kept = _rows_to_train_on(context, store, "adapter", made_by, now)

    def compute() -> dict[str, Any]:
        _refuse_leaks(task, training_set, validation_set, benchmark, chunks)
        fingerprints = {"training_set": training_set.fingerprint, "validation_set": validation_set.fingerprint}
        settings = {"recipe": recipe.model_dump(mode="json"), **fingerprints}
        opened = store.store()
        with wandb.run(project="ev-platform", group=task.name, config=settings) as run:
            tables = artifacts.build_adapter(
                opened,
                recipe,
                answers,
                base_model.frame,
                training_set.frame,
                validation_set.frame,
                fingerprints,
                CODE_TRAIN,
                log=lambda metrics, step: run.log(metrics, step=step),
                train=trainer(),
            )
            track_artifacts(run, task.name, fingerprints, opened.root / tables["adapter"].item(0, "path"))
            return tables

    for output in build(
        context,
        store,
        ["adapter", "training_log"],
        inputs={"base_model": base_model, "training_set": training_set, "validation_set": validation_set},
        config=made_by,
        code=CODE_TRAIN,
        compute=compute,
    ):
        yield output.with_metadata({**output.metadata, "kept": kept}) if kept else output


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE_EXPORT,
    **spec("merged_model", "Base weights plus adapter, as safetensors.", GROUP),
)
def merged_model(
    context: dg.AssetExecutionContext, store: StoreResource, base_model: Table, adapter: Table
) -> Iterator[dg.Output[Record]]:
    """Merge; a fully trained model is taken as it is."""
    recipe = Recipe.model_validate_json(adapter.frame.item(0, "recipe"))
    yield from build(
        context,
        store,
        ["merged_model"],
        inputs={"base_model": base_model, "adapter": adapter},
        config={},
        code=CODE_EXPORT,
        compute=lambda: {
            "merged_model": artifacts.build_merged_model(store.store(), recipe, base_model.frame, adapter.frame)
        },
    )


def _serve(
    context: dg.AssetExecutionContext, store: StoreResource, table: str, source: str, model: Table, shown: Table | None
) -> Iterator[dg.Output[Record]]:
    task = store.task(context.partition_key)
    recipe, answers = load_recipe(task), answers_of(task)
    yield from build(
        context,
        store,
        [table],
        inputs={source: model} | ({"validation_set": shown} if shown else {}),
        config=artifacts.head_identity(recipe, answers),
        code=CODE_SERVING,
        compute=lambda: {
            table: artifacts.build_serving_model(
                store.store(), recipe, answers, table, model.frame, shown.frame if shown else None
            )
        },
    )


@dg.asset(
    partitions_def=tasks_partitions,
    pool=COMPUTE,
    code_version=CODE_SERVING,
    **spec(
        "serving_model", "The tuned model as the engine loads it: CTranslate2 int8 where it can be converted.", GROUP
    ),
)
def serving_model(
    context: dg.AssetExecutionContext, store: StoreResource, merged_model: Table, validation_set: Table
) -> Iterator[dg.Output[Record]]:
    """Export, and compare the export with the merged model on the questions of the validation set."""
    yield from _serve(context, store, "serving_model", "merged_model", merged_model, validation_set)


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE_SERVING,
    **spec("base_serving_model", "The base model in the same form, so that both are compared on equal terms.", GROUP),
)
def base_serving_model(
    context: dg.AssetExecutionContext, store: StoreResource, base_model: Table
) -> Iterator[dg.Output[Record]]:
    """Export the model before training; an encoder gets the head it began with."""
    yield from _serve(context, store, "base_serving_model", "base_model", base_model, None)


@table_check("serving_model")
def export_agrees(serving_model: Table) -> dg.AssetCheckResult:
    """The export's most likely token is the merged model's, for at least nine of ten tokens of validation answers."""
    figures = json.loads(serving_model.frame.item(0, "metrics"))
    rate = figures.get("token_agreement")
    return dg.AssetCheckResult(
        passed=rate is None or rate >= MIN_AGREEMENT, severity=dg.AssetCheckSeverity.WARN, metadata=figures
    )


@table_check("adapter")
def loss_fell(adapter: Table) -> dg.AssetCheckResult:
    """The loss at the end is below the loss at the start."""
    figures = json.loads(adapter.frame.item(0, "metrics"))
    before, after = figures["first_loss"], figures["final_loss"]
    return dg.AssetCheckResult(
        passed=after < before,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={key: value for key, value in figures.items() if value is not None},
    )


assets: list[Any] = [base_model, sweep_trials, fine_tune, merged_model, serving_model, base_serving_model]
checks = [loss_fell, export_agrees]
