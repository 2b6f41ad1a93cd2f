"""The SQL layer in the graph: what a page of it shows, and what its checks say."""

import dagster as dg
import pytest

from ev_platform.defs.lineage import assets, checks
from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import tasks_partitions
from ev_platform.lineage.models import load_assertions, load_models
from ev_platform.records import to_frame
from ev_platform.storage import Store
from ev_platform_tests.evaluation.stored import chunk, document

TASK = "ev_charging"


GRAPH = dg.Definitions(
    assets=assets, resources={"store": StoreResource(data_dir="", tasks_dir="")}
).resolve_asset_graph()


@dg.asset(name="chunks", partitions_def=tasks_partitions)
def stored_chunks():
    """Stand for the run's own tables, which are there."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Materialize the views over two passages of one known and one unknown document, with every check."""
    root = tmp_path_factory.mktemp("lineage")
    store = Store(root / "data")
    store.publish("clean_documents", TASK, to_frame("clean_documents", [document(0)]))
    store.publish("chunks", TASK, to_frame("chunks", [chunk(0), chunk(1)]))
    store.publish("clean_documents", "other", to_frame("clean_documents", []))
    resources = {"store": StoreResource(data_dir=str(store.root), tasks_dir=str(root / "tasks"))}
    with dg.instance_for_test() as instance:
        result = dg.materialize(
            [stored_chunks, *assets, *checks], instance=instance, resources=resources, partition_key=TASK
        )
        result.stored = {
            model.name: instance.get_latest_materialization_event(dg.AssetKey(model.name)).asset_materialization
            for model in load_models()
        }
        yield result


def test_page_of_a_model_has_the_columns_with_their_types_and_meaning(run):
    schema = run.stored["licence_report"].metadata["dagster/column_schema"].schema
    columns = {column.name: (column.type, column.description) for column in schema.columns}
    assert columns["n_chunks"] == ("BIGINT", "in force")
    assert columns["model_versions"][0] == "VARCHAR[]"


def test_page_of_a_model_has_the_lineage_of_its_columns(run):
    lineage = run.stored["chunk_sources"].metadata["dagster/column_lineage"].value.deps_by_column
    assert lineage["url"] == [dg.TableColumnDep(dg.AssetKey("document_sources"), "url")]
    # The view of all versions is the table's own lineage.
    assert dg.TableColumnDep(dg.AssetKey("chunks"), "heading_path") in lineage["heading_path"]
    assert run.stored["chunk_sources"].metadata["dagster/row_count"].value == 2


def test_lineage_leads_to_assets_only(run):
    for model, stored in run.stored.items():
        for deps in stored.metadata["dagster/column_lineage"].value.deps_by_column.values():
            assert {dep.asset_key for dep in deps} <= set(GRAPH.get(dg.AssetKey(model)).parent_keys)


def test_failing_check_shows_its_rows_and_all_others_pass(run):
    found = {check.check_name: check for check in run.get_asset_check_evaluations()}
    made = {"chunks", *run.stored}
    assert set(found) == {assertion.name for assertion in load_assertions() if assertion.asset in made}
    failed = found.pop("assert_every_chunk_has_a_document")
    assert [name for name, check in found.items() if not check.passed] == []
    assert not failed.passed
    assert failed.metadata["failing_rows"].value == 1
    assert "chk_1" in failed.metadata["first_rows"].value


def test_views_come_after_the_tables_whose_history_they_show():
    parents = {key.to_user_string() for key in GRAPH.get(dg.AssetKey("document_sources")).parent_keys}
    assert parents == {"clean_documents"}
