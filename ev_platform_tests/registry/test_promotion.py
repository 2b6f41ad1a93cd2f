import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from ev_platform.errors import UserError
from ev_platform.registry import locked, name_candidate, promotion, read_aliases, reference_of
from ev_platform.registry.note import render_note, write_note
from ev_platform.registry.promotion import NOTHING, promote, rollback, settle
from ev_platform.storage import Store
from ev_platform_tests.registry.registered import add_version, conclude, gate

WHO = {"reason": "It answers better.", "by": "ada"}


def aliases(store):
    return read_aliases(store, "tiny")


def decisions(store):
    return [
        (row["decision"], row["model_version"], row["champion_before"], row["champion_after"])
        for row in store.read("promotions", "tiny").to_dicts()
    ]


def two_champions(store):
    """Let the gate promote one version after the other."""
    for model, champion in (("m1", None), ("m2", "tiny@1")):
        conclude(store, gate(add_version(store, model), champion))


# ---- the gate's decision ----


def test_decide_version_that_passes_becomes_champion(store):
    two_champions(store)
    assert aliases(store) == {"candidate": "tiny@2", "champion": "tiny@2", "previous": "tiny@1"}
    assert decisions(store) == [("promoted", "tiny@1", None, "tiny@1"), ("promoted", "tiny@2", "tiny@1", "tiny@2")]


def test_decide_version_that_fails_leaves_the_champion_and_says_why(store):
    conclude(store, gate(add_version(store, "m1")))
    outcome = conclude(store, gate(add_version(store, "m2"), "tiny@1", failed=["latency", "retention"]))
    assert outcome.outcome == "kept"
    assert outcome.reason == (
        "tiny@1 stays champion: tiny@2 failed latency (latency was looked at); retention (retention was looked at)."
    )
    assert aliases(store) == {"candidate": "tiny@2", "champion": "tiny@1"}
    assert store.read("promotions", "tiny").item(1, "failed_checks").to_list() == ["latency", "retention"]


def test_decide_first_version_that_fails_leaves_no_champion(store):
    outcome = conclude(store, gate(add_version(store, "m1"), failed=["enough_rows"]))
    assert outcome.reason.startswith("There is still no champion: tiny@1 failed enough_rows")
    assert aliases(store) == {"candidate": "tiny@1"}
    assert decisions(store) == [("kept", "tiny@1", None, None)]


@pytest.mark.parametrize("failed", [[], ["latency"]])
def test_decide_again_about_the_same_decides_nothing(store, failed):
    table = gate(add_version(store, "m1"), failed=failed)
    conclude(store, table)
    before = aliases(store)
    assert conclude(store, table).outcome == NOTHING
    assert len(decisions(store)) == 1
    assert aliases(store) == before


def test_decide_version_that_failed_before_and_passes_now_is_promoted(store):
    version = add_version(store, "m1")
    conclude(store, gate(version, failed=["latency"]))
    assert conclude(store, gate(version)).outcome == "promoted"
    assert aliases(store)["champion"] == "tiny@1"


def test_decide_version_that_was_rolled_back_does_not_come_back_by_itself(store):
    two_champions(store)
    rollback(store, "tiny", **WHO)
    outcome = conclude(store, gate("tiny@2", "tiny@1"))
    assert (outcome.outcome, aliases(store)["champion"]) == (NOTHING, "tiny@1")
    assert "does not come back by itself" in outcome.reason


def test_decide_version_judged_against_another_champion_waits_for_a_new_judgement(store):
    conclude(store, gate(add_version(store, "m1")))
    version = add_version(store, "m2")
    outcome = conclude(store, gate(version, None))  # judged before tiny@1 was promoted
    assert (outcome.outcome, aliases(store)["champion"]) == (NOTHING, "tiny@1")
    assert "judged against no champion, but tiny@1 answers now" in outcome.reason


# ---- people's decisions ----


def test_promote_by_hand_needs_the_gate_passed_or_an_override_that_is_recorded(store):
    conclude(store, gate(add_version(store, "m1")))
    version = add_version(store, "m2")
    table = gate(version, "tiny@1", failed=["latency"])
    store.publish("promotion_gate", "tiny", table)
    conclude(store, table)
    with pytest.raises(UserError, match=r"tiny@2 failed the gate: latency \(latency was looked at\); .*--override"):
        promote(store, "tiny", "candidate", **WHO)
    assert aliases(store)["champion"] == "tiny@1"
    row = promote(store, "tiny", "candidate", **WHO, override=True)
    assert (row.decision, row.decided_by, row.reason) == ("overridden", "ada", "It answers better.")
    assert row.failed_checks == ["latency"]
    assert aliases(store) == {"candidate": "tiny@2", "champion": "tiny@2", "previous": "tiny@1"}


def test_promote_by_hand_version_that_passed_needs_no_override(store):
    version = add_version(store, "m1")
    store.publish("promotion_gate", "tiny", gate(version))
    add_version(store, "m2")
    store.publish("promotion_gate", "tiny", gate("tiny@2"))  # an older version's gate is looked up in the history
    assert promote(store, "tiny", version, **WHO).decision == "promoted"


def test_promote_version_that_was_never_judged_or_against_another_champion_is_refused(store):
    version = add_version(store, "m1")
    with pytest.raises(UserError, match=r"tiny@1 was never judged by the gate; .*--override"):
        promote(store, "tiny", version, **WHO)
    promote(store, "tiny", version, **WHO, override=True)
    store.publish("promotion_gate", "tiny", gate(add_version(store, "m2"), None))
    with pytest.raises(UserError, match="tiny@2 was judged against no champion, but tiny@1 answers now"):
        promote(store, "tiny", "tiny@2", **WHO)
    assert [row[0] for row in decisions(store)] == ["overridden"]


@pytest.mark.parametrize("decision", [promote, rollback])
def test_altered_weight_file_is_refused_whatever_the_override(store, decision):
    two_champions(store)
    (store.artifact_path("serving_model", "m1") / "model.bin").write_bytes(b"altered")
    arguments = {"version": "tiny@1", "override": True} if decision is promote else {}
    with pytest.raises(UserError, match=r"The files of tiny@1 .* are not those that were registered"):
        decision(store, "tiny", **arguments, **WHO)
    assert aliases(store)["champion"] == "tiny@2"
    assert len(decisions(store)) == 2


def test_decision_by_hand_without_a_reason_is_refused(store):
    two_champions(store)
    with pytest.raises(UserError, match="needs a reason"):
        rollback(store, "tiny", reason="  ", by="ada")
    with pytest.raises(UserError, match="needs a reason"):
        promote(store, "tiny", "tiny@1", reason="", by="ada", override=True)


def test_promote_the_champion_is_told_that_it_is(store):
    two_champions(store)
    with pytest.raises(UserError, match="tiny@2 is champion already"):
        promote(store, "tiny", "champion", **WHO, override=True)


def test_rollback_goes_to_the_previous_champion_and_again_to_the_one_before(store):
    two_champions(store)
    conclude(store, gate(add_version(store, "m3"), "tiny@2"))
    assert aliases(store) == {"candidate": "tiny@3", "champion": "tiny@3", "previous": "tiny@2"}
    rollback(store, "tiny", **WHO)
    assert aliases(store) == {"candidate": "tiny@3", "champion": "tiny@2", "previous": "tiny@1"}
    rollback(store, "tiny", **WHO)
    assert aliases(store) == {"candidate": "tiny@3", "champion": "tiny@1"}
    with pytest.raises(UserError, match="no previous champion"):
        rollback(store, "tiny", **WHO)
    assert decisions(store)[3:] == [
        ("rolled_back", "tiny@2", "tiny@3", "tiny@2"),
        ("rolled_back", "tiny@1", "tiny@2", "tiny@1"),
    ]


def test_rollback_to_a_named_version_that_never_was_champion_is_refused(store):
    two_champions(store)
    version = add_version(store, "m3")
    with pytest.raises(UserError, match=f"{version} has never been champion"):
        rollback(store, "tiny", version=version, **WHO)
    assert rollback(store, "tiny", version="tiny@1", **WHO).champion_after == "tiny@1"


# ---- one at a time, and nothing half done ----


def _promote_in_turn(root, versions):
    store = Store(Path(root))
    for version in versions:
        promote(store, "tiny", version, reason=f"turn of {version}", by="worker", override=True)


def test_promotion_from_several_processes_at_once_loses_no_decision(store):
    n_workers = 3
    names = [add_version(store, f"m{n}") for n in range(2 * n_workers)]
    # Each process lets two versions of its own take turns, so that none is champion when its turn comes.
    turns = [names[2 * n : 2 * n + 2] + names[2 * n : 2 * n + 1] for n in range(n_workers)]
    with ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(_promote_in_turn, str(store.root), versions) for versions in turns]:
            done.result(timeout=120)
    rows = store.read("promotions", "tiny").to_dicts()
    assert sorted(row["model_version"] for row in rows) == sorted(v for versions in turns for v in versions)
    assert [row["champion_before"] for row in rows] == [None, *(row["champion_after"] for row in rows[:-1])]
    last = rows[-1]
    assert aliases(store) == {
        "candidate": names[-1],
        "champion": last["champion_after"],
        "previous": last["champion_before"],
    }


def test_process_killed_between_decision_and_aliases_is_finished_by_the_next(store, monkeypatch):
    two_champions(store)
    version = add_version(store, "m3")
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "write_aliases", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            promote(store, "tiny", version, **WHO, override=True)
    assert aliases(store)["champion"] == "tiny@2"
    row = rollback(store, "tiny", **WHO)  # from tiny@3, which the killed process had decided for
    assert (row.champion_before, row.champion_after) == ("tiny@3", "tiny@2")


def test_aliases_of_an_earlier_release_without_decisions_stay_as_they_are(store):
    add_version(store, "m1")
    with locked(store, "tiny"):
        promotion.write_aliases(store, "tiny", {"candidate": "tiny@1", "champion": "tiny@1"})
        assert settle(store, "tiny") == {"candidate": "tiny@1", "champion": "tiny@1"}
    assert name_candidate(store, "tiny") == {"candidate": "tiny@1", "champion": "tiny@1"}


# ---- whom a model is compared with ----


def reference(store, model_id, benchmark="b1"):
    return reference_of(
        store, "tiny", serving_model_id=model_id, chunks_fingerprint="c1", benchmark_fingerprint=benchmark
    )


def test_reference_is_the_champion_in_place_and_stays_so_once_decided(store):
    assert reference(store, "m1") is None
    conclude(store, gate(add_version(store, "m1")))
    assert reference(store, "m1") is None  # decided when there was no champion
    assert reference(store, "m2") == "tiny@1"  # not registered yet
    version = add_version(store, "m2")
    assert reference(store, "m2") == "tiny@1"  # registered, but not decided about
    conclude(store, gate(version, "tiny@1"))
    assert aliases(store)["champion"] == "tiny@2"
    assert reference(store, "m2") == "tiny@1"  # an unchanged run compares with what it compared with before
    assert reference(store, "m2", benchmark="b2") is None  # new test rows: the champion is the model itself


def test_reference_of_a_version_kept_back_follows_the_champion(store):
    conclude(store, gate(add_version(store, "m1")))
    conclude(store, gate(add_version(store, "m2"), "tiny@1", failed=["latency"]))
    assert reference(store, "m2") == "tiny@1"
    promote(store, "tiny", add_version(store, "m3"), **WHO, override=True)
    assert reference(store, "m2") == "tiny@3"  # so that it can be judged against who answers now


def test_decide_same_model_evaluated_anew_takes_over_and_leaves_previous_alone(store):
    two_champions(store)
    version = add_version(store, "m2", benchmark="b2")
    assert reference(store, "m2", "b2") is None
    assert conclude(store, gate(version, None)).outcome == "promoted"
    assert aliases(store) == {"candidate": "tiny@3", "champion": "tiny@3", "previous": "tiny@1"}


# ---- the note ----


def test_note_says_how_it_ended_why_and_what_every_check_found(store):
    conclude(store, gate(add_version(store, "m1")))
    table = gate(add_version(store, "m2"), "tiny@1", failed=["retention"])
    outcome = conclude(store, table)
    text = write_note(store, "tiny", table, outcome).read_text()
    assert text.startswith("# tiny: kept\n\ntiny@1 stays champion: tiny@2 failed retention (retention was looked at).")
    assert "candidate is tiny@2, champion is tiny@1" in text
    assert "| retention | **no** | 0.1 | 0.2 | retention was looked at. |" in text
    assert "| latency | yes |" in text
    again = conclude(store, table)
    assert render_note("tiny", table, again, aliases(store), store.read("promotions", "tiny")).startswith(
        "# tiny: nothing changed\n"
    )
