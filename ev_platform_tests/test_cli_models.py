"""The commands on a task's versions, over registered ones with small weights."""

import pytest
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.evaluation import pages
from ev_platform.records import to_frame
from ev_platform.registry import read_aliases
from ev_platform.settings import get_settings
from ev_platform.terminal import console
from ev_platform_tests.registry.registered import PlainStore, add_version, artifact, gate
from ev_platform_tests.tiny import write_tiny_task

WHY = ("--reason", "It answers better.")


@pytest.fixture
def store(own_folders, monkeypatch):
    """Return a store with two versions: the gate passed the first, not the second; the first is champion."""
    monkeypatch.setattr(console, "width", 200)
    store = PlainStore(own_folders / "data")
    trained = store.publish("training_set", "tiny", to_frame("training_set", []))
    rows = (trained.version, trained.fingerprint)
    add_version(store, "m1", training_set=rows, scores={"tuned_rag/token_f1": 0.4, "base/f1/x": 0.2})
    store.publish("promotion_gate", "tiny", gate("tiny@1"))
    call("promote", "tiny@1", *WHY)
    add_version(store, "m2", training_set=rows, verdict="inconclusive", scores={"tuned_rag/token_f1": 0.55})
    store.publish("promotion_gate", "tiny", gate("tiny@2", "tiny@1", failed=["latency"]))
    return store


def call(command, *arguments):
    return CliRunner().invoke(app, ["models", command, "--task", "tiny", *arguments])


def lines(result):
    assert result.exit_code == 0, result.output
    return [" ".join(line.replace("│", " ").split()) for line in result.output.splitlines()]


def test_models_list_shows_stage_verdict_score_and_size(store):
    first, second = lines(call("list"))[3:5]
    assert first.startswith("tiny@1 champion 20")
    assert first.endswith("ship tuned + retrieval token_f1 0.400 0.0 MB")
    assert second.startswith("tiny@2 candidate 20")
    assert second.endswith("inconclusive token_f1 0.550 0.0 MB")


def test_models_list_shows_weights_that_only_the_object_store_holds(own_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    url = (tmp_path / "bucket").as_uri()
    other = PlainStore(tmp_path / "other_machine", url)
    for model in ("m1", "m2"):
        add_version(other, model)
    with other.artifact("serving_model", lambda: "m2"):
        pass  # m2 goes up, m1 never did
    monkeypatch.setenv("EV_STORE_URL", url)
    get_settings.cache_clear()
    first, second = lines(call("list"))[3:5]
    assert first.startswith("tiny@1") and first.endswith(" gone")
    assert second.startswith("tiny@2") and second.endswith(" in the store")


def test_models_show_tells_fingerprints_checks_and_decisions(store):
    text = "\n".join(lines(call("show", "candidate")))
    row = store.read("registered_model", "tiny").row(1, named=True)
    for column in ("weights_sha256", "training_set_fingerprint", "recipe_fingerprint", "template_fingerprint", "code"):
        assert row[column] in text
    assert "latency no latency was looked at." in text
    assert "The gate judged it against tiny@1:" in text
    assert "tiny@1 promoted, champion none -> tiny@1. It answers better." in "\n".join(lines(call("show")))


def test_models_diff_tells_what_differs(store):
    text = "\n".join(lines(call("diff", "champion", "candidate")))
    assert "tiny@1 -> tiny@2. The same in both: base model, training rows, recipe" in text
    assert "Training rows: 0 shared, 0 added, 0 removed." in text
    assert "verdict ship tuned + retrieval inconclusive" in text
    assert "tuned_rag/token_f1 0.400 0.550 (+0.150)" in text


def test_models_diff_compares_no_scores_of_other_test_rows(store):
    row = store.read("registered_model", "tiny").row(0, named=True)
    rows = (row["training_set_version"], row["training_set_fingerprint"])
    add_version(store, "m3", training_set=rows, benchmark="b2", scores={"tuned_rag/token_f1": 0.9})
    same, other = (lines(call("diff", "champion", version)) for version in ("tiny@2", "tiny@3"))
    sentence = "The scores are not compared: the two versions answered other test rows."
    assert "tuned_rag/token_f1 0.400 0.900" in other and sentence in other
    assert "tuned_rag/token_f1 0.400 0.550 (+0.150)" in same and sentence not in same


def test_models_promote_and_rollback_write_the_report_anew(store, monkeypatch):
    written = []
    monkeypatch.setattr(pages, "write_report", lambda store, task: written.append(task.name))
    write_tiny_task(get_settings().tasks_root / "tiny", get_settings().tasks_root)
    call("promote", "candidate", *WHY, "--override")
    assert written == ["tiny"]
    call("rollback", *WHY)
    assert written == ["tiny", "tiny"]


def test_models_promote_and_rollback_change_the_champion_and_say_so(store):
    refused = call("promote", "candidate", *WHY)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "tiny@2 failed the gate: latency (latency was looked at)" in refused.stderr
    assert lines(call("promote", "candidate", *WHY, "--override")) == [
        "Promoted against the gate tiny@2; champion before: tiny@1."
    ]
    assert read_aliases(store, "tiny")["champion"] == "tiny@2"
    assert lines(call("rollback", *WHY)) == ["Rolled back to tiny@1; champion before: tiny@2."]
    assert read_aliases(store, "tiny")["champion"] == "tiny@1"
    assert call("promote", "candidate").exit_code == 2  # no reason


def test_models_prune_lists_and_with_apply_removes(store):
    folder = "artifacts/adapter/abandoned"
    (store.root / folder).mkdir(parents=True)
    store.publish("adapter", "tiny", artifact(store, "adapter", "abandoned"))
    store.publish("adapter", "tiny", artifact(store, "adapter", "adapter_of_m2"))
    assert lines(call("prune")) == [folder, "Would remove (add --apply): 1 folders, 0.0 MB."]
    assert (store.root / folder).is_dir()
    assert lines(call("prune", "--apply")) == [folder, "Removed: 1 folders, 0.0 MB."]
    assert not (store.root / folder).exists()
