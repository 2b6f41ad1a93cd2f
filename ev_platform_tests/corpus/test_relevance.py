import pytest

from ev_platform.corpus.relevance import relevances
from ev_platform_tests.corpus.test_clean import ABOUT, CHARGING, GARDEN, PUBLIC

EVEN = 0.5  # the default of min_relevance
PROTOCOL = (
    "Call isFaulted() before ocppPermitsCharge() and handle UnlockConnector in the callback. The return type has been "
    "renamed, so include the new header. The charger sends BootNotification first; the server answers with a pause "
    "in seconds. Keep the WebSocket open, buffer the messages while it is closed and send them in order later. The "
    "library stores the transaction identifier in flash memory, so that the charger finds it again after a restart."
)
POWER_LINES = (
    "High-voltage links join two power grids so that electricity can flow to wherever it is most valuable. The owner "
    "keeps the congestion rent, but a regulator sets a floor and a cap, which lowers the risk for lenders. Converter "
    "stations at each end turn alternating into direct current; submarine cables of several hundred kilometres join "
    "Norway and England. What flows is settled every hour, and the losses on the way are shared by both operators."
)
BREAD = (
    "Mix flour, water, salt and a spoon of ripe starter. Let the dough rest for half an hour, then fold it four times. "
    "The yeast works slowly in the cold, so leave the loaf in the fridge overnight. Bake it in a covered pot at 240 "
    "degrees for thirty minutes and without the lid for twenty more, until the crust is dark and sounds hollow."
)
DRIVING = (
    "Press the brake pedal and move the lever down for Drive. The parking brake is released on its own. With cruise "
    "control the car keeps its distance from the car ahead; the tyres should be checked every month, and the pressure "
    "is printed on the door pillar. Fold the mirrors with the switch on the driver's door before a car wash."
)


def pages(*texts):
    return [{"text": text, "title": None, "url": f"https://a.example/{n}"} for n, text in enumerate(texts)]


def test_relevance_is_that_of_the_whole_text_and_not_of_its_best_window():
    long_garden = " ".join(f"{GARDEN} Bed {n}." for n in range(12))
    charging, garden, mixed = relevances(pages(CHARGING, long_garden, f"{long_garden} {CHARGING}"), ABOUT)
    assert charging > 0.9 > EVEN > mixed > garden


def test_relevance_of_no_text_is_no_figure():
    assert relevances([], ABOUT) == []


def test_relevance_of_a_page_is_the_same_whatever_else_was_crawled():
    alone = [relevances([page], ABOUT)[0] for page in pages(CHARGING, GARDEN, PROTOCOL)]
    assert relevances(pages(CHARGING, GARDEN, PROTOCOL), ABOUT) == pytest.approx(alone, abs=2e-4)


@pytest.mark.parametrize(
    "description",
    [
        "Answer questions about electric vehicle charging stations: connectors, protocols, installation, pricing.",
        "Answer the question about electric vehicle charging stations from the passages, in a few words or one short "
        "sentence.",
        "A help desk for drivers and site owners who want to know how EV chargers work, what they cost and how they "
        "are installed.",
        "Give short factual answers about charging infrastructure for electric cars, including OCPP, OCPI and home "
        "wallboxes.",
    ],
)
def test_relevance_parts_reference_pages_from_neighbouring_subjects_however_the_task_is_worded(description):
    near = relevances(pages(CHARGING, PUBLIC, PROTOCOL), description)
    far = relevances(pages(POWER_LINES, GARDEN, BREAD, DRIVING), description)
    assert min(near) > 0.8 > EVEN > max(far)


@pytest.mark.parametrize(
    ("description", "own"),
    [
        ("Recipes for baking bread: flour, yeast, fermentation, ovens.", BREAD),
        ("Answer questions of drivers about operating and maintaining their car from its owner's manual.", DRIVING),
        ("Explain how gardeners grow vegetables.", GARDEN),
        ("Answer questions on electricity interconnectors and the power grid.", POWER_LINES),
    ],
    ids=["bread", "driving", "garden", "power lines"],
)
def test_relevance_knows_other_domains_as_well(description, own):
    others = [text for text in (BREAD, DRIVING, GARDEN, POWER_LINES) if text != own]
    figures = relevances(pages(own, *others), description)
    assert figures[0] > 0.6 > 0.5 > max(figures[1:])


def test_relevance_counts_the_title():
    text = "Sizes and limits are in the table below. Ask the office for anything that is missing from this list."
    bare, titled = relevances(
        [{"text": text, "title": None}, {"text": text, "title": "Charging stations for electric vehicles"}], ABOUT
    )
    assert titled > EVEN > bare


def test_relevance_to_a_description_without_a_key_word_is_judged_by_meaning():
    (figure,) = relevances(pages(CHARGING), "Answer the question from the context.")
    assert 0 <= figure <= 1
