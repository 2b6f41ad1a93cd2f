import numpy as np
import pytest

from ev_platform.evaluation.statistics import SYSTEMS, Interval, mean_interval, paired_difference, verdict

BETTER, WORSE, UNCLEAR = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.05, -0.02, 0.12)


def differences(**given):
    """All six paired differences, unclear unless given, e.g. `tuned__base=BETTER`."""
    names = list(SYSTEMS)
    pairs = {(b, a): UNCLEAR for i, a in enumerate(names) for b in names[i + 1 :]}
    for pair, interval in given.items():
        key = tuple(pair.split("__"))
        assert key in pairs
        pairs[key] = interval
    return pairs


def test_mean_interval_many_rows_agrees_with_the_normal_interval():
    values = np.random.default_rng(5).normal(0.4, 0.2, 400)
    interval = mean_interval(values, resamples=10_000, seed=1)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_mean_interval_same_seed_repeats_and_other_arguments_do_not():
    values = np.random.default_rng(5).random(60)
    first = mean_interval(values, resamples=500, seed=1)
    assert mean_interval(list(values), resamples=500, seed=1) == first
    assert mean_interval(values, resamples=500, seed=2) != first
    assert mean_interval(values, resamples=1500, seed=1) != first


def test_mean_interval_leaves_the_global_random_state_alone():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    mean_interval([0.0, 1.0, 1.0], resamples=200, seed=1)
    assert np.random.random() == expected


def test_mean_interval_one_row_has_no_bounds():
    assert mean_interval([0.7], resamples=100, seed=1) == Interval(0.7, None, None)


def test_mean_interval_equal_values_has_no_width():
    assert mean_interval([0.5] * 9, resamples=100, seed=1) == Interval(0.5, 0.5, 0.5)


def test_mean_interval_no_rows_raises():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], resamples=100, seed=1)


def test_paired_difference_hard_and_easy_rows_cancel_out():
    rng = np.random.default_rng(7)
    difficulty = rng.normal(0, 1, 50)
    a, b = difficulty + 0.1 + rng.normal(0, 0.05, 50), difficulty
    paired = paired_difference(a, b, resamples=1000, seed=1)
    assert paired.is_above_zero
    assert paired.value == pytest.approx(a.mean() - b.mean())
    # The same scores taken as two independent samples would decide nothing: each mean is uncertain by ±0.28.
    assert mean_interval(a, resamples=1000, seed=1).low < mean_interval(b, resamples=1000, seed=1).high
    mirrored = paired_difference(b, a, resamples=1000, seed=1)
    assert (mirrored.low, mirrored.high) == pytest.approx((-paired.high, -paired.low))


def test_paired_difference_unequal_lengths_raises_with_both():
    with pytest.raises(ValueError, match="4 values cannot be paired with 1"):
        paired_difference([1, 2, 3, 4], [1], resamples=100, seed=1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "inconclusive"),
        ({"tuned_rag__base": BETTER, "tuned_rag__base_rag": BETTER}, "ship tuned + retrieval"),
        # Better than the base, but not than retrieval alone.
        ({"tuned_rag__base": BETTER}, "inconclusive"),
        ({"tuned_rag__base": BETTER, "base_rag__base": BETTER}, "ship base + retrieval"),
        ({"tuned_rag__base": BETTER, "tuned__base": BETTER}, "ship tuned"),
        ({"tuned_rag__base": BETTER, "tuned__base": BETTER, "tuned_rag__tuned": BETTER}, "ship tuned"),
        # Better than retrieval alone, which is no reason if the untouched base is as good.
        ({"tuned_rag__base_rag": BETTER, "base_rag__base": WORSE}, "inconclusive"),
        # Retrieval adds nothing measurable to a tuned model that is itself better than the base and retrieval.
        (
            {
                "tuned_rag__base": BETTER,
                "tuned_rag__base_rag": BETTER,
                "tuned__base": BETTER,
                "tuned__base_rag": BETTER,
                "base_rag__base": BETTER,
            },
            "ship tuned",
        ),
        (
            {
                "tuned_rag__base": BETTER,
                "tuned_rag__base_rag": BETTER,
                "tuned_rag__tuned": BETTER,
                "tuned__base": BETTER,
                "base_rag__base": BETTER,
            },
            "ship tuned + retrieval",
        ),
        # Tuned and base + retrieval level: the one without a training run.
        ({"tuned__base": BETTER, "base_rag__base": BETTER}, "ship base + retrieval"),
        (dict.fromkeys(["tuned__base", "base_rag__base", "tuned_rag__base"], WORSE), "inconclusive"),
        # Too few rows for an interval.
        (
            dict.fromkeys(["tuned_rag__base", "tuned_rag__base_rag", "tuned__base"], Interval(0.5, None, None)),
            "inconclusive",
        ),
        # A lower bound of exactly 0 is not above 0.
        ({"tuned__base": Interval(0.1, 0.0, 0.2)}, "inconclusive"),
    ],
)
def test_verdict_each_part_has_to_earn_its_place(given, expected):
    assert verdict(differences(**given)).verdict == expected


def test_verdict_pairs_given_the_other_way_round_says_the_same():
    pairs = differences(tuned_rag__base=BETTER, tuned_rag__base_rag=BETTER)
    assert verdict({(b, a): -interval for (a, b), interval in pairs.items()}) == verdict(pairs)


def test_verdict_shipped_reason_gives_the_figures_against_every_other_system():
    pairs = differences(tuned_rag__base=BETTER, tuned_rag__base_rag=Interval(0.121, 0.06, 0.18))
    reason = verdict(pairs).reason
    assert reason == (
        "Tuning on top of retrieval does it: token F1 of tuned + retrieval is "
        "+0.200 against base (better; 95 % interval +0.100 to +0.300), "
        "+0.121 against base + retrieval (better; 95 % interval +0.060 to +0.180), "
        "+0.050 against tuned (no clear difference; 95 % interval -0.020 to +0.120)."
    )


def test_verdict_inconclusive_reason_gives_the_figures_that_decided():
    reason = verdict(differences(tuned__base=WORSE)).reason
    assert "tuned -0.200 against base (worse; 95 % interval -0.300 to -0.100)" in reason
    assert "tuned + retrieval +0.050 against base + retrieval (no clear difference" in reason


def test_verdict_task_without_retrieval_compares_what_there_is():
    assert verdict({("tuned", "base"): BETTER}).verdict == "ship tuned"
    assert verdict({("tuned", "base"): UNCLEAR}).verdict == "inconclusive"


def test_verdict_systems_that_all_have_passages_are_judged_against_base_with_retrieval():
    assert verdict({("tuned_rag", "base_rag"): BETTER}).verdict == "ship tuned + retrieval"
    assert verdict({("tuned_rag", "base_rag"): UNCLEAR}).verdict == "inconclusive"


def test_verdict_names_the_metric_that_decided():
    assert verdict({("tuned", "base"): BETTER}, "accuracy").reason == (
        "Tuning does it: accuracy of tuned is +0.200 against base (better; 95 % interval +0.100 to +0.300)."
    )
    assert verdict({("tuned", "base"): WORSE}, "accuracy").reason.startswith(
        "No system has earned its place by accuracy: tuned -0.200 against base (worse"
    )


def test_verdict_without_an_untuned_system_raises():
    with pytest.raises(ValueError, match="compared to the base"):
        verdict({("tuned_rag", "tuned"): BETTER})


def test_verdict_missing_pair_raises_with_its_name():
    pairs = differences()
    del pairs["tuned_rag", "base_rag"]
    with pytest.raises(ValueError, match=r"base_rag and tuned_rag is missing"):
        verdict(pairs)


def test_verdict_nothing_compared_to_the_base_raises():
    with pytest.raises(ValueError, match="compared to the base"):
        verdict({("teacher", "tuned"): BETTER})
