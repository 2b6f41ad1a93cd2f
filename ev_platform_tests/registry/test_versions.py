import json

import pytest
from filelock import FileLock, Timeout

from ev_platform import registry
from ev_platform.errors import UserError
from ev_platform.identity import fingerprint
from ev_platform.registry.aliases import write_aliases
from ev_platform.registry.digests import digest_of
from ev_platform.tasks.types import get_task_type
from ev_platform_tests.registry.registered import (
    HOLD,
    OPEN_BOOK,
    RECIPE,
    SERVING,
    SHIP,
    add_version,
    artifact,
    exported,
    publish,
    task_of_type,
    write_weights,
)


def versions(store):
    return store.read("registered_model", "tiny")


def test_register_appends_and_leaves_earlier_versions_alone(store):
    publish(store, "m1")
    first = versions(store)
    publish(store, "m2", HOLD)
    both = versions(store)
    assert both["model_version"].to_list() == ["tiny@1", "tiny@2"]
    assert both.head(1).equals(first)
    assert both.row(1, named=True)["adapter_id"] == "adapter_of_m2"
    assert json.loads(both.item(1, "scores")) == {"base/token_f1": 0.1}


def test_register_same_model_and_passages_adds_no_version(store):
    publish(store, "m1")
    publish(store, "m1")
    assert versions(store).height == 1


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": "m2"},
        {"chunks": ("c2", "c2")},
        {"verdict": HOLD},
        {"template": "p2"},
        {"serving": SERVING | {"top_k": 3}},
        {"adapter": "trained with other validation rows"},
    ],
)
def test_register_other_weights_passages_or_verdict_adds_a_version(store, change):
    publish(store, "m1")
    publish(store, **({"model_id": "m1"} | change))
    assert versions(store)["number"].to_list() == [1, 2]


def test_register_fills_the_fingerprints_of_recipe_weights_base_and_code(store):
    add_version(store, "m1")
    (row,) = versions(store).to_dicts()
    assert row["weights_sha256"] == digest_of(store.artifact_path("serving_model", "m1"))
    assert row["recipe_fingerprint"] == fingerprint(RECIPE)
    assert row["code"] == registry.answering_code(OPEN_BOOK) != registry.answering_code(get_task_type("extractive_qa"))
    assert row["base_model"] == "tiny"


def test_register_weights_that_are_not_those_that_were_made_is_refused(store):
    folder = write_weights(store, "serving_model", "m1")
    made = artifact(store, "serving_model", "m1")
    (folder / "model.bin").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"m1 are gone or have been altered since they were made: run the stage"):
        registry.register(
            store,
            "tiny",
            serving_model=made,
            adapter=artifact(store, "adapter", "a1"),
            training_set=("t1", "f1"),
            chunks=("c1", "c1"),
            serving=SERVING,
            benchmark_fingerprint="b1",
            template="p1",
            verdict=SHIP,
            reason="because",
            scores={},
        )


def test_lock_of_the_registry_may_be_taken_again_by_its_holder_and_by_nobody_else(store):
    with registry.locked(store, "tiny"):
        assert publish(store, "m1") == {"candidate": "tiny@1"}
        with pytest.raises(Timeout):
            FileLock(registry.alias_file(store, "tiny").with_suffix(".lock"), timeout=0).acquire()


def test_register_names_the_newest_version_candidate_and_nobody_champion(store):
    assert publish(store, "m1") == {"candidate": "tiny@1"}
    assert publish(store, "m2") == {"candidate": "tiny@2"}


def make_champion(store, version):
    """Write the alias file as a promotion does."""
    with registry.locked(store, "tiny"):
        write_aliases(store, "tiny", registry.read_aliases(store, "tiny") | {"champion": version})


def test_resolve_takes_alias_or_version_and_champion_by_default(store):
    publish(store, "m1")
    publish(store, "m2", HOLD)
    make_champion(store, "tiny@1")
    wanted = {None: "m1", "champion": "m1", "candidate": "m2", "tiny@1": "m1", "tiny@2": "m2"}
    for name, model in wanted.items():
        assert registry.resolve(store, "tiny", name)["serving_model_id"] == model


def test_resolve_before_the_first_run_is_told(store):
    with pytest.raises(UserError, match="Task tiny has no model 'champion': run `ev-platform run --task tiny` first"):
        registry.resolve(store, "tiny")


def test_resolve_unknown_name_is_told_with_the_known_ones(store):
    publish(store, "m1", HOLD)
    with pytest.raises(UserError, match=r"no model 'tiny@9': choose one of candidate, tiny@1\."):
        registry.resolve(store, "tiny", "tiny@9")


@pytest.mark.parametrize(
    ("name", "verdict", "expected"),
    [
        ("open_book_qa", SHIP, True),
        ("open_book_qa", "ship tuned", False),
        ("open_book_qa", HOLD, True),
        ("closed_book_qa", SHIP, True),
        ("closed_book_qa", "ship tuned", False),
        ("closed_book_qa", HOLD, False),
        ("extractive_qa", HOLD, True),
        ("classification", "ship tuned", False),
        ("classification", HOLD, False),
    ],
)
def test_serving_settings_retrieve_as_the_winner_did_or_else_as_the_type_trains(tmp_path, name, verdict, expected):
    settings = registry.serving_settings(task_of_type(tmp_path, name), verdict)
    assert (settings["task_type"], settings["has_retrieval"]) == (name, expected)
    assert (settings["top_k"], settings["max_new_tokens"]) == (3, 8)


def test_serving_settings_hold_the_instructions_with_the_classes(tmp_path):
    task = task_of_type(tmp_path, "classification", {"refund": "Money back.", "card": "A new card."})
    instructions = registry.serving_settings(task, HOLD)["instructions"]
    assert instructions.startswith("Say what the text is about.")
    assert "refund: Money back." in instructions


def test_serving_settings_hold_the_instructions_that_were_evaluated_where_train_rows_name_the_classes(tmp_path):
    task = task_of_type(tmp_path, "classification")
    (task.folder / "train.csv").write_text("text,label\nmy money,refund\nmy plastic,card\n", encoding="utf-8")
    settings = registry.serving_settings(task, HOLD)
    assert settings["instructions"] == task.instructions
    assert settings["instructions"].endswith("- card\n- refund")


def test_template_fingerprint_depends_on_the_chats_that_a_type_makes(store, tmp_path):
    class Terse:
        def prompt(self, instructions, question, contexts):
            return [{"role": "user", "content": question}]

    folder = exported(store, tmp_path)
    prints = [registry.template_fingerprint(folder, kind) for kind in (None, OPEN_BOOK, Terse())]
    assert len(set(prints)) == 3
    assert registry.template_fingerprint(folder, OPEN_BOOK) == prints[1]
