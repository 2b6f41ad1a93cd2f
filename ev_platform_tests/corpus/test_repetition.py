import random

import pytest

from ev_platform.corpus.repetition import judge_repetition

SNIPPETS = (
    "Find electric vehicle charging stations near you on our map of the whole country.",
    "A level 2 charging station at home is like having your own fuel station at the door.",
    "Charging at home is the most convenient way to keep your car fully charged at night.",
    "Most units have a connection fee, with electricity charged at 30p for each kilowatt hour.",
    "The mobile app and the card open the door to most of the public charging points.",
    "Simply plug your car into the home charger every night and save both time and money.",
)
CITIES = ("Leeds", "York", "Hull", "Derby", "Bath", "Exeter", "Truro", "Oxford", "Dover", "Perth", "Luton", "Crewe")
FACTS = (
    "The contactor may be welded, so cut the supply before you open the cover of the station.",
    "The earth loop is open; measure it between the socket and the main earthing terminal.",
    "The residual current device has tripped because more than thirty milliamperes leaked away.",
    "The vehicle asked for ventilation, which this station in a garage cannot give it.",
    "The control pilot sits at minus twelve volts, so the diode in the vehicle is missing.",
    "The cable is too hot at the plug; let it cool down and look for bent contact pins.",
)


def test_repetition_of_shuffled_snippets_is_spam():
    rng = random.Random(1)
    text = "\n\n".join(" ".join(rng.sample(SNIPPETS, len(SNIPPETS))) for _ in range(5))
    assert judge_repetition(text) == (
        "repeated_sentences",
        "1.00 of 6 different sentences stand 3 times or more > 0.4",
    )


def test_repetition_of_a_page_that_is_laid_out_twice_is_no_spam():
    assert judge_repetition("\n".join(FACTS + SNIPPETS)) is None
    verdict = judge_repetition("\n".join(FACTS + SNIPPETS + FACTS))
    assert verdict is None


def test_repetition_of_one_sentence_for_every_city_is_spam():
    text = " ".join(
        f"Drivers in {city} want a home charger and our team in {city} will fit your home charger with the best "
        f"parts at the best price in all of {city} today."
        for city in CITIES
    )
    reason, figure = judge_repetition(text) or ("", "")
    assert reason == "repeated_phrases"
    assert figure.endswith("of the words are in repeated sequences of 8 > 0.7")


def test_repetition_of_the_phrase_to_be_found_by_is_keyword_stuffing():
    text = (
        "Looking for EV charger installation Leeds? Our EV charger installation Leeds team offers the best EV charger "
        "installation Leeds has to offer. EV charger installation Leeds prices start at 499. If you need EV charger "
        "installation Leeds, call our EV charger installation Leeds experts today. Cheap EV charger installation "
        "Leeds, fast EV charger installation Leeds and safe EV charger installation Leeds for every home."
    )
    reason, figure = judge_repetition(text) or ("", "")
    assert reason == "keyword_stuffing"
    assert figure.endswith("of the text is 'charger installation' > 0.25")


def test_repetition_of_few_words_in_every_order_is_spam():
    rng = random.Random(3)
    sentence = (
        "ev charger charging station best cheap fast home price near me deal install top quality service power "
        "wallbox car electric vehicle cost free offer the of"
    )
    words = sentence.split()
    text = ". ".join(" ".join(rng.choice(words) for _ in range(9)) for _ in range(60))
    reason, figure = judge_repetition(text) or ("", "")
    assert reason == "few_different_words"
    assert figure.startswith("26 different words in 540")


@pytest.mark.parametrize(
    "text",
    [
        # A list of faults with the same three lines under each: honest reference.
        "\n".join(
            f"## Fault {n}: {fact}\n\nWhat to do: unplug the cable, wait ten seconds and plug it in again.\n"
            for n, fact in enumerate(FACTS)
        ),
        # Price list and API reference: the same labels in every row.
        "\n".join(
            f"| Type {n} socket | {n} phases | {n * 8} A | Price on request, without the cable |" for n in range(40)
        ),
        "```\n" + '{"connector": {"type": "CCS", "power_kw": 150}}\n' * 60 + "```\n" + "\n".join(FACTS),
        "\n".join(
            f"**{name}**: {fact}"
            for name, fact in zip(("CCS", "Type 2", "NACS", "OCPP", "RFID", "RCD"), FACTS, strict=True)
        ),
    ],
    ids=["fault list", "price list", "API reference", "glossary"],
)
def test_repetition_in_an_honest_reference_page_is_let_be(text):
    assert judge_repetition(text) is None
