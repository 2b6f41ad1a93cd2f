import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp  # noqa: TID253 - what is tested is compared with it

from ev_platform.evaluation.statistics import (
    MAIN,
    Difference,
    Interval,
    mean_interval,
    minimum_detectable_effect,
    paired_difference,
    permutation_p,
    verdict,
)

BETTER, WORSE = Difference(0.2, 0.1, 0.3, 0.001, 50), Difference(-0.2, -0.3, -0.1, 0.001, 50)
UNCLEAR = Difference(0.05, -0.02, 0.12, 0.2, 50)


def differences(**given):
    """All six paired differences, unclear unless given, e.g. `tuned__base=BETTER`."""
    names = list(MAIN)
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
            dict.fromkeys(
                ["tuned_rag__base", "tuned_rag__base_rag", "tuned__base"], Difference(0.5, None, None, 1.0, 1)
            ),
            "inconclusive",
        ),
        # A lower bound of exactly 0 is not above 0.
        ({"tuned__base": Difference(0.1, 0.0, 0.2, 0.01, 50)}, "inconclusive"),
        # The interval says so, the test does not.
        ({"tuned__base": Difference(0.1, 0.01, 0.2, 0.05, 50)}, "inconclusive"),
        ({"tuned__base": Difference(0.1, 0.01, 0.2, None, 50)}, "inconclusive"),
        # One row short of enough.
        ({"tuned__base": Difference(0.2, 0.1, 0.3, 0.001, 19)}, "inconclusive"),
        ({"tuned__base": Difference(0.2, 0.1, 0.3, 0.001, 20)}, "ship tuned"),
    ],
)
def test_verdict_each_part_has_to_earn_its_place(given, expected):
    assert verdict(differences(**given)).verdict == expected


def test_verdict_pairs_given_the_other_way_round_says_the_same():
    pairs = differences(tuned_rag__base=BETTER, tuned_rag__base_rag=BETTER)
    assert verdict({(b, a): -interval for (a, b), interval in pairs.items()}) == verdict(pairs)


def test_verdict_shipped_reason_gives_the_figures_against_every_other_system():
    pairs = differences(tuned_rag__base=BETTER, tuned_rag__base_rag=Difference(0.121, 0.06, 0.18, 0.01, 50))
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


def test_verdict_eight_rows_conclude_nothing_however_clear_they_look():
    pairs = {pair: Difference(0.9, 0.8, 1.0, 0.0078, 8) for pair in differences()}
    judged = verdict(pairs)
    assert judged.verdict == "inconclusive"
    assert judged.reason.startswith(
        "Nothing can be concluded (too few rows: 8 of at least 20); by token F1: base + retrieval +0.900 against base "
        "(95 % interval +0.800 to +1.000); "
    )
    assert verdict(pairs, min_rows=8).verdict == "ship tuned + retrieval"


def test_verdict_planted_worse_tuned_model_is_not_shipped():
    rng = np.random.default_rng(3)
    base = rng.random(60)
    scores = {"base": base, "base_rag": base + 0.1, "tuned": base - 0.2, "tuned_rag": base - 0.05}
    noisy = {name: values + rng.normal(0, 0.1, 60) for name, values in scores.items()}
    names = list(noisy)
    pairs = {
        (b, a): paired_difference(noisy[b], noisy[a], resamples=500, seed=1)
        for n, a in enumerate(names)
        for b in names[n + 1 :]
    }
    judged = verdict(pairs)
    assert judged.verdict == "ship base + retrieval"
    assert pairs["tuned", "base"].is_worse() and not pairs["tuned", "base"].is_better()
    without_retrieval = verdict({("tuned", "base"): pairs["tuned", "base"]})
    assert without_retrieval.verdict == "inconclusive" and "against base (worse;" in without_retrieval.reason


def test_verdict_floors_champion_and_teacher_take_no_part():
    pairs = differences(tuned__base=BETTER)
    others = {("tuned", "majority"): WORSE, ("tuned", "champion"): WORSE, ("champion", "base"): BETTER}
    assert verdict(pairs | others) == verdict(pairs)


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_permutation_p_few_rows_are_gone_through_and_equal_scipy(n):
    values = np.random.default_rng(n).normal(0.3, 1, n).round(1)
    expected = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True)
    assert permutation_p(values, seed=1) == permutation_p(values, seed=2) == pytest.approx(expected.pvalue, abs=1e-12)


def test_permutation_p_many_rows_are_drawn_and_come_near_scipy_and_the_t_test():
    values = np.random.default_rng(1).normal(0.1, 0.4, 80)
    p = permutation_p(values, seed=1)
    # 4 standard errors of 9,999 draws.
    bound = 4 * np.sqrt(p * (1 - p) / 9_999)
    drawn = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=50_000, vectorized=True, rng=2)
    assert p == pytest.approx(drawn.pvalue, abs=bound)
    assert p == pytest.approx(ttest_1samp(values, 0).pvalue, abs=bound + 0.002)
    assert permutation_p(values, seed=1) == p != permutation_p(values, seed=2)
    assert permutation_p(-values, seed=1) == p


def test_permutation_p_known_values():
    assert permutation_p([1.0] * 8, seed=1) == 2 / 2**8
    assert permutation_p([0.0] * 30, seed=1) == permutation_p([0.0], seed=1) == 1.0
    assert permutation_p([5.0] * 200, seed=1) == 1 / 10_000
    # Sums that differ in their last digit only are equal: of the 8 patterns, 4 reach 0.6.
    assert permutation_p([0.1, 0.2, 0.3], seed=1) == 2 / 8
    assert permutation_p([0.3, -0.1, -0.2], seed=1) == 1.0


def test_permutation_p_no_rows_raises():
    with pytest.raises(ValueError, match="no differences"):
        permutation_p([], seed=1)


def test_paired_difference_intervals_cover_and_the_test_keeps_its_level():
    """300 benchmarks of 40 rows: a true difference of 0.1 is covered nine times in ten, 0 is called "better" rarely."""
    rng = np.random.default_rng(11)
    n_covered = n_better = 0
    for seed in range(300):
        noise = rng.normal(0, 0.3, 40)
        shifted = paired_difference(noise + 0.1, np.zeros(40), resamples=200, seed=seed)
        n_covered += shifted.low <= 0.1 <= shifted.high
        level = Difference(noise.mean(), shifted.low - 0.1, shifted.high - 0.1, permutation_p(noise, seed=seed), 40)
        n_better += level.is_better()
    # 95 % less what a percentile interval of 40 rows and 200 resamples lacks; binomial standard error 1.3 %.
    assert 0.89 <= n_covered / 300 <= 0.98
    assert n_better / 300 <= 0.06


def test_minimum_detectable_effect_known_values():
    # Paired t-test, two-sided, 80 %: G*Power has 34 pairs for d = 0.5 (power 0.808) and 199 for d = 0.2.
    assert minimum_detectable_effect(34, 1.0) == pytest.approx(0.495, abs=0.001)
    assert minimum_detectable_effect(199, 1.0) == pytest.approx(0.1995, abs=0.001)
    assert minimum_detectable_effect(84, 0.3) == 0.3 * minimum_detectable_effect(84, 1.0)


def test_minimum_detectable_effect_falls_with_every_row_to_the_normal_figure():
    effects = [minimum_detectable_effect(n, 1.0) for n in (2, 3, 5, 8, 13, 20, 50, 84, 200, 1000, 2000)]
    assert effects == sorted(effects, reverse=True)
    assert effects[-1] == pytest.approx((1.95996 + 0.84162) / np.sqrt(2000), rel=0.002)


def test_minimum_detectable_effect_is_found_four_times_in_five():
    rng = np.random.default_rng(2)
    n, sd = 30, 0.4
    effect = minimum_detectable_effect(n, sd)
    found = [permutation_p(rng.normal(effect, sd, n), seed=seed) < 0.05 for seed in range(300)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


def test_minimum_detectable_effect_one_row_raises():
    with pytest.raises(ValueError, match="1 rows have no spread"):
        minimum_detectable_effect(1, 0.5)


def test_verdict_interval_that_the_test_does_not_confirm_is_told_with_p():
    reason = verdict({("tuned", "base"): Difference(0.25, 0.05, 0.45, 0.0625, 20)}).reason
    assert reason == (
        "No system has earned its place by token F1: tuned +0.250 against base "
        "(no clear difference; 95 % interval +0.050 to +0.450, p 0.062)."
    )
