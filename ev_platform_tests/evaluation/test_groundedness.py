import json
from pathlib import Path

import pytest

from ev_platform.evaluation.metrics import MIN_GROUNDED, groundedness

PASSAGE = "The onboard charger of the Lumen S accepts up to 11 kW. Charging takes two weeks' patience at 7.4kW."


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("The onboard charger accepts 11 kW.", 1.0),  # onboard, charger, accepts, 11 kW
        ("The chargers are accepting 11 kW", 1.0),  # by their stems
        ("The onboard charger accepts 22 kW.", 3 / 4),
        ("11 kWh", 0.0),  # another unit
        ("11", 1.0),  # a number without a unit stands for any
        ("11000 W", 1.0),  # the same amount in another unit
        ("14 days", 1.0),
        ("7.4 kW", 1.0),
        ("7 kW", 0.0),
        ("a diesel engine", 0.0),
        ("diesel, diesel and the charger", 1 / 3),  # each as often as the answer holds it
        ("Yes.", 1.0),  # claims nothing of its own
        ("", 1.0),
    ],
)
def test_groundedness_is_the_share_of_content_words_and_numbers_that_the_passages_hold(answer, share):
    assert groundedness(answer, [PASSAGE]) == pytest.approx(share)


def test_groundedness_takes_all_passages_together_and_none_for_nothing():
    assert groundedness("charger and engine", [PASSAGE, "An engine."]) == 1.0
    assert groundedness("charger and engine", []) == 0.0


def test_threshold_tells_the_passage_of_a_sound_answer_from_others():
    file = Path(__file__).parents[1] / "dataset" / "labelled.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sound = [row for row in rows if row["label"] == "good" and row["is_answerable"]]
    own = [groundedness(row["answer"], [row["passage"]]) >= MIN_GROUNDED for row in sound]
    others = [
        groundedness(row["answer"], [other["passage"]]) >= MIN_GROUNDED
        for n, row in enumerate(sound)
        for other in sound[n % 7 :: 7]
        if other["passage"] != row["passage"]
    ]
    assert len(sound) > 90 and len(others) > 900
    assert sum(own) / len(own) >= 0.9 and sum(others) / len(others) <= 0.08


def test_answer_with_one_wrong_number_among_three_words_is_not_supported():
    assert groundedness("The onboard charger accepts 22 kW.", [PASSAGE]) < MIN_GROUNDED
