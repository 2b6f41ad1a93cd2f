"""What is told of the questions that were asked, from the request log alone."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ev_platform.records import DatasetRow, RegisteredModel, to_frame
from ev_platform.retrieval import embed
from ev_platform.serving import drift
from ev_platform.serving.journal import Journal
from ev_platform_tests.serving.rows import served

NOW = datetime.now(UTC)
CHANCE = np.random.default_rng(7)
LIKE_TRAINED, STRANGE = CHANCE.normal(0.7, 0.08, 400), CHANCE.normal(0.35, 0.08, 300)


def log(root, *rows):
    journal = Journal(root, "requests")
    for row in rows:
        journal.add(row)
    journal.close()


def asked(number, similarity=0.5, **changes):
    fields = {"task": "tiny", "model_version": "tiny@1", "question": f"Question {number}?"}
    fields |= {"question_hash": f"{number:032}", "similarity": similarity}
    return served(f"req_{number}", NOW - timedelta(seconds=1000 - number), **fields | changes)


def requests(similarities, version="tiny@1", start=0):
    fields = [
        {
            "request_id": f"req_{number}",
            "asked_at": NOW + timedelta(seconds=number),
            "model_version": version,
            "question_hash": f"{number:032}",
            "is_abstention": similarity < 0.3,
            "similarity": similarity,
        }
        for number, similarity in enumerate(similarities.tolist(), start)
    ]
    return pl.DataFrame(fields, schema_overrides={"similarity": pl.Float64})


def measured(similarities, reference=LIKE_TRAINED, **options):
    frame = requests(np.asarray(similarities), **options)
    (row,) = drift.measure_drift(frame, {"tiny@1": reference}).to_dicts()
    return row


def test_questions_like_the_test_s_are_no_drift():
    row = measured(CHANCE.normal(0.7, 0.08, 200))
    passed, sentence = drift.judge(row)
    assert passed and row["ks"] < drift.MIN_KS and abs(row["cliffs_delta"]) < 0.15
    assert sentence.startswith("tiny@1: 200 questions; ")
    assert row["unfamiliar_share"] == pytest.approx(0.05, abs=0.05)


def test_strange_questions_are_found_with_the_size_of_the_difference():
    row = measured(STRANGE)
    passed, sentence = drift.judge(row)
    assert not passed and "add sources or rows" in sentence
    assert (
        row["ks"] > 0.95 and row["p_value"] < 1e-50 and row["cliffs_delta"] < -0.95 and row["unfamiliar_share"] > 0.95
    )
    assert row["similarity_p50"] == pytest.approx(0.35, abs=0.02) and row["reference_p50"] == pytest.approx(
        0.7, abs=0.02
    )
    assert row["n_abstained"] == (STRANGE < 0.3).sum() and row["abstention_share"] == row["n_abstained"] / 300


def test_figures_are_those_worked_out_by_hand():
    # F of (1, 2, 3, 4) and G of (3, 4, 5, 6) are furthest apart between 2 and 3: 2/4. Of 16 pairs the first is larger
    # in 1 and equal in 2: 2 * (1 + 1) / 16 - 1.
    figures = drift.compare(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6]))
    assert figures["ks"] == 0.5
    assert figures["cliffs_delta"] == pytest.approx(-0.75)
    assert figures["unfamiliar_share"] == 0.75  # of the reference the 5th percentile is 3.15


def test_questions_more_familiar_than_the_test_s_are_no_trouble():
    row = measured(np.full(100, 0.99))
    assert row["ks"] == 0 and row["cliffs_delta"] == 1 and drift.judge(row)[0]


def test_strange_questions_are_found_among_as_many_that_were_trained_on():
    row = measured(np.concatenate([np.full(220, 1.0), STRANGE[:180]]))
    assert row["cliffs_delta"] > 0  # on the whole they are the more familiar ones
    assert row["ks"] == pytest.approx(0.45, abs=0.03) and not drift.judge(row)[0]


def test_difference_that_only_many_questions_make_significant_is_no_drift():
    row = measured(CHANCE.normal(0.69, 0.08, 8000), CHANCE.normal(0.7, 0.08, 2000))
    assert row["p_value"] < drift.MAX_P_VALUE and drift.judge(row)[0]


def test_few_questions_are_not_judged():
    row = measured(STRANGE[: drift.MIN_QUESTIONS - 1])
    assert drift.judge(row) == (True, "tiny@1: 19 questions; 20 are needed to compare them.")


def test_question_that_is_asked_over_and_over_counts_once():
    frame = pl.concat([requests(LIKE_TRAINED[:100]), *[requests(STRANGE[:1], start=100)] * 900])
    (row,) = drift.measure_drift(frame, {"tiny@1": LIKE_TRAINED}).to_dicts()
    assert (row["n_requests"], row["n_questions"]) == (1000, 101)
    assert drift.judge(row)[0]


def test_version_without_anything_to_compare_with_is_told_and_not_judged():
    row = measured(STRANGE, None)
    assert (row["ks"], row["n_reference"], row["reference_percentiles"]) == (None, 0, [])
    assert drift.judge(row) == (True, "tiny@1: 300 questions, and none that they could be compared with.")
    nothing_known = requests(STRANGE).with_columns(pl.lit(None, pl.Float64).alias("similarity"))
    (row,) = drift.measure_drift(nothing_known, {"tiny@1": LIKE_TRAINED}).to_dicts()
    assert (row["ks"], row["similarity_p50"], row["n_questions"]) == (None, None, 300)


def test_each_version_is_compared_with_its_own_reference_the_last_one_asked_at_the_end():
    frame = pl.concat([requests(STRANGE, "tiny@2"), requests(LIKE_TRAINED, "tiny@1", start=1000)])
    rows = drift.measure_drift(frame, {"tiny@1": LIKE_TRAINED, "tiny@2": STRANGE}).to_dicts()
    assert [(row["model_version"], row["ks"]) for row in rows] == [("tiny@2", 0.0), ("tiny@1", 0.0)]


def test_requests_are_the_answered_ones_of_the_task_s_last_days(tmp_path):
    assert drift.recent_requests(tmp_path, "tiny", 30).is_empty()
    long_ago = NOW - timedelta(days=40)
    log(
        tmp_path,
        asked(1),
        asked(2, status=503, model_version=None),
        asked(3, task="other"),
        asked(4, status=499),
        served("old", long_ago, task="tiny", model_version="tiny@1"),
    )
    found = drift.recent_requests(tmp_path, "tiny", 30)
    assert found["request_id"].to_list() == ["req_1"]
    assert "question" not in found.columns


def test_least_familiar_questions_are_named_and_their_text_stays_in_the_log(tmp_path):
    rows = [asked(n, n / 100) for n in range(10, 40)]
    rows += [asked(40, 0.01), asked(41, 0.01, question_hash=f"{40:032}")]
    log(tmp_path, *rows, asked(42, 0.0, model_version="tiny@0"), asked(43, 0.9))
    shown = drift.least_familiar(drift.recent_requests(tmp_path, "tiny", 30))
    assert len(shown) == drift.MAX_SHOWN
    assert [(row["similarity"], row["request_id"]) for row in shown[:3]] == [
        (0.01, "req_41"),
        (0.1, "req_10"),
        (0.11, "req_11"),
    ]
    assert "Question" not in str(shown)
    assert drift.least_familiar(drift.recent_requests(tmp_path, "other", 30)) == []


def test_reference_is_how_near_untrained_questions_come(store):
    blank = dict.fromkeys(DatasetRow.__dataclass_fields__) | {
        "answers": [],
        "is_answerable": True,
        "context_chunk_ids": [],
        "messages": [],
    }
    known = ["How much current does a Type 2 plug carry?", "Who tests the RCD?"]
    rows = [DatasetRow(**blank | {"example_id": f"exm_{n}", "question": text}) for n, text in enumerate(known)]
    record = store.publish("training_set", "tiny", to_frame("training_set", rows))
    version = dict.fromkeys(RegisteredModel.__dataclass_fields__) | {
        "model_version": "tiny@1",
        "training_set_version": record.version,
        "training_set_fingerprint": record.fingerprint,
    }
    store.publish("registered_model", "tiny", to_frame("registered_model", [RegisteredModel(**version)]))
    questions = [known[0], "How much current does a Type 1 plug carry?", "When do slugs come?"]
    found = drift.reference_similarities(store, "tiny", "tiny@1", questions)
    expected = (embed(questions[1:]) @ embed(known).T).max(axis=1)
    assert found == pytest.approx(expected, abs=1e-5)  # without the one that was trained on
    assert found[0] > 0.7 > found[1]
    assert drift.reference_similarities(store, "tiny", "tiny@9", questions) is None
    assert drift.reference_similarities(store, "tiny", "tiny@1", []) is None


def test_image_shows_both_distributions_where_there_are_two():
    assert drift.drift_image(measured(STRANGE)).startswith("![familiarity of the questions](data:image/png;base64,")
    assert drift.drift_image(measured(STRANGE, None)) == ""
