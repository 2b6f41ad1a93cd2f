import pytest

from ev_platform.corpus.language import detect_language
from ev_platform_tests.corpus.test_clean import CHARGING, GERMAN


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (CHARGING, "en"),
        (GERMAN, "de"),
        ("Une voiture électrique se recharge à une borne au moyen d'un câble qui porte une fiche.", "fr"),
        (
            "| Strom | Leitung |\n| --- | --- |\n| [Die Ladestation](https://en.example/the-station) | lädt das Auto |",
            "de",
        ),
    ],
)
def test_language_is_that_of_the_words_and_not_of_links(text, language):
    found, score = detect_language(text)
    assert found == language
    assert 0.5 < score <= 1.0
