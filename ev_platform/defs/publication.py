"""Assets that a person asks for: the model in other forms, and on the Hugging Face Hub. No stage includes them."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import NETWORK, RETRY, build, final_user_errors, spec, tasks_partitions
from ev_platform.identity import code_version
from ev_platform.storage import Record
from ev_platform.training import artifacts, exports, packages, parity, publish
from ev_platform.training.recipes import Recipe

GROUP = "publication"
CODE_EXPORTS = code_version(exports, packages, parity)
CODE_PUBLISH = code_version(exports, publish)


class ExportConfig(dg.Config):
    """What to write."""

    formats: list[str] = Field(
        default=["ollama", "ctranslate2-float16"], description=f"Any of {', '.join(exports.FORMATS)}."
    )


class PublishConfig(dg.Config):
    """Where to publish."""

    repo_id: str = Field(description="owner/name on the hub.")
    private: bool = Field(default=True, description="Whether only its owner sees it.")
    revision: str | None = Field(default=None, description="Branch; the main one if empty.")
    dry_run: bool = Field(default=True, description="Only list what would be sent.")


@dg.asset(
    name="exports",
    partitions_def=tasks_partitions,
    code_version=CODE_EXPORTS,
    **spec("exports", "The tuned model for other engines, each form with its card, compared with the model.", GROUP),
)
def exported(
    context: dg.AssetExecutionContext,
    config: ExportConfig,
    store: StoreResource,
    merged_model: Table,
    validation_set: Table,
    eval_report: Table,
) -> Iterator[dg.Output[Record]]:
    """Write the forms that the run's configuration names."""
    task = store.task(context.partition_key)
    recipe = Recipe.model_validate_json(merged_model.frame.item(0, "recipe"))
    yield from build(
        context,
        store,
        ["exports"],
        inputs={"merged_model": merged_model, "validation_set": validation_set, "eval_report": eval_report},
        config={"formats": config.formats},
        code=CODE_EXPORTS,
        compute=lambda: artifacts.build_exports(store.store(), task, recipe, config.formats),
    )


@dg.asset(
    partitions_def=tasks_partitions,
    pool=NETWORK,
    retry_policy=RETRY,
    code_version=CODE_PUBLISH,
    **spec("published_models", "What was sent to the Hugging Face Hub, and where it is to be found.", GROUP),
)
@final_user_errors
def published_models(
    context: dg.AssetExecutionContext,
    config: PublishConfig,
    store: StoreResource,
    merged_model: Table,
    eval_report: Table,
) -> Iterator[dg.Output[Record]]:
    """Publish: private, and nothing but a list of files, unless the run's configuration says otherwise."""
    task = store.task(context.partition_key)
    yield from build(
        context,
        store,
        ["published_models"],
        inputs={"merged_model": merged_model, "eval_report": eval_report},
        config=config.model_dump(),
        code=CODE_PUBLISH,
        compute=lambda: {"published_models": exports.publish_model(store.store(), task, **config.model_dump())},
    )


assets: list[Any] = [exported, published_models]
