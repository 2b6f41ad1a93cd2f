import polars as pl
import pytest
import sacrebleu

from ev_platform.errors import UserError
from ev_platform.evaluation.statistics import Difference, verdict
from ev_platform.evaluation.summary import (
    column_of,
    deciding_metric,
    differences_of,
    judge,
    mean_scores,
    sd_of_difference,
    summarise,
)
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


def test_summarise_champion_without_some_gold_passages_has_no_figure_for_finding_them(predictions):
    champion = predictions.filter(pl.col("system") == "tuned_rag").with_columns(system=pl.lit("champion"))
    same = summarise(pl.concat([predictions, champion]), resamples=10, seed=17)
    assert find(same, "champion", "gold_retrieved")["value"] == 14 / 19
    # The page of one passage was edited: the champion answers from it under another id.
    is_edited = pl.col("gold_chunk_id") == "chk_3"
    champion = champion.with_columns(gold_chunk_id=pl.when(~is_edited).then("gold_chunk_id"))
    other = summarise(pl.concat([predictions, champion]), resamples=10, seed=17)
    assert find(other, "tuned_rag", "gold_retrieved")["value"] == 14 / 19
    gold = other.filter(pl.col("metric") == "gold_retrieved")
    assert set(gold["system"]) == {"base_rag", "tuned_rag"}


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
    expected = Difference(row["value"], row["low"], row["high"], row["p_value"], 20)
    assert differences["tuned_rag", "base_rag"] == expected
    assert verdict(differences).verdict == "ship tuned + retrieval"
    judged = judge(metrics, get_task_type("open_book_qa"), 20)
    assert judged == verdict(differences) and "token F1" in judged.reason
    assert judge(metrics, get_task_type("open_book_qa"), 21).verdict == "inconclusive"


def test_summarise_shuffled_rows_give_the_same_table(metrics, predictions):
    shuffled = predictions.sample(fraction=1, shuffle=True, seed=4)
    assert summarise(shuffled, resamples=1000, seed=17).equals(metrics)


def test_summarise_one_question_has_scores_without_intervals(predictions):
    metrics = summarise(predictions.filter(pl.col("example_id") == "exm_00"), resamples=1000, seed=17)
    assert metrics["low"].null_count() == metrics["high"].null_count() == len(metrics)
    assert verdict(differences_of(metrics, "token_f1")).verdict == "inconclusive"


def beside(predictions, name, like="base", **changes):
    """Add a system that answered as another one did."""
    rows = predictions.filter(pl.col("system") == like).with_columns(system=pl.lit(name), **changes)
    return pl.concat([rows, predictions])


def test_summarise_systems_are_told_floors_first_and_strangers_last(predictions):
    rows = predictions
    for name in ("teacher", "champion", "first_sentence", "a_stranger"):
        rows = beside(rows, name)
    metrics = summarise(rows, resamples=100, seed=17)
    systems = metrics.filter(pl.col("compared_to").is_null())["system"].unique(maintain_order=True)
    main = ["base", "base_rag", "tuned", "tuned_rag"]
    assert systems.to_list() == ["first_sentence", *main, "champion", "teacher", "a_stranger"]
    pairs = metrics.drop_nulls("compared_to").select("system", "compared_to").unique(maintain_order=True).rows()
    assert pairs[6:] == [(name, other) for other in ("first_sentence", "champion") for name in main]
    compared = {other: set(metrics.filter(pl.col("compared_to") == other)["metric"]) for other in ("base", "champion")}
    assert compared["base"] == compared["champion"] == {"token_f1", "rouge_l", "exact_match", "latency_ms"}
    # How fast a floor is interests nobody.
    assert find(metrics, "tuned", "exact_match", "first_sentence")["value"] == pytest.approx(5 / 20)
    assert metrics.filter(pl.col("compared_to") == "first_sentence", pl.col("metric") == "latency_ms").is_empty()


def test_summarise_teacher_whose_speed_nobody_knows_has_scores_only(predictions):
    unknown = dict.fromkeys(("latency_ms", "n_completion_tokens", "n_prompt_tokens"), None)
    unknown = {name: pl.lit(None, predictions.schema[name]) for name in unknown}
    metrics = summarise(beside(predictions, "teacher", "tuned_rag", **unknown), resamples=100, seed=17)
    known = metrics.filter(pl.col("system") == "teacher")["metric"].to_list()
    assert "token_f1" in known and "bleu" in known
    assert not {"answer_tokens", "tokens_per_second", "latency_ms_p50", "latency_ms_p95"} & set(known)
    assert find(metrics, "teacher", "exact_match")["value"] == 17 / 20


def test_summarise_every_row_score_has_its_mean_and_interval(predictions):
    names = ("rouge_1", "rouge_2", "chrf", "meteor")
    rows = predictions.with_columns(**{name: pl.col("rouge_l") / (n + 2) for n, name in enumerate(names)})
    metrics = summarise(rows, resamples=100, seed=17)
    for n, name in enumerate(names):
        row = find(metrics, "tuned", name)
        assert row["value"] == pytest.approx(find(metrics, "tuned", "rouge_l")["value"] / (n + 2))
        assert row["low"] < row["value"] < row["high"]


def test_summarise_abstention_and_support_count_the_rows_they_are_about(predictions):
    number = pl.col("example_id").str.slice(-2).cast(pl.Int64)
    rows = predictions.filter(pl.col("system").is_in(["base_rag", "tuned_rag"])).with_columns(
        # Rows 16 to 19 have no answer; tuned_rag declines 17 to 19 and, wrongly, 0 and 1.
        is_answerable=number < 16,
        is_abstention=(pl.col("system") == "tuned_rag") & ((number >= 17) | (number < 2)),
        groundedness=pl.when(number % 2 == 0).then(1.0).otherwise(0.5),
    )
    metrics = summarise(rows, resamples=100, seed=17)
    recall, false = (find(metrics, "tuned_rag", name) for name in ("abstention_recall", "abstention_false"))
    assert (recall["value"], recall["n_rows"]) == (3 / 4, 4)
    assert (false["value"], false["n_rows"]) == (2 / 16, 16)
    assert find(metrics, "base_rag", "abstention_recall")["value"] == 0
    # 15 answers are left, 2 to 16; of these 8 have even numbers.
    support, grounded = (find(metrics, "tuned_rag", name) for name in ("citation_support", "groundedness"))
    assert (support["value"], support["n_rows"]) == (8 / 15, 15)
    assert grounded["value"] == pytest.approx((8 + 7 * 0.5) / 15)


def test_summarise_p_values_stand_beside_differences_only(metrics, predictions):
    row = find(metrics, "tuned_rag", "exact_match", "base_rag")
    # 8 rows are won and none lost: of the 2^8 sign patterns, two are as far from 0.
    assert row["p_value"] == pytest.approx(2 / 2**8, abs=0.003)
    assert (
        metrics.filter(pl.col("compared_to").is_null())["p_value"].null_count()
        == metrics.filter(pl.col("compared_to").is_null()).height
    )
    assert find(metrics, "base_rag", "latency_ms", "base")["p_value"] == pytest.approx(1e-4, abs=1e-4)


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


def test_summarise_labels_have_a_row_for_each_class_and_each_cell_of_the_confusion(label_metrics):
    assert find(label_metrics, "base", "f1/A")["value"] == pytest.approx(2 * 0.35 / 1.35)
    assert find(label_metrics, "base", "f1/B")["value"] == 0.0
    cells = label_metrics.filter(pl.col("metric").str.starts_with("confusion/"))
    counts = {(row["system"], row["metric"]): row["value"] for row in cells.iter_rows(named=True)}
    assert {metric: n for (system, metric), n in counts.items() if system == "base"} == {
        "confusion/A/A": 7.0,
        "confusion/B/A": 7.0,
        "confusion/C/A": 6.0,
    }
    assert {metric for system, metric in counts if system == "tuned"} == {f"confusion/{x}/{x}" for x in "ABC"}
    assert cells["low"].null_count() == cells.height and set(cells["n_rows"]) == {20}


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
    # Of the 20 questions, base knows 1, tuned 6, base + retrieval 9 and tuned + retrieval 17. Five rows won and none
    # lost is what a coin gives once in 16 times, although the bootstrap's interval lies above 0.
    expected = "ship tuned + retrieval" if "tuned_rag" in systems else "inconclusive"
    assert verdict(differences_of(metrics, metric)).verdict == expected
    assert column_of(metric) in rows.columns


def test_mean_scores_are_those_of_the_report(metrics, predictions):
    scores = {(system, metric): (value, n) for system, metric, value, n in mean_scores(predictions, is_labels=False)}
    for metric in ("exact_match", "token_f1", "rouge_l"):
        assert scores["tuned", metric] == (pytest.approx(find(metrics, "tuned", metric)["value"]), 20)
    assert len(scores) == 4 * 7
    labels = predictions.with_columns(reference=pl.lit("A"), prediction=pl.lit("A"))
    assert {metric: value for _, metric, value, _ in mean_scores(labels, is_labels=True)}["macro_f1"] == 1.0


def test_sd_of_difference_is_that_of_the_pair_on_equal_terms(predictions):
    kind = get_task_type("open_book_qa")
    pair = [predictions.filter(pl.col("system") == name)["token_f1"].to_numpy() for name in ("tuned_rag", "base_rag")]
    assert sd_of_difference(predictions, kind) == pytest.approx((pair[0] - pair[1]).std(ddof=1))
    bare = predictions.filter(pl.col("system").is_in(["base", "tuned"]))
    labels = get_task_type("classification")
    # Of 20 rows, 5 are won: the variance of the differences is 20/19 x 0.25 x 0.75.
    assert sd_of_difference(bare, labels) == pytest.approx((20 / 19 * 0.25 * 0.75) ** 0.5)


def test_sd_of_difference_where_nothing_differs_or_nothing_is_there_is_unknown(predictions):
    kind = get_task_type("open_book_qa")
    assert sd_of_difference(predictions.clear(), kind) is None
    assert sd_of_difference(predictions.with_columns(token_f1=0.5), kind) is None
    assert sd_of_difference(predictions.filter(pl.col("example_id") == "exm_03"), kind) is None


KIND = get_task_type("open_book_qa")


def test_judge_planted_tuned_model_that_is_worse_than_its_base_is_not_shipped(predictions):
    swapped = {"base": "tuned", "tuned": "base", "base_rag": "tuned_rag", "tuned_rag": "base_rag"}
    worse = predictions.with_columns(pl.col("system").replace_strict(swapped))
    metrics = summarise(worse, resamples=500, seed=17)
    judged = judge(metrics, KIND, 20)
    assert judged.verdict == "ship base + retrieval"
    assert differences_of(metrics, "token_f1")["tuned_rag", "base_rag"].is_worse()
    # Given passages each, there is nothing to ship.
    with_passages = worse.filter(pl.col("system").str.ends_with("_rag"))
    judged = judge(summarise(with_passages, resamples=500, seed=17), KIND, 20)
    assert judged.verdict == "inconclusive" and "(worse; 95 % interval -0." in judged.reason


def test_judge_eight_rows_on_which_tuned_knows_everything_conclude_nothing(predictions):
    # Of the first 8 questions, tuned + retrieval knows all, base the first only.
    few = predictions.filter(pl.col("example_id") < "exm_08")
    judged = judge(summarise(few, resamples=500, seed=17), KIND, 20)
    assert judged.verdict == "inconclusive"
    assert judged.reason.startswith("Nothing can be concluded (too few rows: 8 of at least 20); by token F1: ")
    assert judge(summarise(few, resamples=500, seed=17), KIND, 8).verdict.startswith("ship")
