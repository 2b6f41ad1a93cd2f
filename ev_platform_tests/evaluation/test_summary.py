import polars as pl
import pytest
import sacrebleu

from ev_platform.errors import UserError
from ev_platform.evaluation.statistics import Interval, verdict
from ev_platform.evaluation.summary import column_of, deciding_metric, differences_of, summarise
from ev_platform.records import schema_of
from ev_platform.tasks.types import TASK_TYPES, get_task_type


@pytest.fixture(scope="module")
def metrics(predictions):
    return summarise(predictions, resamples=1000, seed=17)


def find(metrics, system, metric, compared_to=None):
    is_row = (pl.col("system") == system) & (pl.col("metric") == metric) & pl.col("compared_to").eq_missing(compared_to)
    return metrics.row(by_predicate=is_row, named=True)


def test_summarise_scores_are_the_figures_of_the_rows(metrics, predictions):
    assert metrics.schema == schema_of("eval_report")
    rows = predictions.filter(pl.col("system") == "tuned")
    row = find(metrics, "tuned", "exact_match")
    assert (row["value"], row["n_rows"]) == (6 / 20, 20)
    assert 0.05 < row["low"] < 0.3 < row["high"] < 0.55
    assert find(metrics, "tuned", "token_f1")["value"] == pytest.approx(rows["token_f1"].mean())
    assert find(metrics, "tuned", "rouge_l")["value"] == pytest.approx(rows["rouge_l"].mean())
    expected = sacrebleu.corpus_bleu(rows["prediction"].to_list(), [rows["reference"].to_list()]).score
    assert find(metrics, "tuned", "bleu")["value"] == pytest.approx(expected)
    assert find(metrics, "tuned", "bleu")["low"] is None


def test_summarise_speed_uses_milliseconds_and_generated_tokens(metrics):
    # Latencies of base are 100 to 119 ms, its answers 4, 5, 6, 4, ... tokens: 99 in all.
    assert find(metrics, "base", "latency_ms_p50")["value"] == 109.5
    assert find(metrics, "base", "latency_ms_p95")["value"] == pytest.approx(118.05)
    assert find(metrics, "base", "tokens_per_second")["value"] == pytest.approx(99 / 2.19)
    assert find(metrics, "base", "answer_tokens")["value"] == pytest.approx(99 / 20)


def test_summarise_gold_retrieved_counts_rows_with_a_gold_passage_only(metrics):
    # 19 of the 20 questions have a gold passage; 0, 4, 8, 12, 16 miss it.
    row = find(metrics, "tuned_rag", "gold_retrieved")
    assert (row["value"], row["n_rows"]) == (14 / 19, 19)
    assert metrics.filter((pl.col("metric") == "gold_retrieved") & ~pl.col("system").str.ends_with("_rag")).is_empty()


def test_summarise_differences_are_system_minus_simpler_system(metrics):
    row = find(metrics, "tuned_rag", "exact_match", "base_rag")
    assert row["value"] == pytest.approx(8 / 20)
    assert row["low"] > 0
    assert find(metrics, "base_rag", "latency_ms", "base")["value"] == pytest.approx(200)
    pairs = metrics.drop_nulls("compared_to").select("system", "compared_to").unique(maintain_order=True).rows()
    assert pairs == [
        ("base_rag", "base"),
        ("tuned", "base"),
        ("tuned_rag", "base"),
        ("tuned", "base_rag"),
        ("tuned_rag", "base_rag"),
        ("tuned_rag", "tuned"),
    ]


def test_summarise_differences_carry_the_verdict(metrics):
    differences = differences_of(metrics, "token_f1")
    row = find(metrics, "tuned_rag", "token_f1", "base_rag")
    assert differences["tuned_rag", "base_rag"] == Interval(row["value"], row["low"], row["high"])
    assert verdict(differences).verdict == "ship tuned + retrieval"


def test_summarise_shuffled_rows_give_the_same_table(metrics, predictions):
    shuffled = predictions.sample(fraction=1, shuffle=True, seed=4)
    assert summarise(shuffled, resamples=1000, seed=17).equals(metrics)


def test_summarise_one_question_has_scores_without_intervals(predictions):
    metrics = summarise(predictions.filter(pl.col("example_id") == "exm_00"), resamples=1000, seed=17)
    assert metrics["low"].null_count() == metrics["high"].null_count() == len(metrics)
    assert verdict(differences_of(metrics, "token_f1")).verdict == "inconclusive"


def test_summarise_further_system_comes_after_the_known_ones(predictions):
    teacher = predictions.filter(pl.col("system") == "base").with_columns(system=pl.lit("a_teacher"))
    metrics = summarise(pl.concat([teacher, predictions]), resamples=100, seed=17)
    systems = metrics.filter(pl.col("compared_to").is_null())["system"].unique(maintain_order=True)
    assert systems.to_list() == ["base", "base_rag", "tuned", "tuned_rag", "a_teacher"]
    assert find(metrics, "a_teacher", "token_f1", "base")["value"] == 0


def test_summarise_missing_answer_raises_with_the_system(predictions):
    with pytest.raises(UserError, match=r"tuned \(19 rows\) and base \(20 rows\)"):
        summarise(
            predictions.filter((pl.col("system") != "tuned") | (pl.col("example_id") != "exm_03")),
            resamples=100,
            seed=17,
        )


def test_summarise_doubled_answers_raises(predictions):
    with pytest.raises(UserError, match="once each"):
        summarise(pl.concat([predictions, predictions]), resamples=100, seed=17)


def test_summarise_no_predictions_raises(predictions):
    with pytest.raises(UserError, match="the table predictions is empty"):
        summarise(predictions.clear(), resamples=100, seed=17)


@pytest.fixture(scope="module")
def label_metrics(predictions):
    """The two systems without retrieval; question n has the label A, B or C, and what base says is A each time."""
    rows = predictions.filter(pl.col("system").is_in(["base", "tuned"])).with_columns(
        reference=pl.col("example_id").str.slice(-2).cast(pl.Int64).map_elements(lambda n: "ABC"[n % 3], pl.String)
    )
    rows = rows.with_columns(
        prediction=pl.when(pl.col("system") == "base").then(pl.lit("A")).otherwise(pl.col("reference"))
    )
    rows = rows.with_columns(exact_match=(pl.col("prediction") == pl.col("reference")).cast(pl.Float64))
    return summarise(rows, resamples=500, seed=17, is_labels=True)


def test_summarise_labels_have_accuracy_and_macro_f1_in_place_of_scores_of_words(label_metrics):
    assert find(label_metrics, "base", "accuracy")["value"] == pytest.approx(7 / 20)
    assert find(label_metrics, "base", "accuracy")["low"] < 7 / 20 < find(label_metrics, "base", "accuracy")["high"]
    # A: precision 7/20, recall 1; B and C are never found.
    assert find(label_metrics, "base", "macro_f1")["value"] == pytest.approx(2 * 0.35 / 1.35 / 3)
    assert find(label_metrics, "tuned", "macro_f1")["value"] == 1.0
    assert not {"exact_match", "token_f1", "rouge_l", "bleu", "gold_retrieved"} & set(label_metrics["metric"])


def test_summarise_labels_difference_of_accuracy_carries_the_verdict(label_metrics):
    metric = deciding_metric(get_task_type("classification"))
    assert metric == "accuracy"
    judged = verdict(differences_of(label_metrics, metric), "accuracy")
    assert judged.verdict == "ship tuned"
    assert "accuracy of tuned is +0.650 against base (better" in judged.reason


@pytest.mark.parametrize("name", sorted(TASK_TYPES))
def test_summarise_every_task_type_is_decided_by_a_metric_of_its_report(predictions, name):
    task_type = TASK_TYPES[name]
    systems = [system for system, _, _ in task_type.systems()]
    rows = predictions.filter(pl.col("system").is_in(systems))
    metrics = summarise(rows, resamples=100, seed=17, is_labels=not task_type.has_corpus)
    metric = deciding_metric(task_type)
    # Of the 20 questions, base knows 1, tuned 6, base + retrieval 9 and tuned + retrieval 17.
    expected = "ship tuned + retrieval" if "tuned_rag" in systems else "ship tuned"
    assert verdict(differences_of(metrics, metric)).verdict == expected
    assert column_of(metric) in rows.columns
