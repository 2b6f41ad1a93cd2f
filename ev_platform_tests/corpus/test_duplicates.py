import random

import pytest

from ev_platform.corpus.duplicates import similar_pairs
from ev_platform_tests.corpus.test_clean import reworded


def brute_force(texts, threshold):
    def shingles(text):
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    sets = [shingles(text) for text in texts]
    found = []
    for a in range(len(sets)):
        for b in range(a + 1, len(sets)):
            jaccard = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
            if jaccard >= threshold:
                found.append((a, b, pytest.approx(jaccard)))
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_similar_pairs_are_those_that_comparing_everything_finds(threshold):
    rng = random.Random(3)
    texts = []
    for _ in range(12):
        base = " ".join(rng.choice("abcdefghijklmnopqrstuvwxyz") + str(rng.randrange(40)) for _ in range(120))
        texts += [base, *(reworded(base, n, seed=n) for n in (1, 2, 4, 7, 11))]
    expected = brute_force(texts, threshold)
    found = similar_pairs(texts, threshold)
    assert len(expected) > 15
    # LSH may miss a pair next to the threshold, and never invents one.
    assert all(pair in expected for pair in found)
    assert len(found) >= 0.98 * len(expected)
    assert found == sorted(found) == similar_pairs(texts, threshold)


def test_similar_pairs_of_texts_shorter_than_a_shingle_are_found():
    assert similar_pairs(["two words", "two words", "other words"], 0.8) == [(0, 1, 1.0)]
