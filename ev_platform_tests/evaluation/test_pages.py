import json
import re
import shutil

import polars as pl
import pytest

from ev_platform.errors import UserError
from ev_platform.evaluation.pages import read_report, write_report
from ev_platform.evaluation.plots import differences_image, scores_image
from ev_platform.records import Coverage, Promotion, to_frame
from ev_platform.registry.note import rewrite_report
from ev_platform_tests.evaluation.stored import (
    AT,
    HOSTILE,
    N_ROWS,
    TASK,
    LazyStore,
    Stored,
    dataset_row,
    predictions_of,
    store_evaluation,
    store_gate,
    store_labels,
    store_surroundings,
)
from ev_platform_tests.evaluation.test_report import Reader

SECTIONS = (
    "Judged pair by pair",
    "Other seeds",
    "Retrieval",
    "Questions out of scope",
    "Questions of the task that are refused",
    "Held-out questions outside the task that are answered",
    "General ability",
    "Speed and cost",
    "Coverage",
    "Training",
    "Teacher",
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluation and nothing else; nothing may change it."""
    return store_evaluation(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """An evaluation with everything around it; nothing may change it."""
    stored = store_evaluation(tmp_path_factory.mktemp("full"))
    store_surroundings(stored)
    return stored


@pytest.fixture
def stored(tmp_path, evaluated):
    """A copy of the bare evaluation that a test may change."""
    shutil.copytree(evaluated.store.root, tmp_path / "data")
    return Stored(LazyStore(tmp_path / "data"), evaluated.task)


def page_of(stored):
    page, _ = write_report(stored.store, stored.task)
    return Reader(page.read_text())


def test_page_of_a_bare_evaluation_has_no_section_without_rows(evaluated):
    read = page_of(evaluated)
    assert "Ship" in read.text or "ship tuned + retrieval" in read.text
    assert not [title for title in SECTIONS if title in read.text]
    assert "Not promoted" not in read.text
    assert read.tags.count("svg") == 2


def test_page_with_everything_has_every_section(full):
    page, verdict = write_report(full.store, full.task)
    read = Reader(page.read_text())
    assert verdict.verdict == "ship tuned + retrieval" and verdict.reason in read.text
    assert not [title for title in SECTIONS if title not in read.text]
    assert "charging@2" in read.text
    assert "Not promoted: charging@1 goes on" in read.text
    assert "not worse than champion failed It loses 0.11, and 0.02 may be lost." in read.text
    assert "enough rows passed 24 rows of at least 20." in read.text
    assert "charging-bench@2: 16 rows were added." in read.text
    assert "2.1 min" in read.text and "0.012" in read.text  # of training: time and energy
    assert "2 of 3 passages or texts that may be trained on (67%) have an example. 1 more are held out" in read.text
    assert "On 2 pairs that people judged too, it says the same on 50%" in read.text
    assert "sacrebleu 9.9.9" in read.text  # as the scores were made, not what is installed now
    # Nothing but the page's own plots, links that go nowhere bad, and ids that occur once.
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert len(read.ids) == len(set(read.ids))
    assert {a.partition(":")[0] for a in read.addresses if not a.startswith("#")} == {"https"}


def test_page_is_the_same_for_the_same_tables(full):
    page, _ = write_report(full.store, full.task)
    first = page.read_bytes(), page.with_suffix(".json").read_bytes()
    write_report(full.store, full.task)
    assert (page.read_bytes(), page.with_suffix(".json").read_bytes()) == first


def test_page_escapes_what_a_model_wrote_also_in_json(full):
    page, _ = write_report(full.store, full.task)
    assert HOSTILE not in page.read_text()
    told = json.loads(page.with_suffix(".json").read_text())
    assert told["worst"][0]["answers"][0]["text"] == HOSTILE


def test_json_holds_the_figures_of_the_tables(full):
    page, _ = write_report(full.store, full.task)
    told = json.loads(page.with_suffix(".json").read_text())
    rows = full.read("eval_report").to_dicts()
    assert told["scores"] == [row for row in rows if row["compared_to"] is None]
    assert told["differences"] == [row for row in rows if row["compared_to"] is not None]
    assert told["retrieval"] == full.read("retrieval_report").to_dicts()
    assert told["speed"] == full.read("inference_benchmark").to_dicts()
    assert told["gate"]["checks"] == full.read("promotion_gate").to_dicts()
    assert told["abstention"]["min_score"] == 0.35
    assert [row["question"] for row in told["abstention"]["refused"]] == ["Who signed it?"]
    assert [row["question"] for row in told["abstention"]["answered"]] == ["Can my landlord plug the door?"]
    assert {row["group"]: row["value"] for row in told["abstention"]["shares"]}["strange_held_out"] == 0.5
    assert told["retention"]["base"]["accuracy"] == 1.0
    assert told["retention"]["tuned"]["accuracy"] == 0.0
    assert told["seeds"][0]["mean"] == pytest.approx(0.32)
    assert told["provenance"]["fingerprints"]["benchmark"] == full.fingerprint("benchmark")
    assert told["provenance"]["fingerprints"]["weights_sha256"] == "5af3"


def test_regressions_are_the_rows_that_the_champion_had_right(full):
    told = read_report(full.store, full.task)
    lost = told["regressions"]
    assert [card["example_id"] for card in lost["answers"]] == ["exm_test_20", "exm_test_21"]
    assert (lost["n_better"], lost["n_worse"], lost["n_equal"]) == (6, 2, 16)
    # Side by side: the favourite, then the champion, with what each said.
    assert [answer["system"] for answer in lost["answers"][0]["answers"]][:2] == ["tuned_rag", "champion"]
    text = page_of(full).text
    assert "scores higher on 6 rows, lower on 2, the same on 16" in text


def test_regressions_need_a_champion(stored):
    rows = [dataset_row(n) for n in range(N_ROWS)]
    known = {"base": {0}, "tuned": {1, 2}}
    stored.publish("predictions", predictions_of(rows, known), "benchmark", "chunks")
    scores = stored.read("eval_report").filter(
        pl.col("system").is_in(list(known))
        & (pl.col("compared_to").is_null() | pl.col("compared_to").is_in(list(known)))
    )
    stored.publish("eval_report", scores, "predictions")
    assert read_report(stored.store, stored.task)["regressions"] is None
    assert "Regressions" not in page_of(stored).text


def test_errors_are_counted_by_topic_source_and_answerability(full):
    errors = read_report(full.store, full.task)["errors"]
    # Rows 18 to 23 are wrong: three of each kind, two of each document, one without an answer.
    assert {group["name"]: (group["n_rows"], group["n_wrong"]) for group in errors["kind"]} == {
        "number": (12, 3),
        "reason": (12, 3),
    }
    assert {group["name"]: group["n_wrong"] for group in errors["source"]} == {
        "https://plugs.example/0?a=1&b=2": 2,
        "https://plugs.example/1?a=1&b=2": 2,
        "javascript:alert(2)": 2,
    }
    assert {group["name"]: (group["n_rows"], group["n_wrong"]) for group in errors["answerable"]} == {
        "has an answer": (20, 5),
        "has no answer": (4, 1),
    }
    means = next(group["means"] for group in errors["kind"] if group["name"] == "number")
    assert means == {"tuned_rag": 0.75, "champion": 7 / 12, "base_rag": 0.25, "base": 1 / 12}


def test_page_after_a_rollback_says_who_answers_now(stored):
    store_gate(stored)
    told = [
        ("promoted", "charging@2", "charging@1", "charging@2"),
        ("rolled_back", "charging@1", "charging@2", "charging@1"),
    ]
    rows = [Promotion(AT, *decision, "Why.", [], "ada") for decision in told]
    stored.publish("promotions", rows[:1])
    rewrite_report(stored.store, TASK, stored.task.folder.parent)
    page = stored.store.root / "reports" / f"{TASK}.html"
    assert "Promoted: charging@2 answers now" in Reader(page.read_text()).text
    stored.publish("promotions", rows)
    rewrite_report(stored.store, TASK, stored.task.folder.parent)
    assert "Promoted, then rolled back: charging@1 answers now, not charging@2" in Reader(page.read_text()).text


def test_gate_on_another_version_is_not_shown(stored):
    store_gate(stored)
    assert read_report(stored.store, stored.task)["gate"]["model_version"] == "charging@2"
    # The same weights on other passages are another version, which nobody has judged.
    changed = stored.read("chunks").with_columns(ordinal=pl.lit(7, dtype=pl.Int64))
    stored.publish("chunks", changed)
    stored.publish("predictions", stored.read("predictions"), "benchmark", "chunks")
    told = read_report(stored.store, stored.task)
    assert (told["gate"], told["model_version"]) == (None, None)
    assert "Not promoted" not in page_of(stored).text


def test_table_that_waits_for_its_turn_is_not_shown(stored):
    row = Coverage("chk_0", None, None, None, 100, 1, 1, 0, 1, "covered", None)
    stored.publish("coverage", to_frame("coverage", [row]), "chunks")
    assert read_report(stored.store, stored.task)["coverage"]["n"] == 1
    stored.publish("chunks", stored.read("chunks").head(2))
    assert read_report(stored.store, stored.task)["coverage"] is None


def test_seeds_of_a_kept_model_are_shown_beside_rows_that_changed(full, tmp_path):
    shutil.copytree(full.store.root, tmp_path / "data")
    stored = Stored(LazyStore(tmp_path / "data"), full.task)
    stored.publish("adapter", stored.read("adapter"), "training_set")
    stored.publish("seed_scores", stored.read("seed_scores"), "adapter", "training_set")
    stored.publish("coverage", stored.read("coverage"), "chunks", "training_set")
    stored.publish("training_set", stored.read("training_set").head(3))
    told = read_report(stored.store, stored.task)
    assert told["seeds"] is not None
    # What does not look at the model is about the rows of today.
    assert told["coverage"] is None
    # Of an adapter that was trained on other rows yet, they are not.
    stored.publish("adapter", stored.read("adapter").with_columns(sha256=pl.lit("1")), "training_set")
    assert read_report(stored.store, stored.task)["seeds"] is None


def test_page_shows_the_predictions_and_rows_that_were_scored(stored):
    before = read_report(stored.store, stored.task)
    # A later run got as far as new test rows and new answers, and broke off before they were scored.
    stored.publish("benchmark", stored.read("benchmark").head(3))
    stored.publish("predictions", stored.read("predictions").head(7), "benchmark", "chunks")
    after = read_report(stored.store, stored.task)
    assert after["n_rows"] == N_ROWS
    assert after["errors"] == before["errors"]
    assert after["provenance"]["fingerprints"]["predictions"] == before["provenance"]["fingerprints"]["predictions"]


def test_page_of_a_task_without_evaluation_says_what_to_do(tmp_path, evaluated):
    empty = LazyStore(tmp_path / "data")
    with pytest.raises(
        UserError, match=rf"^The task {TASK} has not been evaluated yet: run `ev-platform run [^`]+`\.$"
    ):
        write_report(empty, evaluated.task)


def test_page_of_an_evaluation_without_permutation_tests_says_what_to_do(stored):
    store, scored = stored.store, stored.store.current("eval_report", TASK)
    older = store.read("eval_report", TASK).with_columns(pl.lit(None, pl.Float64).alias("p_value"))
    store.publish("eval_report", TASK, older, inputs=scored.inputs, config=scored.config)
    with pytest.raises(UserError, match=r"evaluated by an earlier release, .+ run `ev-platform run --task \w+`\.$"):
        write_report(store, stored.task)


def test_labels_have_their_confusion_and_their_f1(tmp_path):
    stored = store_labels(tmp_path)
    told = read_report(stored.store, stored.task)
    # "$ex $change" is taken for "card" every time; a slash in a label does not cut it in two.
    assert {(pair["right"], pair["given"]): pair["n"] for pair in told["confusion"]} == {
        ("card", "card"): 6,
        ("refund", "refund"): 6,
        ("card/lost", "card/lost"): 6,
        ("$ex $change", "card"): 6,
    }
    f1 = {line["label"]: line["f1"]["tuned"] for line in told["labels"]}
    assert f1 == {"card": pytest.approx(2 / 3), "refund": 1.0, "card/lost": 1.0, "$ex $change": 0.0}
    assert {line["n_rows"] for line in told["labels"]} == {6}
    read = page_of(stored)
    assert read.tags.count("svg") == 3
    assert "Accuracy and macro F1" in read.text
    assert "$ex $change card (6) 6 0.000" in re.sub(r"\s+", " ", read.text)
    assert "ROUGE" not in read.text


def test_labels_by_the_hundred_show_the_most_confused_ones(tmp_path):
    stored = store_labels(tmp_path, [f"label {n}" for n in range(77)], 154)
    text = page_of(stored).text
    assert "The 20 of 77 labels with most errors." in text
    assert "The 15 weakest of 77 labels." in text


def test_images_for_the_ui_hold_their_own_bytes(full):
    metrics = full.read("eval_report")
    for image in (scores_image(metrics), differences_image(metrics)):
        assert re.fullmatch(r"!\[\w+\]\(data:image/png;base64,[A-Za-z0-9+/=]+\)", image)


def test_images_for_the_ui_are_left_out_where_there_is_nothing_to_draw(full):
    alone = full.read("eval_report").filter(pl.col("compared_to").is_null() & (pl.col("system") == "base"))
    assert differences_image(alone) == ""
    assert scores_image(alone.head(0)) == ""
