from ev_platform.records import DatasetRow, to_frame
from ev_platform.registry.compare import compare
from ev_platform_tests.registry.registered import RECIPE, SERVING, add_version


def training_set(store, questions):
    rows = []
    for question in questions:
        known = dict.fromkeys(DatasetRow.__dataclass_fields__)
        known |= {"example_id": f"exm_{question}", "question": question, "split": "train"}
        rows.append(DatasetRow(**known))
    record = store.publish("training_set", "tiny", to_frame("training_set", rows))
    return record.version, record.fingerprint


def test_compare_names_rows_recipe_settings_and_scores_that_differ(store):
    add_version(
        store, "m1", training_set=training_set(store, ["a", "b"]), scores={"tuned/token_f1": 0.4, "base/token_f1": 0.1}
    )
    add_version(
        store,
        "m2",
        training_set=training_set(store, ["b", "c", "d"]),
        recipe=RECIPE | {"lora": {"r": 16}},
        serving=SERVING | {"top_k": 3},
        scores={"tuned/token_f1": 0.5, "champion/token_f1": 0.4},
    )
    found = compare(store, "tiny", "tiny@1", "candidate")
    assert found.versions == ("tiny@1", "tiny@2")
    assert (found.added, found.removed, found.n_shared) == (("c", "d"), ("a",), 1)
    assert found.recipe == {"lora.r": (8, 16)}
    assert found.serving == {"top_k": (1, 3)}
    assert found.scores == {"tuned/token_f1": (0.4, 0.5)}
    assert set(found.other) == {"training rows", "recipe", "weights"}
    assert {"base model", "passages", "prompt template", "benchmark", "code that answers"} <= set(found.same)


def test_compare_says_whether_the_scores_are_of_the_same_test_rows(store):
    rows = training_set(store, ["a"])
    for model, benchmark in (("m1", "b1"), ("m2", "b1"), ("m3", "b2")):
        add_version(store, model, training_set=rows, benchmark=benchmark)
    assert compare(store, "tiny", "tiny@1", "tiny@2").has_same_test_rows
    assert not compare(store, "tiny", "tiny@1", "tiny@3").has_same_test_rows


def test_compare_version_with_itself_finds_nothing(store):
    add_version(store, "m1", training_set=training_set(store, ["a"]))
    found = compare(store, "tiny", "tiny@1", "tiny@1")
    assert (found.other, found.added, found.removed, found.recipe, found.serving) == ({}, (), (), {}, {})
