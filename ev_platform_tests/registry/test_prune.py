import json

import pytest

from ev_platform.errors import UserError
from ev_platform.registry import checked_weights, load_release, locked, prune, pruned_at, resolve
from ev_platform.registry.aliases import write_aliases
from ev_platform.registry.prune import Plan
from ev_platform.registry.prune import prune as prune_weights
from ev_platform.tasks import get_task
from ev_platform_tests.registry.registered import PlainStore, artifact, publish, write_weights
from ev_platform_tests.tiny import write_tiny_task


def train(store, name, task="tiny"):
    """Publish the weights of one training run, from base model to served model, and register the version."""
    for kind, inputs in (
        ("base_model", {}),
        ("adapter", {}),
        ("merged_model", {"adapter": f"adapter_of_{name}"}),
        ("serving_model", {}),
    ):
        artifact_id = {"base_model": "base", "adapter": f"adapter_of_{name}", "merged_model": f"merged_{name}"}
        write_weights(store, kind, artifact_id.get(kind, name))
        if kind == "serving_model":
            inputs = {"model": store.read("merged_model", task).item(0, "sha256")}
        store.publish(kind, task, artifact(store, kind, artifact_id.get(kind, name), inputs))
    return publish(store, name)["candidate"] if task == "tiny" else None


def five_versions(store):
    """Register five versions: the second is champion, the first previous."""
    for number in range(1, 6):
        train(store, f"m{number}")
    with locked(store, "tiny"):
        write_aliases(store, "tiny", {"candidate": "tiny@5", "champion": "tiny@2", "previous": "tiny@1"})


def folders(store):
    return {str(file.relative_to(store.root)) for file in (store.root / "artifacts").glob("*/*")}


def of(*names):
    kinds = ("adapter/adapter_of_{}", "merged_model/merged_{}", "serving_model/{}")
    return {"artifacts/" + kind.format(name) for name in names for kind in kinds}


def test_prune_lists_what_it_would_take_away_and_takes_nothing(store):
    five_versions(store)
    before = folders(store)
    plan = prune_weights(store, "tiny", keep_last=1)
    assert plan.versions == ("tiny@3", "tiny@4")
    assert set(plan.folders) == of("m3", "m4")
    assert plan.n_bytes == sum((store.root / folder / "model.bin").stat().st_size for folder in plan.folders)
    assert folders(store) == before
    assert pruned_at(store, "tiny") == {}


def test_prune_keeps_aliases_the_newest_named_versions_and_the_base_model(store):
    five_versions(store)
    prune_weights(store, "tiny", keep_last=2, keep=["tiny@3"], apply=True)
    assert folders(store) == of("m1", "m2", "m3", "m4", "m5") | {"artifacts/base_model/base"}
    prune_weights(store, "tiny", keep_last=2, apply=True)
    assert folders(store) == of("m1", "m2", "m4", "m5") | {"artifacts/base_model/base"}
    prune_weights(store, "tiny", keep_last=0, apply=True)
    assert folders(store) == of("m1", "m2", "m5") | {"artifacts/base_model/base"}
    for version in ("tiny@1", "tiny@2", "tiny@5"):
        checked_weights(store, "tiny", resolve(store, "tiny", version))


def test_prune_without_aliases_keeps_what_the_tables_say_now(store):
    train(store, "m1")
    with locked(store, "tiny"):
        write_aliases(store, "tiny", {})
    assert prune_weights(store, "tiny", keep_last=0, apply=True) == Plan((), (), 0)


def test_prune_keeps_weights_that_another_task_uses(store):
    five_versions(store)
    train(store, "m3", task="other")
    assert prune_weights(store, "tiny", keep_last=1).versions == ("tiny@4",)


def test_prune_takes_weights_that_no_version_ever_named(store):
    train(store, "m1")
    write_weights(store, "adapter", "abandoned")
    adapter = store.read("adapter", "tiny")
    store.publish("adapter", "tiny", artifact(store, "adapter", "abandoned"))
    store.publish("adapter", "tiny", adapter)
    assert prune_weights(store, "tiny").folders == ("artifacts/adapter/abandoned",)


def test_pruned_version_stays_in_the_table_and_says_that_it_was_pruned(store, tmp_path):
    five_versions(store)
    prune_weights(store, "tiny", keep_last=1, apply=True)
    assert store.read("registered_model", "tiny")["number"].to_list() == [1, 2, 3, 4, 5]
    write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    with pytest.raises(UserError, match=r"tiny@3 was pruned on 20\d\d-\d\d-\d\d and cannot be loaded"):
        load_release(store, get_task("tiny", tmp_path / "tasks"), "tiny@3")
    train(store, "m3")  # the same bytes are made again
    checked_weights(store, "tiny", resolve(store, "tiny", "tiny@3"))


def test_prune_killed_half_way_leaves_a_version_that_says_so(store, monkeypatch):
    five_versions(store)
    with monkeypatch.context() as patch:
        patch.setattr(prune.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune_weights(store, "tiny", keep_last=1, apply=True)
    assert set(pruned_at(store, "tiny")) == {"tiny@3", "tiny@4"}
    assert "artifacts/adapter/adapter_of_m3" not in folders(store)  # never half of it under its own name
    prune_weights(store, "tiny", keep_last=1, apply=True)
    assert folders(store) == of("m1", "m2", "m5") | {"artifacts/base_model/base"}  # nothing half removed either


def test_prune_version_to_keep_that_is_not_there_is_told(store):
    five_versions(store)
    with pytest.raises(UserError, match="no model 'tiny@9'"):
        prune_weights(store, "tiny", keep=["tiny@9"], apply=True)
    assert json.loads((store.root / "registry" / "tiny.json").read_text())["champion"] == "tiny@2"


# ---- several machines with one object store ----


@pytest.fixture
def machines(tmp_path):
    """Return two data folders of one object store, as two machines have them."""
    return [PlainStore(tmp_path / name, (tmp_path / "bucket").as_uri()) for name in ("one", "two")]


def upload(store):
    """Let the object store hold every folder of weights that lies here."""
    for folder in (store.root / "artifacts").glob("*/*"):
        with store.artifact(folder.parent.name, lambda folder=folder: folder.name):
            pass


def in_bucket(tmp_path):
    return {str(file.parent.relative_to(tmp_path / "bucket")) for file in (tmp_path / "bucket").glob("artifacts/*/*/*")}


def test_prune_keeps_weights_that_another_task_on_another_machine_uses(machines, tmp_path):
    one, two = machines
    five_versions(one)
    upload(one)
    train(two, "m3", task="other")
    assert prune_weights(one, "tiny", keep_last=1, apply=True).versions == ("tiny@4",)
    assert in_bucket(tmp_path) == of("m1", "m2", "m3", "m5") | {"artifacts/base_model/base"}


def test_prune_on_a_machine_with_an_empty_cache_takes_what_the_object_store_holds(machines, tmp_path):
    one, two = machines
    five_versions(one)
    upload(one)
    plan = prune_weights(two, "tiny", keep_last=1, apply=True)
    assert (plan.versions, set(plan.folders)) == (("tiny@3", "tiny@4"), of("m3", "m4"))
    assert plan.n_bytes == sum((one.root / folder / "model.bin").stat().st_size for folder in plan.folders)
    assert in_bucket(tmp_path) == of("m1", "m2", "m5") | {"artifacts/base_model/base"}
    assert set(pruned_at(one, "tiny")) == {"tiny@3", "tiny@4"}
    assert prune_weights(two, "tiny", keep_last=1) == Plan((), (), 0)  # nothing is taken away twice
