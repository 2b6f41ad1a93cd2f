"""A model that is registered again, under other settings, another template or after a rollback."""

import json

import pytest

from ev_platform import registry
from ev_platform.errors import UserError
from ev_platform.registry import locked, read_aliases, reference_of
from ev_platform.registry.aliases import write_aliases
from ev_platform.registry.promotion import NOTHING, promote, rollback
from ev_platform.registry.versions import answering_now
from ev_platform.tasks import get_task
from ev_platform_tests.registry.registered import (
    HOLD,
    OPEN_BOOK,
    SERVING,
    SHIP,
    add_version,
    conclude,
    exported,
    gate,
    publish,
    task_of_type,
    tokenizer_files,
)

WHO = {"reason": "It answers better.", "by": "ada"}
ANEW = [
    {"benchmark": "b2"},
    {"verdict": HOLD},
    {"template": "p2"},
    {"serving": SERVING | {"top_k": 3}},
    {"chunks": ("c2", "c2")},
    {"adapter": "trained with other validation rows"},
]


def answering(serving=SERVING, template=None):
    """Return what `answering_now` says of the model at hand."""
    known = {name: value for name, value in serving.items() if name != "has_retrieval"}
    template = template or tokenizer_files()[1]
    code = registry.answering_code(OPEN_BOOK)
    return {"serving": json.dumps(known, sort_keys=True), "template_fingerprint": template, "code": code}


def reference(store, model_id, benchmark="b1", **now):
    return reference_of(
        store,
        "tiny",
        serving_model_id=model_id,
        chunks_fingerprint="c1",
        benchmark_fingerprint=benchmark,
        answering=answering(**now),
    )


def champion(store):
    return read_aliases(store, "tiny").get("champion")


def two_champions(store):
    for model, before in (("m1", None), ("m2", "tiny@1")):
        conclude(store, gate(add_version(store, model), before))


# ---- what was rolled back does not come back by itself ----


@pytest.mark.parametrize("change", ANEW)
def test_model_that_was_rolled_back_does_not_come_back_under_another_version(store, change):
    two_champions(store)
    rollback(store, "tiny", **WHO)
    outcome = conclude(store, gate(add_version(store, "m2", **change), "tiny@1"))
    assert (outcome.outcome, champion(store)) == (NOTHING, "tiny@1")
    assert outcome.reason.startswith("tiny@3 is the model that was rolled back as tiny@2; it does not come back by its")


def test_model_that_was_rolled_back_and_that_a_person_brings_back_is_like_any_other(store):
    two_champions(store)
    rollback(store, "tiny", **WHO)
    version = add_version(store, "m2", benchmark="b2")
    promote(store, "tiny", version, **WHO, override=True)
    assert champion(store) == version
    assert conclude(store, gate(add_version(store, "m2", benchmark="b3"), None)).outcome == "promoted"
    assert conclude(store, gate(add_version(store, "m3"), "tiny@4")).outcome == "promoted"


def test_model_whose_settings_were_rolled_back_comes_back_with_others_only(store):
    two_champions(store)
    other = SERVING | {"top_k": 3}
    conclude(store, gate(add_version(store, "m2", serving=other), "tiny@2"))
    assert champion(store) == "tiny@3"
    rollback(store, "tiny", **WHO)
    assert champion(store) == "tiny@2"
    again = conclude(store, gate(add_version(store, "m2", serving=other, benchmark="b2"), "tiny@2"))
    assert "was rolled back as tiny@3" in again.reason
    third = add_version(store, "m2", serving=SERVING | {"top_k": 5})
    assert conclude(store, gate(third, "tiny@2")).outcome == "promoted"


def test_champion_of_an_earlier_release_that_was_rolled_back_does_not_come_back(store):
    add_version(store, "m1")
    add_version(store, "m2")
    with locked(store, "tiny"):
        write_aliases(store, "tiny", {"candidate": "tiny@2", "champion": "tiny@2", "previous": "tiny@1"})
    rollback(store, "tiny", **WHO)
    assert champion(store) == "tiny@1"
    outcome = conclude(store, gate("tiny@2", "tiny@1"))
    assert (outcome.outcome, champion(store)) == (NOTHING, "tiny@1")
    assert "was champion and tiny@1 took its place" in outcome.reason


# ---- whom it is compared with ----


@pytest.mark.parametrize(
    ("now", "change"),
    [
        ({"serving": SERVING | {"top_k": 3}}, {"serving": SERVING | {"top_k": 3}}),
        ({"serving": SERVING | {"max_new_tokens": 99}}, {"serving": SERVING | {"max_new_tokens": 99}}),
        ({"template": "p2"}, {"template": "p2"}),
    ],
)
def test_reference_of_the_same_weights_with_other_settings_is_the_champion_and_stays_so(store, now, change):
    conclude(store, gate(add_version(store, "m1")))
    assert reference(store, "m1") is None
    assert reference(store, "m1", **now) == "tiny@1"
    version = add_version(store, "m1", **change)
    assert reference(store, "m1", **now) == "tiny@1"
    not_compared = conclude(store, gate(version, None))
    assert (not_compared.outcome, champion(store)) == (NOTHING, "tiny@1")
    assert conclude(store, gate(version, "tiny@1")).outcome == "promoted"
    assert reference(store, "m1", **now) == "tiny@1"  # an unchanged run


def test_reference_of_the_same_weights_that_ship_without_passages_is_known_once_there_is_a_verdict(store):
    conclude(store, gate(add_version(store, "m1")))
    version = add_version(store, "m1", verdict="ship tuned", serving=SERVING | {"has_retrieval": False})
    assert reference(store, "m1") == "tiny@1"
    assert conclude(store, gate(version, "tiny@1")).outcome == "promoted"
    assert reference(store, "m1") == "tiny@1"


def test_reference_of_a_model_that_comes_back_by_its_content_is_the_champion_in_place(store):
    two_champions(store)
    assert reference(store, "m1") == "tiny@2"
    version = add_version(store, "m1")
    assert reference(store, "m1") == "tiny@2"
    assert conclude(store, gate(version, "tiny@2")).outcome == "promoted"
    assert reference(store, "m1") == "tiny@2"  # an unchanged run
    assert read_aliases(store, "tiny")["previous"] == "tiny@2"


def test_reference_after_a_rollback_is_the_champion_that_it_was_compared_with_before(store):
    two_champions(store)
    assert reference(store, "m2") == "tiny@1"
    rollback(store, "tiny", **WHO)
    assert reference(store, "m2") == "tiny@1"


def test_answering_now_is_what_a_version_registered_now_has(store, tmp_path):
    task, folder = task_of_type(tmp_path, "open_book_qa"), exported(store, tmp_path)
    settings = registry.serving_settings(task, SHIP)
    template = registry.template_fingerprint(folder, OPEN_BOOK)
    publish(store, "m1", template=template, serving=settings)
    conclude(store, gate("tiny@1"))
    made_of = {"serving_model_id": "m1", "chunks_fingerprint": "c1", "benchmark_fingerprint": "b2"}
    assert reference_of(store, "tiny", **made_of, answering=answering_now(task, folder)) is None
    # Another score below which it abstains makes another model of it.
    assert reference_of(store, "tiny", **made_of, answering=answering_now(task, folder, 0.4)) == "tiny@1"
    (tmp_path / "tasks" / "tiny" / "config.yaml").write_text("type: open_book_qa\nretrieval: {top_k: 4}\n")
    task = get_task("tiny", tmp_path / "tasks")
    assert reference_of(store, "tiny", **made_of, answering=answering_now(task, folder)) == "tiny@1"


# ---- what a person can go back to ----


@pytest.mark.parametrize("change", [{"benchmark": "b2"}, {"verdict": HOLD}, {"adapter": "another"}])
def test_rollback_twice_goes_to_another_model(store, change):
    two_champions(store)
    conclude(store, gate(add_version(store, "m2", **change), "tiny@1"))
    conclude(store, gate(add_version(store, "m3"), "tiny@3"))
    assert read_aliases(store, "tiny")["previous"] == "tiny@3"
    rollback(store, "tiny", **WHO)
    assert read_aliases(store, "tiny") == {"candidate": "tiny@4", "champion": "tiny@3", "previous": "tiny@1"}
    assert rollback(store, "tiny", **WHO).champion_after == "tiny@1"


def test_rollback_goes_through_what_people_promoted_in_turns(store):
    two_champions(store)
    conclude(store, gate(add_version(store, "m3"), "tiny@2"))
    promote(store, "tiny", "tiny@1", **WHO, override=True)
    promote(store, "tiny", "tiny@3", **WHO, override=True)
    assert rollback(store, "tiny", **WHO).champion_after == "tiny@1"
    assert read_aliases(store, "tiny")["previous"] == "tiny@2"  # not the one that was left


@pytest.mark.parametrize("decision", [promote, rollback])
@pytest.mark.parametrize("fault", ["template", "tokenizer"])
def test_version_that_cannot_be_served_is_refused_whatever_the_override(store, decision, fault):
    conclude(store, gate(add_version(store, "m1", **({"template": "p2"} if fault == "template" else {}))))
    conclude(store, gate(add_version(store, "m2"), "tiny@1"))
    if fault == "tokenizer":
        (store.artifact_path("serving_model", "m1") / "tokenizer.json").unlink()
    arguments = {"version": "tiny@1", "override": True} if decision is promote else {}
    told = "another prompt template" if fault == "template" else "are not those that were registered"
    with pytest.raises(UserError, match=f"tiny@1 .*{told}"):
        decision(store, "tiny", **arguments, **WHO)
    assert champion(store) == "tiny@2"
