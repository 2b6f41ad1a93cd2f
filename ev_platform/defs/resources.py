"""Resources: the store, the I/O manager over it, and Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.storage import Record, Store
from ev_platform.tasks import Task, get_task


class StoreResource(dg.ConfigurableResource):
    """The data folder and the folder of tasks, and whether a run computes what has not changed."""

    data_dir: str = Field(description="Root of everything that is written.")
    tasks_dir: str = Field(description="Task folders beside the embedded example.")
    force: bool = Field(
        default=False,
        description="Compute also what has not changed. A teacher's stored replies are used all the same: nothing is "
        "paid twice.",
    )

    def store(self) -> Store:
        """Open the store."""
        return Store(Path(self.data_dir))

    def task(self, name: str) -> Task:
        """Return a task by its partition key."""
        return get_task(name, Path(self.tasks_dir))


@dataclass(frozen=True)
class Table:
    """What a downstream asset receives: the record of one materialization, and its rows when they are asked for."""

    store: Store
    record: Record

    @property
    def fingerprint(self) -> str:
        """Hash of the rows."""
        return self.record.fingerprint

    @property
    def version(self) -> str:
        """Names the materialization; it can be reopened by it."""
        return self.record.version

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The rows."""
        return self.store.read(self.record.table, self.record.task, self.record.version)

    @property
    def artifact(self) -> Path:
        """The weight directory of a one-row artifact table."""
        return self.store.local(self.frame.item(0, "path"))


class ParquetIOManager(dg.ConfigurableIOManager):
    """Hands tables from asset to asset: an asset's value is the record of what the store has published.

    Publishing itself happens in `Store.build`, which also decides that nothing has to be computed; here the record
    becomes metadata on the way out and a `Table` on the way in.
    """

    store: StoreResource

    def handle_output(self, context: dg.OutputContext, obj: Record) -> None:
        """Attach the record to the materialization."""
        context.add_output_metadata(
            {
                "dagster/row_count": obj.n_rows,
                "version": obj.version,
                # The first digits tell two versions apart; whole, they would push the page out of shape.
                "fingerprint": obj.fingerprint[:16],
                "computed_from": dg.MetadataValue.json({name: value[:16] for name, value in obj.inputs.items()}),
                "code_version": obj.code_version,
            }
        )

    def load_input(self, context: dg.InputContext) -> Table:
        """Return the current version of the upstream table."""
        store = self.store.store()
        table = context.asset_key.path[-1]
        record = store.current(table, context.partition_key)
        if record is None:
            raise UserError(
                f"{table} of task {context.partition_key} is not there yet: "
                f"`ev-platform run --task {context.partition_key}` makes everything."
            )
        return Table(store, record)


class WandbResource(dg.ConfigurableResource):
    """Weights & Biases through dagster-wandb; offline, below the data folder, unless WANDB_API_KEY is set.

    Attributes:
        data_dir: Root of everything that is written.
    """

    data_dir: str

    @contextmanager
    def run(self, **init: Any) -> Iterator[Any]:
        """Yield a W&B run that is finished at the end of the block.

        Args:
            **init: Arguments of `wandb.init`.
        """
        key = get_settings().wandb_api_key
        folder = Path(self.data_dir) / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_SILENT", "true")
        if key is None:
            os.environ.setdefault("WANDB_MODE", "offline")
        # Imported here: wandb takes over a second, which loading the graph need not pay.
        from dagster_wandb import wandb_resource

        # Offline nothing is sent anywhere, but the resource asks for a key of the right length all the same.
        secret = key.get_secret_value() if key else "0" * 40
        config = {"wandb": {"config": {"api_key": secret}}}
        with dg.build_resources({"wandb": wandb_resource}, resource_config=config) as resources:
            run = resources.wandb["sdk"].init(dir=str(folder), **init)
            try:
                yield run
            finally:
                run.finish()


def track_artifacts(run: Any, task: str, fingerprints: dict[str, str], adapter: Path) -> None:
    """Name an adapter to Weights & Biases, by reference, and what it was trained on; no file is copied or sent.

    Args:
        run: What `WandbResource.run` yields.
        task: Name of the task.
        fingerprints: Of the tables it was trained on, by name.
        adapter: Its folder.
    """
    import wandb

    for table, fingerprint in fingerprints.items():
        if not run.offline:  # what is used must be looked up at the server
            run.use_artifact(wandb.Artifact(f"{task}.{table}", "dataset", metadata={"fingerprint": fingerprint}))
    made = wandb.Artifact(f"{task}.adapter", "model", metadata={"artifact_id": adapter.name, **fingerprints})
    made.add_reference(f"file://{adapter}")
    run.log_artifact(made)
