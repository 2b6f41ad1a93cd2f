"""How many rows changed since a model was trained, and passages since a version was registered."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from ev_platform.records import schema_of
from ev_platform.training.kept import change_since, rows_behind, version_kept
from ev_platform_tests.registry.registered import PlainStore


@pytest.fixture
def store(tmp_path):
    return PlainStore(tmp_path / "data")


def rows(*questions):
    known = {name: [None] * len(questions) for name in schema_of("training_set")}
    known |= {"example_id": [f"exm_{question}" for question in questions], "question": list(questions)}
    return pl.DataFrame(known, schema=schema_of("training_set"))


def publish(store, training, validation):
    return {
        "training_set": store.publish("training_set", "tiny", rows(*training)),
        "validation_set": store.publish("validation_set", "tiny", rows(*validation)),
    }


def made_from(store, records):
    inputs = {table: record.fingerprint for table, record in records.items()}
    empty = pl.DataFrame(schema=schema_of("adapter"))
    return store.publish("adapter", "tiny", empty, inputs=inputs)


def test_row_that_became_another_is_one_change_of_all_rows(store):
    first = publish(store, "abcd", "vw")
    adapter = made_from(store, first)
    change = change_since(store, adapter, publish(store, "abcx", "vw"))
    assert change is not None and (change.n_changed, change.n_rows) == (1, 6)
    assert [it.fingerprint for it in change.before] == [it.fingerprint for it in first.values()]


def test_rows_that_came_and_went_in_either_table_add_up(store):
    adapter = made_from(store, publish(store, "abcd", "vw"))
    change = change_since(store, adapter, publish(store, "abcdef", "v"))
    assert change is not None and (change.n_changed, change.n_rows) == (3, 6)


def test_changes_since_the_training_add_up_over_runs(store):
    adapter = made_from(store, publish(store, "abcd", "vw"))
    publish(store, "abcx", "vw")
    change = change_since(store, adapter, publish(store, "abyx", "vw"))
    assert change is not None and change.n_changed == 2


def test_model_whose_rows_are_gone_has_nothing_to_be_compared_with(store):
    now = publish(store, "abcd", "vw")
    adapter = store.publish("adapter", "tiny", pl.DataFrame(schema=schema_of("adapter")), inputs={"training_set": "0"})
    assert change_since(store, adapter, now) is None
    assert rows_behind(store, "tiny", "training_set", "0") is None


# ---- the registered version ----


def passages(store, *texts, config=None):
    known = {name: [None] * len(texts) for name in schema_of("chunks")}
    frame = pl.DataFrame(known | {"text": list(texts), "heading_path": ["Cables"] * len(texts)}, schema_of("chunks"))
    # Another document has other ids for every passage, whatever it says.
    frame = frame.with_columns(chunk_id=pl.lit(f"chk_{' '.join(texts)}"))
    asked = rows("a", "b").with_columns(answers=pl.lit(["yes"]), document_id=pl.lit(" ".join(texts)))
    chosen = pl.DataFrame(schema=schema_of("abstention_calibration"))
    return {
        "chunks": store.publish("chunks", "tiny", frame),
        "benchmark": store.publish("benchmark", "tiny", asked),
        "abstention_calibration": store.publish("abstention_calibration", "tiny", chosen, config=config or {"max": 0}),
    }


def version(now, **changes):
    return {
        "model_version": "tiny@1",
        "registered_at": datetime.now(UTC),
        "serving_model_id": "m1",
        "adapter_id": "a1",
        "template_fingerprint": "p1",
        "code": "c1",
        "serving": json.dumps({"top_k": 2, "min_score": 0.3, "has_retrieval": True}),
        "chunks_fingerprint": now["chunks"].fingerprint,
        "benchmark_fingerprint": now["benchmark"].fingerprint,
    } | changes


def test_version_is_kept_while_few_of_its_passages_changed(store):
    first = passages(store, "one", "two", "three", "four")
    newest = version(first)
    now = passages(store, "one", "two", "three", "five")
    made = version(now, serving=json.dumps({"top_k": 2, "min_score": 0.4, "has_retrieval": False}))
    assert version_kept(store, newest, made, now, 0.3) == (
        "tiny@1 is kept: 1 of the 4 passages that it answers from changed, less than training.min_changed_share (0.3)"
    )
    assert version_kept(store, newest, made, now, 0.25) == ""
    assert version_kept(store, newest, made, now, 0) == ""


@pytest.mark.parametrize(
    "change", [{"adapter_id": "a2"}, {"template_fingerprint": "p2"}, {"code": "c2"}, {"serving": '{"top_k": 3}'}]
)
def test_version_that_differs_in_more_than_passages_is_another(store, change):
    newest = version(passages(store, "one", "two"))
    now = passages(store, "one", "three")
    assert version_kept(store, newest, version(now), now, 1.0)
    assert version_kept(store, newest, version(now, **change), now, 1.0) == ""


def test_version_is_another_where_a_person_chose_how_often_it_abstains(store):
    newest = version(passages(store, "one", "two"))
    now = passages(store, "one", "three", config={"max": 0.1})
    assert version_kept(store, newest, version(now), now, 1.0) == ""
