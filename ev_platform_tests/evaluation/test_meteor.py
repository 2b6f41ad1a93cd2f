"""METEOR against the paper's formula, worked out by hand, and against nltk's own function."""

import pytest

from ev_platform.evaluation.metrics import score_rows


def meteor(predictions, references):
    return score_rows(predictions, references, only=("meteor",))["meteor"].to_list()


class Dictionary:
    """WordNet's place in nltk's function, with the synonyms that are given."""

    def __init__(self, **synonyms):
        self.synonyms = synonyms

    def synsets(self, word):
        return [Lemmas(self.synonyms[word])] if word in self.synonyms else []


class Lemmas:
    def __init__(self, names):
        self.names = names

    def lemmas(self):
        return [Lemma(name) for name in self.names]


class Lemma:
    def __init__(self, name):
        self._name = name

    def name(self):
        return self._name


@pytest.mark.parametrize(
    ("prediction", "reference", "matches", "n_predicted", "n_expected", "chunks"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 6, 6, 6, 1),
        # The example of Banerjee and Lavie (2005), section 2.2: six matches in two chunks.
        ("the president spoke to the audience", "the president then spoke to the audience", 6, 6, 7, 2),
        ("50 kW", "50 kW", 2, 2, 2, 1),
        ("Paris", "Paris", 1, 1, 1, 1),
        ("kW 50", "50 kW", 2, 2, 2, 2),
        ("a cable of 32 A", "32 A", 2, 5, 2, 1),
        # Stems: charging, charged; stations, station.
        ("charging stations", "charged station", 2, 2, 2, 1),
        ("It is 50 kW.", "it is 50 kW", 4, 4, 4, 1),
    ],
)
def test_meteor_of_a_worked_example_equals_the_paper_s_formula(
    prediction, reference, matches, n_predicted, n_expected, chunks
):
    precision, recall = matches / n_predicted, matches / n_expected
    mean = 10 * precision * recall / (recall + 9 * precision)
    expected = mean * (1 - 0.5 * (chunks / matches) ** 3)
    assert meteor([prediction], [reference]) == [pytest.approx(expected, abs=1e-12)]


def test_meteor_of_many_pairs_equals_nltk_s_own_function():
    from nltk.translate.meteor_score import single_meteor_score

    sentences = [
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "It is to insure the troops forever hearing the activity guidebook that party direct",
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "the guiding principle which guarantees the military forces always being under the command of the Party",
        "Größe 11 kW je Ladestation",
    ]
    pairs = [(p, r) for p in sentences for r in sentences]
    expected = [single_meteor_score(r.split(), p.split(), wordnet=Dictionary()) for p, r in pairs]
    assert meteor([p for p, _ in pairs], [r for _, r in pairs]) == expected
    # nltk documents this figure for the full METEOR: there no synonym is at work, so ours is the same.
    assert round(expected[2], 4) == 0.6944


def test_meteor_knows_stems_and_no_synonyms():
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    stem = PorterStemmer().stem
    assert stem("charging") == stem("charges")
    prediction, reference = "the car charges", "the auto charging"
    ours = meteor([prediction], [reference])[0]
    full = single_meteor_score(reference.split(), prediction.split(), wordnet=Dictionary(car=["auto"]))
    # the + charges in two chunks; with the synonym all three words in one.
    assert ours == pytest.approx((2 / 3) * (1 - 0.5))
    assert full == pytest.approx(1 - 0.5 / 27)


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", ""), ("", "50 kW"), ("50 kW", ""), ("...", "50 kW"), ("a", "b")]
)
def test_meteor_without_a_common_word_is_zero(prediction, reference):
    assert meteor([prediction], [reference]) == [0.0]


def test_meteor_of_no_rows_is_empty():
    assert meteor([], []) == []


def test_meteor_of_unequal_lengths_raises():
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        meteor(["a"], ["a", "b"])
