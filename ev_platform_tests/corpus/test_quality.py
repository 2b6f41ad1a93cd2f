import pytest

from ev_platform.corpus.quality import judge_quality
from ev_platform_tests.corpus.test_clean import CHARGING, GARDEN, PUBLIC

# 30 different words, so that rules on repetition stay quiet.
WORDS = (
    "ample brisk candid daring eager fluent gentle honest ideal jolly keen lively merry noble open proud quiet ready "
)
WORDS += "solid tidy useful vivid warm young zesty able bold calm deep easy"
# ---- quality, rule by rule: the last text that passes and the first that does not ----


def lines(n_marked, mark, n=10):
    """Return ten lines of which so many are marked; each is another."""
    words = WORDS.split()
    return "\n".join(
        mark.format(" ".join(words[i : i + 6])) if i < n_marked else " ".join(words[i : i + 6]) for i in range(n)
    )


@pytest.mark.parametrize(
    ("passes", "trips", "reason", "figure"),
    [
        ("word " * 20, "word " * 19, "too_short", "19 words < 20"),
        ("wor " * 20, "wor " * 19 + "we", "word_length", "mean word length 3.0 outside 3 to 12"),
        ("abcdefghijkl " * 20, "abcdefghijkl " * 19 + "abcdefghijklm", "word_length", "mean word length 12.1 outside"),
        ("word " * 12 + "1234 " * 8, "word " * 11 + "1234 " * 9, "few_words", "0.55 of the words hold a letter < 0.6"),
        (WORDS + " # # # #", WORDS + " # # # # # #", "symbols", "0.17 '#' or ellipses per word > 0.15"),
        (lines(9, "- {}"), lines(10, "- {}"), "bullets", "1.00 of the lines are list items > 0.9"),
        (lines(3, "{}..."), lines(4, "{}..."), "ellipses", "0.40 of the lines end in an ellipsis > 0.3"),
        (WORDS, WORDS + " Lorem ipsum", "placeholder", "lorem ipsum"),
        (WORDS + " in Javascript", WORDS + " Enable Javascript", "script_notice", "'Enable Javascript' in 32 words"),
    ],
    ids=["too short", "short words", "long words", "numbers", "symbols", "bullets", "ellipses", "lorem", "script"],
)
def test_quality_rule_trips_at_its_bound_with_its_figure(passes, trips, reason, figure):
    assert judge_quality(passes, 20) is None
    verdict = judge_quality(trips, 20)
    assert verdict is not None and verdict[0] == reason
    assert verdict[1].startswith(figure)


def test_quality_drops_a_list_of_keywords_for_want_of_stop_words():
    keywords = " ".join(f"{a} {b}" for a in WORDS.split()[:10] for b in WORDS.split()[10:16])
    assert judge_quality(keywords, 20) == (
        "no_sentences",
        "0 of the words and be have of that the to with < 1",
    )
    assert judge_quality(f"the {keywords}", 20) is None
    assert judge_quality(keywords, 20, language="de") is None


@pytest.mark.parametrize("title", ["404", "Error 404", "404 - Not found", "Page Not Found", "Page not found | A"])
def test_quality_drops_a_short_page_that_was_not_found(title):
    verdict = judge_quality(WORDS, 20, title)
    assert verdict is not None and verdict[0] == "not_found_page"
    assert judge_quality(f"{CHARGING} {PUBLIC} {GARDEN}", 20, "404 errors of the API") is None


def test_quality_lets_headings_code_and_tables_be():
    page = "\n".join(
        ["# Prices", "## Limits", "### More", WORDS, "```", *["{'limit': 230}"] * 30, "```"]
        + ["| Limit | 230 volts and not a volt more |"] * 30
    )
    assert judge_quality(page, 20) is None


def test_quality_of_a_text_without_spaces_counts_its_characters():
    sentences = [
        "充电站通过电缆为电动汽车充电。",
        "运营商记录每次充电的电量与价格。",
        "驾驶员可以用卡或手机开始充电。",
        "电工每年检查一次插头和电缆。",
    ]
    assert judge_quality("\n\n".join(sentences), 50, language="zh") is None
    verdict = judge_quality(sentences[0], 50, language="zh")
    assert verdict is not None and verdict[0] == "too_short"
