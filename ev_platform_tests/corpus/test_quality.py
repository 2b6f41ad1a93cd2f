import pytest

from ev_platform.corpus.quality import judge_quality

# ---- quality, rule by rule: the last text that passes and the first that does not ----


@pytest.mark.parametrize(
    ("passes", "trips", "reason", "figure"),
    [
        ("word " * 20, "word " * 19, "too_short", "19 words < 20"),
        ("wor " * 20, "wor " * 19 + "we", "word_length", "mean word length 3.0 outside 3 to 12"),
        ("abcdefghijkl " * 20, "abcdefghijkl " * 19 + "abcdefghijklm", "word_length", "mean word length 12.1 outside"),
        ("word " * 12 + "1234 " * 8, "word " * 11 + "1234 " * 9, "few_words", "0.55 of the words hold a letter < 0.6"),
        (
            "\n".join(
                ["A line of more than twenty letters."] * 3 + [f"And line number {i} of the text." for i in range(4)]
            ),
            "\n".join(
                ["A line of more than twenty letters."] * 4 + [f"And line number {i} of the text." for i in range(4)]
            ),
            "repeated_lines",
            "0.38 of the lines are repeats > 0.3",
        ),
    ],
    ids=["too short", "short words", "long words", "numbers", "repeats"],
)
def test_quality_rule_trips_at_its_bound_with_its_figure(passes, trips, reason, figure):
    assert judge_quality(passes, 20) is None
    verdict = judge_quality(trips, 20)
    assert verdict is not None and verdict[0] == reason
    assert verdict[1].startswith(figure)


def test_quality_lets_short_lines_repeat():
    assert judge_quality("\n".join(["Limit: 230 volts"] * 20), 20) is None
