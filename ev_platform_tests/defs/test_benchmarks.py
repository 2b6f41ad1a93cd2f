"""The asset `benchmark_versions` and its check, materialized over stored rows."""

import dagster as dg
import pytest

from ev_platform.storage import Store
from ev_platform_tests.evaluation.stored import TASK, Stored, dataset_row, write_task
from ev_platform_tests.test_graph import forget_graph


@pytest.fixture
def stored(own_folders):
    made = Stored(Store(own_folders / "data"), write_task(own_folders / "tasks" / TASK))
    for table in ("clean_documents", "chunks", "training_set", "validation_set"):
        made.publish(table, [])
    forget_graph()  # its partitions are the tasks that were there when it was imported
    yield made
    forget_graph()


def materialize(stored):
    """Return (has a new version, whether the check passed, what it said)."""
    from ev_platform.defs.benchmarks import assets
    from ev_platform.defs.resources import ParquetIOManager, StoreResource
    from ev_platform.defs.stage import tasks_partitions

    store = StoreResource(data_dir=str(stored.store.root), tasks_dir=str(stored.task.folder.parent))
    before = stored.read("benchmark_versions").height
    result = dg.materialize(
        [*assets, dg.AssetSpec("benchmark", partitions_def=tasks_partitions)],
        partition_key=TASK,
        resources={"store": store, "io_manager": ParquetIOManager(store=store)},
        instance=dg.DagsterInstance.ephemeral(),
    )
    (check,) = result.get_asset_check_evaluations()
    assert check.check_name == "benchmark_is_announced"
    assert check.severity == dg.AssetCheckSeverity.WARN
    return stored.read("benchmark_versions").height > before, check.passed, check.description


def test_changed_rows_are_announced_once(stored):
    rows = [dataset_row(n, document_id=None, cluster_id=None) for n in range(6)]
    stored.publish("benchmark", rows)
    assert materialize(stored) == (True, True, "charging-bench@1, with 6 rows.")
    assert materialize(stored) == (False, True, "charging-bench@1, with 6 rows.")
    stored.publish("benchmark", rows[:4])
    is_new, passed, said = materialize(stored)
    assert (is_new, passed) == (True, False)
    assert "now those of charging-bench@2: 0 rows were added and 2 removed" in said
    assert "measured on charging-bench@1 do not compare" in said
    assert materialize(stored) == (False, True, "charging-bench@2, with 4 rows.")


def test_rows_that_come_back_are_announced_without_a_new_version(stored):
    rows = [dataset_row(n, document_id=None, cluster_id=None) for n in range(6)]
    for content in (rows, rows[:4]):
        stored.publish("benchmark", content)
        materialize(stored)
    stored.publish("benchmark", rows)
    is_new, passed, said = materialize(stored)
    assert (is_new, passed) == (False, False)
    assert "now those of charging-bench@1" in said and "measured on charging-bench@2 do not compare" in said
    assert materialize(stored)[1]
