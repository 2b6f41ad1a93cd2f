"""How many rows changed since a model was trained."""

import polars as pl

from ev_platform.records import schema_of
from ev_platform.training.kept import change_since, rows_behind


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
