from ev_platform.corpus.relevance import relevances
from ev_platform_tests.corpus.test_clean import ABOUT, CHARGING, GARDEN


def pages(*texts):
    return [{"text": text, "title": None, "url": f"https://a.example/{n}"} for n, text in enumerate(texts)]


def test_relevance_is_that_of_the_whole_text_and_not_of_its_best_window():
    long_garden = " ".join(f"{GARDEN} Bed {n}." for n in range(12))
    charging, garden, mixed = relevances(pages(CHARGING, long_garden, f"{long_garden} {CHARGING}"), ABOUT)
    assert charging > 0.4 > 0.16 > mixed > garden


def test_relevance_of_no_text_is_no_figure():
    assert relevances([], ABOUT) == []
