"""The asset `question_drift` over a request log: what it says, and when it has nothing to do."""

import re
from datetime import UTC, datetime, timedelta

import dagster as dg
import duckdb
import pytest

from ev_platform.records import DatasetRow, RegisteredModel, to_frame
from ev_platform.serving.journal import Journal
from ev_platform_tests.serving.rows import served
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import TEST, TRAIN, write_tiny_task

READ = ("registered_model", "benchmark", "validation_set")


def rows_of(texts):
    blank = dict.fromkeys(DatasetRow.__dataclass_fields__)
    blank |= {"answers": [], "is_answerable": True, "context_chunk_ids": [], "messages": []}
    return [DatasetRow(**blank | {"example_id": f"exm_{text}", "question": text}) for text in texts]


@pytest.fixture
def workspace(tmp_path):
    """A task with one registered version, of which nobody has asked anything."""
    workspace = Workspace(tmp_path)
    write_tiny_task(workspace.task, tmp_path / "model")
    store = workspace.store
    trained = store.publish("training_set", "tiny", to_frame("training_set", rows_of([row[0] for row in TRAIN])))
    version = dict.fromkeys(RegisteredModel.__dataclass_fields__) | {
        "model_version": "tiny@1",
        "training_set_version": trained.version,
        "training_set_fingerprint": trained.fingerprint,
    }
    store.publish("registered_model", "tiny", to_frame("registered_model", [RegisteredModel(**version)]))
    store.publish("benchmark", "tiny", to_frame("benchmark", rows_of([row[0] for row in TEST])))
    store.publish("validation_set", "tiny", to_frame("validation_set", rows_of(["How much power has a plug?"])))
    return workspace


def log(workspace, n, **changes):
    journal = Journal(workspace.store.root, "requests")
    for number in range(n):
        fields = {"task": "tiny", "model_version": "tiny@1", "question": f"Number {number}![](http://a.example/x.png)?"}
        at = datetime.now(UTC) - timedelta(minutes=n - number)
        journal.add(served(f"req_{number}", at, question_hash=f"{number:032}", **fields | changes))
    journal.close()


def materialize(workspace):
    """Materialize the asset and its check; return the asset's metadata and the check's evaluation."""
    with workspace.graph() as defs:
        from ev_platform.defs.serving import checks, question_drift

        resources = {name: defs.resources[name] for name in ("store", "io_manager")}
        sources = [dg.AssetSpec(name) for name in READ]
        result = dg.materialize([*sources, question_drift, *checks], resources=resources, partition_key="tiny")
    (made,) = result.asset_materializations_for_node("question_drift")
    (check,) = result.get_asset_check_evaluations()
    return {name: value.value for name, value in made.metadata.items()}, check


def test_empty_log_is_said_and_computes_nothing_again(workspace):
    told, check = materialize(workspace)
    assert told["why"].startswith("Nothing was asked of this task yet")
    assert not told["unchanged"] and check.passed and check.description == "Nothing was asked yet."
    workspace.store.publish("benchmark", "tiny", to_frame("benchmark", rows_of(["Another?"])))
    told, check = materialize(workspace)
    assert told["unchanged"] and check.passed
    assert len(workspace.store.history("question_drift", "tiny")) == 1


def test_strange_questions_warn_and_are_listed_until_nothing_new_was_asked(workspace):
    log(workspace, 60, similarity=0.05)
    told, check = materialize(workspace)
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert check.description == told["says"] and told["says"].startswith("tiny@1: 60 questions; 100% of them")
    assert told["unfamiliar_share"] == 1.0 and told["distributions"].startswith("![familiarity")
    assert told["least_familiar"].count("req_") == 20
    assert "Number " not in str(told)  # what the log forgets no run remembers
    (query,) = re.fullmatch('ev-platform query "(.+)"', told["least_familiar_text"]).groups()
    with duckdb.connect(str(workspace.store.catalogue), read_only=True) as catalogue:
        assert [row[1][:7] for row in catalogue.execute(query).fetchall()] == ["Number "] * 20
    (row,) = workspace.read("question_drift").to_dicts()
    assert (row["model_version"], row["n_reference"], row["n_questions"]) == ("tiny@1", len(TEST) + 1, 60)
    told, check = materialize(workspace)
    assert told["unchanged"] and not check.passed
