"""The jobs that a person starts from the UI to decide about versions."""

import dagster as dg
import pytest

from ev_platform.errors import UserError
from ev_platform.evaluation import pages
from ev_platform.registry import read_aliases
from ev_platform_tests.registry.registered import PlainStore, add_version, artifact
from ev_platform_tests.tiny import write_tiny_task


@pytest.fixture
def store(tmp_path):
    store = PlainStore(tmp_path / "data")
    add_version(store, "m1")
    add_version(store, "m2")
    return store


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def launch(store, job, instance, **config):
    """Run a job as the UI does, with typed configuration."""
    from ev_platform.defs.jobs import jobs_by_name
    from ev_platform.defs.resources import StoreResource

    (op,) = (node.name for node in jobs_by_name[job].nodes)
    return jobs_by_name[job].execute_in_process(
        run_config={"ops": {op: {"config": {"task": "tiny", **config}}}},
        resources={"store": StoreResource(data_dir=str(store.root), tasks_dir=str(store.root / "tasks"))},
        instance=instance,
    )


def test_jobs_promote_and_rollback_decide_and_show_on_the_asset(store, instance, monkeypatch):
    written = []
    monkeypatch.setattr(pages, "write_report", lambda store, task: written.append(task.name))
    write_tiny_task(store.root / "tasks" / "tiny", store.root / "model")
    for version in ("tiny@1", "tiny@2"):
        launch(store, "promote", instance, version=version, reason="Looked at it.", by="ada", override=True)
    assert read_aliases(store, "tiny")["champion"] == "tiny@2"
    launch(store, "rollback", instance, reason="Wrong units.", by="ada")
    assert read_aliases(store, "tiny")["champion"] == "tiny@1"
    shown = instance.get_latest_materialization_event(dg.AssetKey("promotions")).asset_materialization
    assert shown.partition == "tiny"
    assert shown.metadata["champion"].value == "tiny@1"
    assert store.read("promotions", "tiny")["decided_by"].to_list() == ["ada"] * 3
    assert written == ["tiny"] * 3  # the page says who answers now


def test_job_promote_without_an_override_fails_with_its_sentence(store, instance):
    with pytest.raises(UserError, match=r"tiny@1 was never judged by the gate; .*--override"):
        launch(store, "promote", instance, version="tiny@1", reason="Looked at it.")


def test_job_prune_lists_unless_told_to_apply(store, instance):
    for model in ("m1", "m2"):
        store.publish("serving_model", "tiny", artifact(store, "serving_model", model))
    folder = store.artifact_path("serving_model", "m1")
    launch(store, "prune", instance, keep_last=1)
    assert folder.is_dir()
    launch(store, "prune", instance, keep_last=1, apply=True)
    assert not folder.exists()
    assert store.artifact_path("serving_model", "m2").is_dir()
