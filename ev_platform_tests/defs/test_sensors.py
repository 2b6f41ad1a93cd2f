"""What starts runs by itself: sensors and the automation of the catalogue's views."""

import os

import dagster as dg
import pytest

from ev_platform.defs.sensors import ENOUGH_FEEDBACK
from ev_platform.serving.journal import Journal
from ev_platform_tests.serving.rows import judged
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import write_tiny_task


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("sensors"))
    write_tiny_task(workspace.task, workspace.root / "no-model")
    return workspace


@pytest.fixture(scope="module")
def graph(workspace):
    with workspace.graph() as defs:
        yield defs


def tick(defs, name, cursor=None):
    """Evaluate a sensor as the daemon does; return its run requests and its cursor."""
    with dg.DagsterInstance.ephemeral() as instance:
        resources = {"store": defs.resources["store"]}
        context = dg.build_sensor_context(instance, cursor=cursor, definitions=defs, resources=resources)
        return defs.resolve_sensor_def(name).evaluate_tick(context)


def change(file, text):
    """Write a file so that its time differs from that of the last tick, however coarse the clock."""
    later = file.stat().st_mtime + 10 if file.exists() else None
    file.write_text(text)
    if later:
        os.utime(file, (later, later))


@pytest.mark.parametrize(
    ("file", "first", "untouched"),
    [
        ("sources.yaml", "raw_pages", None),
        ("unstructured.csv", "raw_texts", None),
        ("config.yaml", "documents", "raw_pages"),
        ("job_description.json", "clean_documents", "raw_pdfs"),
        ("train.csv", "qa_candidates", "chunks"),
        ("tiny.yaml", "adapter", "chunks"),
    ],
)
def test_changed_file_starts_everything_from_the_stage_that_reads_it(workspace, graph, file, first, untouched):
    idle = tick(graph, "changed_sources")
    assert idle.run_requests == []
    change(workspace.task / file, "changed")
    found = tick(graph, "changed_sources", idle.cursor)
    (request,) = found.run_requests
    assert request.partition_key == "tiny"
    assert request.tags["ev/changed"] == file
    selected = {key.to_user_string() for key in request.asset_selection}
    assert {first, "promotions", "question_drift"} <= selected
    assert untouched not in selected
    assert tick(graph, "changed_sources", found.cursor).run_requests == []


def judge(workspace, first, n):
    journal = Journal(workspace.root / "data", "feedback")
    for number in range(first, first + n):
        journal.add(judged(f"fb_{number}", request_id=f"req_{number}", task="tiny"))
    journal.close()


def test_feedback_starts_a_run_when_there_is_enough_of_it(workspace, graph):
    judge(workspace, 0, ENOUGH_FEEDBACK - 1)
    few = tick(graph, "new_feedback")
    assert few.run_requests == []
    judge(workspace, ENOUGH_FEEDBACK, 1)
    enough = tick(graph, "new_feedback", few.cursor)
    assert [request.partition_key for request in enough.run_requests] == ["tiny"]
    assert tick(graph, "new_feedback", enough.cursor).run_requests == []


def test_graph_has_no_schedule_and_only_cheap_sensors_are_on(graph):
    repository = graph.get_repository_def()
    assert repository.schedule_defs == []
    on = {s.name for s in repository.sensor_defs if s.default_status == dg.DefaultSensorStatus.RUNNING}
    assert on == {"new_feedback", "views_after_runs"}
    for sensor in repository.sensor_defs:
        assert ("Off until switched on" in sensor.description) == (sensor.name not in on)


def test_views_are_due_once_after_a_run_that_changed_a_table():
    from ev_platform.defs.automation import after_runs

    tasks = dg.StaticPartitionsDefinition(["one", "two"])

    @dg.asset(partitions_def=tasks)
    def documents(): ...

    @dg.multi_asset(specs=[dg.AssetSpec("drop_reasons", deps=["documents"]), dg.AssetSpec("pages", deps=["documents"])])
    def catalogue():
        for name in ("drop_reasons", "pages"):
            yield dg.MaterializeResult(name)

    defs = dg.Definitions(assets=[documents, *after_runs([catalogue])])
    with dg.DagsterInstance.ephemeral() as instance:
        first = dg.evaluate_automation_conditions(defs, instance)
        assert first.total_requested == 0
        dg.materialize([documents], instance=instance, partition_key="one")  # the other task has nothing yet
        due = dg.evaluate_automation_conditions(defs, instance, cursor=first.cursor)
        assert due.total_requested == 2
        assert dg.evaluate_automation_conditions(defs, instance, cursor=due.cursor).total_requested == 0
