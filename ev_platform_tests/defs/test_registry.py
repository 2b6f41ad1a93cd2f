"""The stage `registry` materialized over published evaluations: it ends in promoted, kept, or nothing changed."""

import dataclasses
import json
import shutil

import dagster as dg
import polars as pl
import pytest
from filelock import FileLock, Timeout

from ev_platform import registry
from ev_platform.errors import UserError
from ev_platform.evaluation.pages import read_report
from ev_platform.registry import load_release, read_aliases, strangers
from ev_platform.registry.gate import CHECKS
from ev_platform.serving import replay
from ev_platform.tasks import get_task
from ev_platform_tests.registry.evaluated import (
    BETTER,
    WORSE,
    publish_corpus,
    publish_evaluation,
    publish_model,
    write_task,
)
from ev_platform_tests.registry.registered import PlainStore
from ev_platform_tests.test_graph import forget_graph

UPSTREAM = (
    "serving_model",
    "adapter",
    "training_set",
    "chunks",
    "benchmark",
    "eval_report",
    "predictions",
    "general_answers",
    "merged_model",
    "base_serving_model",
    "abstention_calibration",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="module")
def task(root):
    return write_task(root)


@pytest.fixture(scope="module")
def run(root, task):
    """Return what materializes the stage, and gives what it says about the promotions and the checks that failed.

    It does so in the module's folder or in another one that has the same task.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EV_DATA_DIR", str(root / "data"))
        patch.setenv("EV_TASKS_DIR", str(root / "tasks"))
        forget_graph()
        from ev_platform.defs import registry
        from ev_platform.defs.resources import ParquetIOManager, StoreResource

        def materialize(where=root):
            resource = StoreResource(data_dir=str(where / "data"), tasks_dir=str(where / "tasks"))
            with dg.DagsterInstance.ephemeral() as instance:
                done = dg.materialize(
                    [registry.registered_model, registry.promotion_gate, registry.promotions, *registry.checks]
                    + [dg.AssetSpec(name, partitions_def=registry.tasks_partitions) for name in UPSTREAM],
                    resources={"store": resource, "io_manager": ParquetIOManager(store=resource)},
                    instance=instance,
                    partition_key="tiny",
                )
            (event,) = (e for e in done.get_asset_materialization_events() if e.asset_key.path == ["promotions"])
            checks = {e.check_name: e.passed for e in done.get_asset_check_evaluations()}
            assert set(checks) == set(CHECKS)
            metadata = event.step_materialization_data.materialization.metadata
            said = {name: metadata[name].value for name in ("outcome", "reason", "unchanged")}
            return said | {"failed": [name for name in CHECKS if not checks[name]]}

        yield materialize
        forget_graph()


@pytest.fixture(scope="module")
def story(root, task, run):
    """Run the stage for a good model, unchanged, for a worse one, and unchanged again; return what each run said."""
    store = PlainStore(root / "data")
    publish_corpus(store)
    publish_model(store, task, root, seed=1)
    publish_evaluation(store, task, BETTER)
    said = {"good": run(), "good again": run()}
    publish_model(store, task, root, seed=2)
    publish_evaluation(store, task, WORSE, champion=load_release(store, task, "champion"))
    return said | {"worse": run(), "worse again": run()}


def test_stage_registers_under_the_lock_of_the_registry(root, run, story, monkeypatch):
    held, register = [], registry.register

    def spy(store, task, **made_of):
        with pytest.raises(Timeout):
            FileLock(registry.alias_file(store, task).with_suffix(".lock"), timeout=0).acquire()
        held.append(task)
        return register(store, task, **made_of)

    monkeypatch.setattr(registry, "register", spy)
    store = PlainStore(root / "data")
    before = store.current("registered_model", "tiny")
    file = root / "data" / "tables" / "registered_model" / "tiny" / f"{before.version}.json"
    file.write_text(json.dumps(dataclasses.asdict(before) | {"key": "made from something else"}))
    run()
    assert held == ["tiny"]
    assert store.current("registered_model", "tiny").fingerprint == before.fingerprint


def test_stage_promotes_a_version_that_passes_every_check(story):
    assert story["good"]["failed"] == []
    assert story["good"]["outcome"] == "promoted"
    assert story["good"]["reason"] == "tiny@1 passed all 10 checks; there was no champion before it."


def test_stage_keeps_the_champion_when_the_tuned_model_is_worse(root, story):
    assert story["worse"]["failed"] == ["better_than_base", "not_worse_than_champion"]
    assert story["worse"]["outcome"] == "kept"
    assert story["worse"]["reason"].startswith("tiny@1 stays champion: tiny@2 failed better_than_base (The verdict is")
    assert "the tuned model is worse" in story["worse"]["reason"]
    assert read_aliases(PlainStore(root / "data"), "tiny") == {"candidate": "tiny@2", "champion": "tiny@1"}


@pytest.mark.parametrize("run_name", ["good again", "worse again"])
def test_stage_that_finds_nothing_new_decides_and_stores_nothing(root, story, run_name):
    assert (story[run_name]["outcome"], story[run_name]["unchanged"]) == ("nothing changed", True)
    decisions = PlainStore(root / "data").read("promotions", "tiny")
    assert decisions["decision"].to_list() == ["promoted", "kept"]
    assert decisions["champion_before"].to_list() == [None, "tiny@1"]


def test_stage_writes_a_note_that_says_why(root, story):
    note = (root / "data" / "reports" / "tiny_promotion.md").read_text()
    assert note.startswith("# tiny: nothing changed\n\ntiny@2 was kept back before because of better_than_base")
    assert "| not_worse_than_champion | **no** |" in note
    assert "gate: tiny@2 kept. tiny@1 stays champion" in note


# ---- what could not be asked ----


@pytest.fixture
def own(tmp_path):
    """Return a store of the test's own, with an evaluated model that nobody has registered yet."""
    store, task = PlainStore(tmp_path / "data"), write_task(tmp_path)
    publish_corpus(store)
    publish_model(store, task, tmp_path, seed=1)
    publish_evaluation(store, task, BETTER)
    return store


def test_stage_asks_again_for_what_the_endpoint_could_not_be_asked(own, tmp_path, run, monkeypatch, capfd):
    asked, ask = [], replay.replay

    def broken(*_):
        asked.append("in vain")
        raise UserError("tiny@1 answered replayed question 1 with 503: busy.")

    monkeypatch.setattr(replay, "replay", broken)
    said = run(tmp_path)
    assert (said["outcome"], said["failed"]) == ("kept", ["serving_agrees"])
    assert "serving_agrees: tiny@1 answered replayed question 1 with 503: busy." in capfd.readouterr().err
    assert run(tmp_path)["outcome"] == "nothing changed"
    monkeypatch.setattr(replay, "replay", lambda *given: asked.append("well") or ask(*given))
    said = run(tmp_path)
    assert (said["outcome"], said["failed"]) == ("promoted", [])
    # What was answered is asked once.
    assert run(tmp_path)["outcome"] == "nothing changed"
    assert asked == ["in vain", "in vain", "well"]


def test_stage_asks_again_for_what_the_champion_could_not_be_asked(own, tmp_path, run, monkeypatch, capfd):
    run(tmp_path)
    task, load, asked = get_task("tiny", tmp_path / "tasks"), strangers.load_release, []
    publish_model(own, task, tmp_path, seed=2)
    publish_evaluation(own, task, BETTER, champion=load_release(own, task, "champion"))

    def only_the_new_one(store, task, name, **options):
        asked.append(name)
        release = load(store, task, name, **options)
        return dataclasses.replace(release, engine=None) if name == "tiny@1" else release

    def found():
        return own.read("promotion_gate", "tiny").filter(pl.col("check") == "abstention").item(0, "reason")

    monkeypatch.setattr(strangers, "load_release", only_the_new_one)
    capfd.readouterr()
    run(tmp_path)
    assert "(the champion tiny@1 could not be asked)" in found()
    assert f"abstention: {found()}" in capfd.readouterr().err
    # One that cannot be loaded either has nothing more to say.
    weights = own.artifact_path("serving_model", "m1") / "model.bin"
    known = weights.read_bytes()
    weights.write_bytes(known + b"x")
    del asked[:]
    run(tmp_path)
    assert asked == []
    weights.write_bytes(known)
    monkeypatch.setattr(strangers, "load_release", load)
    run(tmp_path)
    assert "(the champion tiny@1: " in found()


# ---- a version that is kept though passages changed ----


def change_a_word(store, task):
    """Change a word of one passage of six, and evaluate anew; ids of test rows follow their document."""
    first, then = pl.col("text").str.replace("marks", "shows"), pl.int_range(pl.len()) == 0
    chunks = store.read("chunks", "tiny").with_columns(text=pl.when(then).then(first).otherwise("text"))
    store.publish("chunks", "tiny", chunks)
    store.publish("benchmark", "tiny", store.read("benchmark", "tiny").with_columns(document_id=pl.lit("doc2")))
    publish_evaluation(store, task, BETTER, champion=load_release(store, task, "champion"))


@pytest.fixture
def lenient(own, tmp_path):
    """Return a task of the same name that keeps a version while fewer than half of the passages changed."""
    with (tmp_path / "tasks" / "tiny" / "config.yaml").open("a") as file:
        file.write("training: {min_changed_share: 0.5}\n")
    return get_task("tiny", tmp_path / "tasks")


def test_stage_leaves_the_checks_of_a_version_that_is_kept_though_passages_changed(
    own, lenient, tmp_path, run, monkeypatch
):
    assert run(tmp_path)["outcome"] == "promoted"
    judged = own.read("promotion_gate", "tiny")
    change_a_word(own, lenient)
    monkeypatch.setattr(replay, "replay", lambda *_: pytest.fail("replayed with the passages of before"))
    said = run(tmp_path)
    assert (said["outcome"], said["reason"]) == ("nothing changed", "tiny@1 is champion already.")
    assert said["failed"] == []
    assert own.read("registered_model", "tiny").height == 1
    assert own.read("promotion_gate", "tiny").equals(judged)
    # The page names the version all the same, and shows its checks.
    told = read_report(own, lenient)
    assert told["model_version"] == "tiny@1 with today's passages"
    assert told["gate"]["model_version"] == "tiny@1" and told["gate"]["checks"] == judged.to_dicts()


def test_stage_registers_a_version_anew_that_was_never_judged_before_passages_changed(own, lenient, tmp_path, run):
    run(tmp_path)
    # As if the run had been killed before the checks.
    shutil.rmtree(tmp_path / "data" / "tables" / "promotion_gate")
    change_a_word(own, lenient)
    said = run(tmp_path)
    assert own.read("registered_model", "tiny")["model_version"].to_list() == ["tiny@1", "tiny@2"]
    assert own.read("promotion_gate", "tiny")["model_version"].unique().to_list() == ["tiny@2"]
    assert "serving_agrees" not in said["failed"]
