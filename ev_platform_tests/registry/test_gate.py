"""The gate's checks, over reports that real predictions give; each fault is planted where it would arise."""

import json
import random

import polars as pl
import pytest

from ev_platform.dataset.overlap import Overlap
from ev_platform.evaluation.statistics import Interval
from ev_platform.evaluation.summary import judge as judge_scores
from ev_platform.evaluation.summary import summarise
from ev_platform.records import Prediction, to_frame
from ev_platform.registry.gate import CHECKS, Evidence, Replayed, judge
from ev_platform.registry.strangers import Strangers
from ev_platform.tasks.config import PromotionConfig
from ev_platform.tasks.types import get_task_type
from ev_platform_tests.registry.registered import OPEN_BOOK, SERVING

CONFIG = PromotionConfig()
# Mean token F1 and latency of each system.
BETTER = {"base": (0.1, 100), "base_rag": (0.3, 200), "tuned": (0.2, 110), "tuned_rag": (0.6, 220)}
WORSE = {"base": (0.1, 100), "base_rag": (0.6, 200), "tuned": (0.1, 110), "tuned_rag": (0.3, 220)}
CHAMPION = BETTER | {"champion": (0.5, 220)}
CLOSE_BY = {"base": {"accuracy": 0.8, "perplexity": 20.0}, "tuned": {"accuracy": 0.75, "perplexity": 22.0}}


def answers(systems, n_rows=40, abstains=None):
    """Return predictions whose scores spread around a mean; the first quarter of the rows has no answer."""
    rows = []
    for system, (mean, latency_ms) in systems.items():
        noise = random.Random(system)
        for n in range(n_rows):
            score = min(1.0, max(0.0, mean + noise.uniform(-0.2, 0.2)))
            is_answerable = n >= n_rows // 4
            share = (abstains or {}).get(system, (1.0, 0.0))[is_answerable]
            known = dict.fromkeys(Prediction.__dataclass_fields__)
            known |= {"system": system, "example_id": f"exm_{n:03}", "question": f"q{n}", "reference": "a b"}
            known |= {"prediction": "a", "context_chunk_ids": [], "n_completion_tokens": 1}
            known |= {"latency_ms": latency_ms + noise.random()} | dict.fromkeys(["exact_match", "rouge_l"], score)
            known |= dict.fromkeys(["rouge_1", "rouge_2", "meteor", "chrf", "token_f1"], score)
            known |= {"is_answerable": is_answerable, "is_abstention": n % 10 < round(10 * share)}
            rows.append(Prediction(**known))
    return to_frame("predictions", rows)


def evidence(systems=BETTER, *, n_rows=40, abstains=None, config=CONFIG, **changes):
    """Return the evidence about a version, everything in order but what is named."""
    metrics = summarise(answers(systems, n_rows, abstains), resamples=200, seed=1)
    judged = judge_scores(metrics, OPEN_BOOK, config.min_rows)
    version = {"model_version": "tiny@2", "verdict": judged.verdict, "serving": json.dumps(SERVING)}
    known = {
        "version": version,
        "is_champions_own": False,
        "champion": "tiny@1" if "champion" in systems else None,
        "metrics": metrics,
        "general": CLOSE_BY,
        "lost": Interval(0.05, -0.05, 0.15),
        "leaks": [],
        "n_training_rows": 6,
        "flaw": None,
        "token_agreement": 0.97,
        "strangers": Strangers(50, 0.98, 0.96),
        "replayed": Replayed(10, 10),
        "taint": None,
    }
    return Evidence(**known | changes)


def judged(given, config=CONFIG, task_type=OPEN_BOOK):
    """Return the rows of the gate by check."""
    return {row["check"]: row for row in judge(given, task_type, config).to_dicts()}


def failed(rows):
    return [check for check, row in rows.items() if not row["passed"]]


def test_gate_good_version_passes_every_check_and_tells_its_figures():
    rows = judged(evidence(CHAMPION))
    assert failed(rows) == []
    assert list(rows) == list(CHECKS)
    assert {(row["model_version"], row["champion"]) for row in rows.values()} == {("tiny@2", "tiny@1")}
    assert rows["better_than_base"]["reason"].startswith("The verdict is 'ship tuned + retrieval'; token F1 of tuned")
    assert rows["better_than_base"]["value"] > 0.2
    assert "1.00 times the 221 ms of the champion tiny@1" in rows["latency"]["reason"]
    assert all(row["reason"].endswith(".") for row in rows.values())


def test_gate_without_a_champion_passes_and_says_so():
    rows = judged(evidence(BETTER))
    assert failed(rows) == []
    assert rows["not_worse_than_champion"]["reason"] == "There is no champion to compare with."
    assert "1.10 times the 201 ms of base + retrieval" in rows["latency"]["reason"]


def test_gate_tuned_model_that_is_worse_than_its_base_fails():
    rows = judged(evidence(WORSE))
    assert failed(rows) == ["better_than_base"]
    assert rows["better_than_base"]["value"] < -0.2
    assert "'ship base + retrieval'" in rows["better_than_base"]["reason"]
    assert rows["better_than_base"]["reason"].endswith("the tuned model is worse.")


def test_gate_benchmark_of_8_rows_is_inconclusive_and_fails():
    given = evidence(BETTER, n_rows=8)
    assert given.version["verdict"] == "inconclusive"
    rows = judged(given)
    assert failed(rows) == ["better_than_base", "enough_rows"]
    assert rows["enough_rows"]["reason"] == "There are 8 test rows; nothing can be concluded from fewer than 20."


@pytest.mark.parametrize(("champion", "passes"), [(0.5, True), (0.6, False), (0.9, False)])
def test_gate_compares_the_lower_end_with_the_champion(champion, passes):
    rows = judged(evidence(CHAMPION | {"champion": (champion, 220)}))
    row = rows["not_worse_than_champion"]
    assert (row["passed"], row["limit"]) == (passes, -0.02)
    assert passes == (row["value"] > -0.02)
    assert "against the champion tiny@1 (95 % interval" in row["reason"]


def test_gate_margin_decides_how_much_may_be_lost_against_the_champion():
    given = evidence(CHAMPION | {"champion": (0.66, 220)})
    assert failed(judged(given)) == ["not_worse_than_champion"]
    assert failed(judged(given, PromotionConfig(champion_margin=0.3))) == []


def test_gate_champion_that_could_not_be_evaluated_leaves_it_to_a_person():
    rows = judged(evidence(BETTER, champion="tiny@1"))
    assert failed(rows) == ["not_worse_than_champion"]
    assert "tiny@1 could not be loaded" in rows["not_worse_than_champion"]["reason"]


def test_gate_slow_version_fails_by_the_ratio_and_by_the_bound():
    slow = evidence(BETTER | {"tuned_rag": (0.6, 500)})
    row = judged(slow)["latency"]
    assert not row["passed"] and 2.4 < row["value"] < 2.6 and row["limit"] == 2.0
    bounded = PromotionConfig(max_latency_ratio=3, max_latency_ms_p95=400)
    row = judged(slow, bounded)["latency"]
    assert not row["passed"] and 500 < row["value"] < 502 and row["limit"] == 400
    assert judged(slow, PromotionConfig(max_latency_ratio=3))["latency"]["passed"]


def test_gate_version_that_has_certainly_forgotten_what_the_base_knew_fails():
    row = judged(evidence(lost=Interval(0.3, 0.11, 0.5)))["retention"]
    assert (row["passed"], row["value"], row["limit"]) == (False, 0.11, 0.1)
    assert "+11% to +50%" in row["reason"]


def test_gate_loss_of_general_questions_that_chance_may_explain_is_allowed():
    assert judged(evidence(lost=Interval(0.3, 0.1, 0.5)))["retention"]["passed"]


@pytest.mark.parametrize("perplexity", [70.0, float("nan")])
def test_gate_version_that_forgot_the_language_fails(perplexity):
    tuned = {"accuracy": 0.8, "perplexity": perplexity}
    row = judged(evidence(general=CLOSE_BY | {"tuned": tuned}))["retention"]
    assert (row["passed"], row["limit"]) == (False, 2.0)


def test_gate_encoder_has_no_general_ability_to_lose():
    row = judged(evidence(general={}, lost=None))["retention"]
    assert row["passed"] and "writes no text" in row["reason"]


@pytest.mark.parametrize(
    ("tuned", "value"),
    [((0.5, 0.0), 0.5), ((1.0, 0.3), 0.3)],  # declines too little of what has no answer, or too much of the rest
)
def test_gate_version_that_declines_worse_than_the_champion_fails(tuned, value):
    row = judged(evidence(CHAMPION, abstains={"tuned_rag": tuned}))["abstention"]
    assert not row["passed"]
    assert row["value"] == pytest.approx(value, abs=0.05)
    assert "the champion tiny@1" in row["reason"]


@pytest.mark.parametrize(("own", "passed"), [(0.80, False), (0.87, True), (1.0, True)])
def test_gate_version_that_answers_more_strangers_than_the_champion_fails(own, passed):
    row = judged(evidence(CHAMPION, strangers=Strangers(50, own, 0.96)))["abstention"]
    assert row["passed"] == passed
    assert f"of 50 questions outside the task it declines {own:.0%} (the champion tiny@1: 96%)" in row["reason"]


def test_gate_strangers_without_a_champion_are_told_and_decide_nothing():
    row = judged(evidence(strangers=Strangers(50, 0.1)))["abstention"]
    assert row["passed"]
    assert "it declines 10% (there is no champion to compare with)" in row["reason"]


def test_gate_strangers_that_the_champion_could_not_be_asked_are_told_and_decide_nothing():
    row = judged(evidence(CHAMPION, strangers=Strangers(50, 0.1)))["abstention"]
    assert row["passed"]
    assert "it declines 10% (the champion tiny@1 could not be asked)" in row["reason"]


def test_gate_leaked_training_row_fails_and_is_quoted():
    leak = Overlap("equals_test_question", "How long?", "How long?", 1.0, "exm_1", "exm_2")
    rows = judged(evidence(leaks=[leak]))
    assert failed(rows) == ["nothing_leaked"]
    assert "1 training rows meet a test row, such as 'How long?' and 'How long?'" in rows["nothing_leaked"]["reason"]


def test_gate_export_that_disagrees_or_descends_from_another_adapter_fails():
    row = judged(evidence(token_agreement=0.6))["export_agrees"]
    assert (row["passed"], row["value"], row["limit"]) == (False, 0.6, 0.85)
    row = judged(evidence(flaw="The merged model was made from another adapter."))["export_agrees"]
    assert (row["passed"], row["reason"]) == (False, "The merged model was made from another adapter.")
    assert judged(evidence(token_agreement=None))["export_agrees"]["passed"]


@pytest.mark.parametrize(
    "replayed", [Replayed(10, 9, "'q' was answered 'b' in place of 'a'"), Replayed(10, 0, error="Another template.")]
)
def test_gate_endpoint_that_answers_otherwise_fails(replayed):
    rows = judged(evidence(replayed=replayed))
    assert failed(rows) == ["serving_agrees"]
    assert (replayed.difference or replayed.error) in rows["serving_agrees"]["reason"]
    assert judged(evidence(replayed=Replayed(0, 0)))["serving_agrees"]["passed"]


def test_gate_tells_rows_that_the_endpoint_does_not_accept():
    row = judged(evidence(replayed=Replayed(10, 10, n_left_out=3)))["serving_agrees"]
    assert row["passed"]
    assert row["reason"].endswith("; 3 test rows that the endpoint does not accept were left out.")
    row = judged(evidence(replayed=Replayed(0, 0, n_left_out=3)))["serving_agrees"]
    assert row["reason"] == "Nothing was replayed: 3 test rows that the endpoint does not accept were left out."


@pytest.mark.parametrize("is_own", [True, False])
def test_gate_without_the_champions_answers_passes_its_own_weights_only(is_own):
    rows = judged(evidence(champion="tiny@1", is_champions_own=is_own))
    assert rows["not_worse_than_champion"]["passed"] == is_own
    assert ("the champion's own" in rows["not_worse_than_champion"]["reason"]) == is_own
    assert rows["better_than_base"]["passed"]


def test_gate_labels_are_judged_by_accuracy_and_have_nothing_to_decline():
    kind = get_task_type("classification")
    rows = answers({"base": (0.1, 100), "tuned": (0.9, 100)}).with_columns(
        exact_match=(pl.col("token_f1") > 0.5).cast(pl.Float64), is_abstention=None, is_answerable=None
    )
    metrics = summarise(rows, resamples=200, seed=1, is_labels=True)
    verdict = judge_scores(metrics, kind, CONFIG.min_rows).verdict
    serving = json.dumps(SERVING | {"has_retrieval": False})
    version = {"model_version": "tiny@2", "verdict": verdict, "serving": serving}
    found = judged(evidence(metrics=metrics, version=version, strangers=None), task_type=kind)
    assert failed(found) == []
    assert "accuracy of tuned is +1.000 against base" in found["better_than_base"]["reason"]
    assert "answers are labels" in found["abstention"]["reason"]
