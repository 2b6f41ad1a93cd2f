import time

import pytest

from ev_platform.corpus.language import detect_language
from ev_platform_tests.corpus.test_clean import CHARGING, GERMAN, PUBLIC


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (CHARGING, "en"),
        (CHARGING.upper(), "en"),
        (GERMAN, "de"),
        ("Une voiture électrique se recharge à une borne au moyen d'un câble qui porte une fiche.", "fr"),
        (
            "| Strom | Leitung |\n| --- | --- |\n| [Die Ladestation](https://en.example/the-station) | lädt das Auto |",
            "de",
        ),
        (f"{GERMAN}\n\n```\n{'const chargingStation = new Station(the_power, the_cable);' * 40}\n```", "de"),
        ("| Leistung | `the_power_of_the_station` | Die Ladestation gibt dem Auto den Strom |\n" * 6, "de"),
    ],
    ids=["prose", "capitals", "German", "French", "table", "code", "identifiers"],
)
def test_language_is_that_of_the_words_and_not_of_links_and_code(text, language):
    found, score = detect_language(text)
    assert found == language
    assert 0.5 < score <= 1.0


@pytest.mark.parametrize("first", [0, 1])
def test_language_of_a_mixed_page_is_that_of_most_of_it_with_its_share(first):
    parts = [f"{CHARGING} {PUBLIC}", GERMAN]
    found, score = detect_language("\n\n".join([parts[first], parts[1 - first]]))
    assert found == "en"
    assert 0.65 < score < 0.95


def test_declared_language_decides_only_where_the_text_leaves_it_open():
    german = f"{GERMAN} {GERMAN}"[:300]
    half = f"{PUBLIC[:300]}\n\n{german}"  # two blocks, one of each
    assert {detect_language(half, declared)[0] for declared in ("en", "de")} == {"en", "de"}
    assert detect_language(GERMAN, "en")[0] == "de"
    assert detect_language(half, "fr") == detect_language(half)


def test_language_of_no_letters_is_undetermined():
    assert detect_language("") == ("und", 0.0)
    assert detect_language("| 230 | 400 |\n| --- | --- |") == ("und", 0.0)


@pytest.mark.parametrize("text", ["](a" * 300_000, "a" * 2_000_000, "@" * 1_000_000, "`a " * 300_000])
def test_language_of_hostile_text_takes_linear_time(text):
    start = time.monotonic()
    detect_language(text)
    assert time.monotonic() - start < 10
