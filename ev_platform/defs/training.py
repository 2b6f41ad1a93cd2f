"""Assets and checks of the stage `training`: base model, adapter, merged model, serving export."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from ev_platform.dataset.overlap import find_overlaps
from ev_platform.defs.resources import StoreResource, Table, WandbResource
from ev_platform.defs.stage import build, outs, spec, table_check, tasks_partitions
from ev_platform.errors import UserError
from ev_platform.storage import Record, code_version
from ev_platform.training import artifacts, base, export, recipes, sft
from ev_platform.training.base import base_model_identity
from ev_platform.training.recipes import load_recipe

GROUP = "training"
CODE_BASE = code_version(base)
CODE_TRAIN = code_version(sft, recipes)
CODE_EXPORT = code_version(export)


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE_BASE,
    **spec("base_model", "The model before training, as safetensors with its tokenizer.", GROUP),
)
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


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "adapter": "LoRA weights trained on the training set, and the figures of the run.",
            "training_log": "Loss, validation loss, learning rate and gradient norm of every step.",
        },
    ),
    partitions_def=tasks_partitions,
    code_version=CODE_TRAIN,
    name="train",
)
def train(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    wandb: WandbResource,
    base_model: Table,
    training_set: Table,
    validation_set: Table,
    benchmark: Table,
    chunks: Table,
) -> Iterator[dg.Output[Record]]:
    """Fine-tune, tracked by Weights & Biases."""
    task = store.task(context.partition_key)
    recipe = load_recipe(task)

    def compute() -> dict[str, Any]:
        # The check of the same name stops a whole run; this stops a run that starts here.
        trained_on = pl.concat([training_set.frame, validation_set.frame])
        leaks = find_overlaps(trained_on, benchmark.frame, chunks.frame, task.config.dataset)
        if leaks:
            first = leaks[0]
            raise UserError(
                f"{len(leaks)} training rows meet a test row, such as {first.training_question!r} and "
                f"{first.test_question!r} ({first.reason}): "
                "look at the check no_leakage of training_set, then materialize the stage dataset."
            )
        settings = {"recipe": recipe.model_dump(mode="json"), "training_set": training_set.fingerprint}
        with wandb.run(project="ev-platform", group=task.name, config=settings) as run:
            return artifacts.build_adapter(
                store.store(),
                recipe,
                base_model.frame,
                training_set.frame,
                validation_set.frame,
                training_set.fingerprint,
                log=lambda metrics, step: run.log(metrics, step=step),
            )

    yield from build(
        context,
        store,
        ["adapter", "training_log"],
        inputs={"base_model": base_model, "training_set": training_set, "validation_set": validation_set},
        config=recipe.model_dump(mode="json"),
        code=CODE_TRAIN,
        compute=compute,
    )


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE_EXPORT,
    **spec("merged_model", "Base weights plus adapter, as safetensors.", GROUP),
)
def merged_model(
    context: dg.AssetExecutionContext, store: StoreResource, base_model: Table, adapter: Table
) -> Iterator[dg.Output[Record]]:
    """Merge."""
    recipe = load_recipe(store.task(context.partition_key))
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


def _serving_asset(table: str, source: str, description: str) -> Any:
    @dg.asset(
        name=table,
        ins={"model": dg.AssetIn(source)},
        partitions_def=tasks_partitions,
        code_version=CODE_EXPORT,
        **spec(table, description, GROUP),
    )
    def serving_asset(
        context: dg.AssetExecutionContext, store: StoreResource, model: Table
    ) -> Iterator[dg.Output[Record]]:
        recipe = load_recipe(store.task(context.partition_key))
        yield from build(
            context,
            store,
            [table],
            inputs={source: model},
            config={},
            code=CODE_EXPORT,
            compute=lambda: {table: artifacts.build_serving_model(store.store(), recipe, table, model.frame)},
        )

    return serving_asset


serving_model = _serving_asset(
    "serving_model",
    "merged_model",
    "The tuned model as the engine loads it: CTranslate2 int8 where it can be converted.",
)
base_serving_model = _serving_asset(
    "base_serving_model", "base_model", "The base model in the same form, so that both are compared on equal terms."
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


assets: list[Any] = [base_model, train, merged_model, serving_model, base_serving_model]
checks = [loss_fell]
