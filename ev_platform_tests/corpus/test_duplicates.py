import json
import os
import random
import subprocess
import sys
import time

import pytest

from ev_platform.corpus import duplicates
from ev_platform.corpus.duplicates import MAX_GROUP, lsh_shape, similar_pairs
from ev_platform.errors import UserError
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
                found.append((a, b, jaccard))
    return found


def random_text(rng, n_words):
    return " ".join(f"w{rng.randrange(5000)}" for _ in range(n_words))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_similar_pairs_are_those_that_comparing_everything_finds(threshold):
    rng = random.Random(3)
    texts = []
    for _ in range(12):
        base = " ".join(rng.choice("abcdefghijklmnopqrstuvwxyz") + str(rng.randrange(40)) for _ in range(120))
        texts += [base, base.upper(), *(reworded(base, n, seed=n) for n in (1, 2, 4, 7, 11))]
    expected = brute_force(texts, threshold)
    found = similar_pairs(texts, threshold)
    assert len(expected) >= 12
    # LSH may miss a pair next to the threshold, and never invents one.
    assert set(found) <= set(expected)
    assert len(found) >= 0.98 * len(expected)
    assert found == sorted(found)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_similar_pairs_just_above_the_threshold_are_found_as_often_as_the_formula_says(threshold):
    rng = random.Random(5)
    texts = []
    for _ in range(500):
        words = random_text(rng, 154).split()  # 150 shingles
        n_common = -(-300 * threshold // (1 + threshold))  # of 150 + 150 shingles, for this Jaccard or a bit more
        texts += [
            " ".join(words),
            " ".join([*words[: int(n_common) + 4], *random_text(rng, 150 - int(n_common)).split()]),
        ]
    pairs = [(left, left + 1) for left in range(0, len(texts), 2) if brute_force(texts[left : left + 2], threshold)]
    found = {(a, b) for a, b, _ in similar_pairs(texts, threshold)}
    assert len(pairs) == 500
    assert len(found & set(pairs)) >= 0.98 * len(pairs)


def test_lsh_shape_keeps_recall_at_the_threshold_within_the_hashes():
    for percent in range(5, 101):
        threshold = percent / 100
        bands, rows = lsh_shape(threshold)
        assert bands * rows <= duplicates.MAX_HASHES
        assert 1 - (1 - threshold**rows) ** bands >= duplicates.RECALL_AT_THRESHOLD
    assert (lsh_shape(0.5), lsh_shape(0.8)) == ((72, 4), (32, 9))


@pytest.mark.parametrize("threshold", [0, -0.5, 1.1])
def test_similar_pairs_with_a_threshold_out_of_range_are_refused(threshold):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        similar_pairs(["a", "b"], threshold)


@pytest.mark.parametrize("texts", [[], ["one text"], ["", " \n", "..."], ["", "words here", "\u2028"]])
def test_similar_pairs_of_nothing_comparable_are_none(texts):
    assert similar_pairs(texts, 0.5) == []


def test_similar_pairs_of_texts_shorter_than_a_shingle_are_found():
    assert similar_pairs(["two words", "two words", "other words", "two", "two words two"], 0.8) == [(0, 1, 1.0)]


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        ("Plug in, then charge!", "plug in then\n\tcharge"),
        ("What is ISO 15118?", "WHAT IS  ISO-15118"),
        ("Free", "free."),
        ("one two three four five six", "one two\u2028three four\xa0five -- six"),
        ("Le café de la gare", "Le cafe\u0301 de la gare"),
        ("ΟΔΟΣ ΤΗΣ ΠΟΛΗΣ", "οδος της πολης"),
        ("İstanbul'da şarj", "istanbul'da ŞARJ"),
        ("ﬁrst ofﬁce in town", "first office in town"),
        ("充电桩,安装指南。", "充电桩 安装指南"),
        ("bad \ud800 surrogate", "bad surrogate"),
    ],
)
def test_similar_pairs_of_texts_equal_but_for_case_space_and_punctuation_are_exact(text, copy):
    assert similar_pairs(["something else", text, copy], 0.8) == [(1, 2, 1.0)]


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("Der Ladepunkt hat 11 kW", "Der Ladepunkt hat 22 kW"),
        ("हिन्दी में चार्जिंग स्टेशन", "हिन्दू में चार्जिंग स्टेशन"),
        ("abc def", "abcdef"),
        ("a b", "b a"),
    ],
)
def test_similar_pairs_of_short_texts_that_differ_in_a_word_are_none(text, changed):
    assert similar_pairs([text, changed], 0.8) == []


@pytest.mark.parametrize("first", [0x4E00, 0x3042, 0x0E01])
def test_similar_pairs_in_scripts_without_spaces_compare_characters(first):
    rng = random.Random(1)
    text = "".join(chr(first + rng.randrange(40)) for _ in range(400))
    other = "".join(chr(first + rng.randrange(40)) for _ in range(400))
    pairs = similar_pairs([text, other, text[:200] + chr(first + 41) + text[201:]], 0.8)
    # One character of 400 is in 5 of 396 5-grams.
    assert pairs == [(0, 2, pytest.approx(391 / 401, abs=0.01))]


def test_similar_pairs_of_copies_beyond_the_group_limit_are_a_star_that_reaches_all():
    base = "charging at home needs a wall box and a permit from the grid operator"
    near = base + " today"
    texts = [near, *[base] * 20_000]
    started = time.perf_counter()
    pairs = similar_pairs(texts, 0.8)
    assert time.perf_counter() - started < 10
    assert len(pairs) == 2 * 20_000 - 1
    assert {(a, b) for a, b, _ in pairs} == {(0, b) for b in range(1, 20_001)} | {(1, b) for b in range(2, 20_001)}


def test_similar_pairs_of_copies_within_the_group_limit_are_all_pairs():
    pairs = similar_pairs(["the same five words here"] * MAX_GROUP, 0.5)
    assert len(pairs) == MAX_GROUP * (MAX_GROUP - 1) // 2


def test_similar_pairs_of_one_template_grow_linearly_and_still_reach_every_text():
    rng = random.Random(2)
    words = random_text(rng, 150).split()

    def filled_in():
        at = rng.randrange(150)
        return " ".join([*words[:at], f"n{rng.randrange(10**6)}", *words[at + 1 :]])

    texts = [filled_in() for _ in range(1500)]
    pairs = similar_pairs(texts, 0.5)
    assert len(pairs) < 1500 * 100  # of 1,124,250
    assert {b for _, b, _ in pairs} == set(range(1, 1500))
    assert all(brute_force([texts[a], texts[b]], 0.5) == [(0, 1, jaccard)] for a, b, jaccard in pairs[:50])


def test_similar_pairs_of_a_million_words_take_seconds():
    rng = random.Random(4)
    words = [f"w{rng.randrange(10**5)}" for _ in range(1_000_000)]
    started = time.perf_counter()
    pairs = similar_pairs([" ".join(words), " ".join(words[:900_000]), " ".join(words[900_000:])], 0.8)
    assert time.perf_counter() - started < 15
    assert pairs == [(0, 1, pytest.approx(0.9, abs=1e-4))]


def test_similar_pairs_do_not_depend_on_blocks_threads_or_hash_seed(monkeypatch):
    rng = random.Random(6)
    base = [random_text(rng, rng.randrange(0, 300)) for _ in range(150)]
    texts = base + [reworded(text, 3, seed=1) for text in base if len(text.split()) > 20]
    pairs = similar_pairs(texts, 0.5)
    assert len(pairs) > 50
    monkeypatch.setattr(duplicates, "BLOCK_CHARS", 2000)
    monkeypatch.setattr(duplicates.os, "cpu_count", lambda: 1)
    assert similar_pairs(texts, 0.5) == pairs
    program = (
        "import json, sys; from ev_platform.corpus.duplicates import similar_pairs;"
        "print(similar_pairs(json.load(sys.stdin), 0.5))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(texts),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(pairs)
