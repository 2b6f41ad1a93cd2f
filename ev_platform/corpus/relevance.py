"""How much a page is about the task's domain, judged from the task's description in words.

What belongs here: the one figure that `min_relevance` is compared with. What does not: whether a text is any good
(`quality`), its language (`language`).

A page is judged by itself: what else was crawled has no say, so one changed page never flips another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ev_platform.retrieval import embed, load_embedder

# Embedding windows: MiniLM reads 256 tokens, about 180 English words.
WINDOW_WORDS = 180
MAX_WINDOWS = 8

# Set on 52 pages on charging and 13 on other things, of 20 sites, with several descriptions of the same task. EVEN is
# in the middle of the gap, 0.04 to 0.09, between all but one of the latter and all but three of the former. Tried on 48
# encyclopedia articles, each with the description "Answer questions about <its title>.": every article is kept for its
# own title, and 1.2 of the 47 others on average.
MENTIONS_HALF = 2.5  # mentions in 1,000 words that count half of what mentions can
MENTIONS_MOST = 10.0  # as many count in one window: one paragraph on chargers makes no page on chargers
MENTIONS_WEIGHT = 0.6  # the most that mentions can add, in cosines
STEADY_WORDS = 100  # added to a text's length, so that one word in fifty is no evidence
# The sum of evidence, in cosines, that gives 0.5, and what must be added for 0.73: a logistic curve.
EVEN, SPREAD = 0.06, 0.15

# Words of a task description that say what to do and not with what.
TASK_WORDS = frozenset(
    re.findall(
        r"\w+",
        """answer answers answering question questions passage passages context contexts word words sentence sentences
        short factual give given classify class classes provided text texts help desk assistant model based using use
        want know work reply replies information user users about brief concise""",
    )
)
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a all also an and any are as at be been but by can do does few for from had has have how i if in including
        into is it its may more most need no not of on one only or other our out over so some such than that the their
        them then there these they this those to under up was we were what when where which while who will with would
        you your""",
    )
)

# What a page may be about instead: broad subjects, a little finer in technology, so that a page on power lines is
# nearer to one of them than to a task on charging. The subject that a task belongs to hardly counts against its pages.
SUBJECTS = (
    "agriculture and gardening",
    "animals and pets",
    "architecture and buildings",
    "art and museums",
    "astronomy and space",
    "aviation and aircraft",
    "banking and personal finance",
    "batteries and energy storage",
    "biology and genetics",
    "books and literature",
    "broadcasting, film and television",
    "business administration and company news",
    "cars and driving",
    "chemistry and materials",
    "childcare and parenting",
    "clothing and fashion",
    "commodity markets and trade",
    "computer hardware and operating systems",
    "computer networks and internet access",
    "construction and civil engineering",
    "cooking, food and drink",
    "cookies, privacy policy and terms of use",
    "crime, police and courts",
    "customer accounts, passwords and registration",
    "databases and data analysis",
    "economics and monetary policy",
    "education, schools and universities",
    "elections, parties and government",
    "electricity grids and power transmission",
    "electronics and circuits",
    "employment and careers",
    "environment and climate",
    "forestry and fishing",
    "furniture and household appliances",
    "games and toys",
    "geography and maps",
    "health, medicine and hospitals",
    "heating, ventilation and plumbing",
    "history and archaeology",
    "hotels, restaurants and tourism",
    "insurance",
    "language and linguistics",
    "law and legislation",
    "logistics, shipping and ports",
    "machines and manufacturing",
    "mathematics and statistics",
    "military and war",
    "mining and metals",
    "music and concerts",
    "nuclear power",
    "oil, gas and petrol",
    "online shopping and advertising",
    "philosophy and ethics",
    "photography and cameras",
    "physics",
    "psychology and mental health",
    "public transport and railways",
    "real estate and housing",
    "religion",
    "robotics and artificial intelligence",
    "roads and traffic",
    "rivers, oceans and weather",
    "software development and programming interfaces",
    "solar power and photovoltaics",
    "sport and fitness",
    "stock exchanges and investment",
    "taxes and public budgets",
    "telephones and mobile apps",
    "water supply and waste",
    "wind power",
)


def relevances(pages: Sequence[Mapping[str, Any]], description: str) -> list[float]:
    """Return how much each page is about the described task: 0 to 1, and 0.5 where the evidence is even.

    Two kinds of evidence are added up, in cosines. Meaning: the mean over the page's windows of the cosine with the
    description less the cosine with the nearest of `SUBJECTS`. The mean, and not the best window, is what a page is
    *about*: a garden page with one sentence on chargers stays a garden page. Mentions: how often the description's own
    key words stand in the page. A reference page on a protocol's messages reads like software to the embedder, but it
    says "charge point" in every paragraph.

    Args:
        pages: With `text` and `title`.
        description: The task in words.
    """
    if not pages:
        return []
    about, rivals, weights = _read_description(description)
    windows: list[str] = []
    owner: list[int] = []
    for index, page in enumerate(pages):
        words = page["text"].split()
        starts = range(0, max(1, len(words)), WINDOW_WORDS)
        step = max(1, len(starts) // MAX_WINDOWS)
        for start in list(starts)[::step][:MAX_WINDOWS]:
            windows.append(f"{page['title'] or ''}. {' '.join(words[start : start + WINDOW_WORDS])}")
            owner.append(index)
    vectors, owners = embed(windows), np.array(owner)
    meaning = vectors @ about - (vectors @ rivals.T).max(axis=1)
    results = []
    for index, page in enumerate(pages):
        evidence = meaning[owners == index].mean() + MENTIONS_WEIGHT * _mentions(
            page["title"] or "", page["text"], weights
        )
        results.append(round(float(1 / (1 + np.exp((EVEN - evidence) / SPREAD))), 4))
    return results


@cache
def _read_description(description: str) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Return the description's vector, the subjects' vectors as rivals, and the weights of its key words' stems."""
    phrase = " ".join(re.sub(rf"\b({'|'.join(TASK_WORDS)})\b", " ", description, flags=re.IGNORECASE).split())
    words = sorted({w for w in _words(description) if w not in TASK_WORDS})
    vectors = embed([phrase or description, *words, *SUBJECTS])
    about, terms, subjects = vectors[0], vectors[1 : len(words) + 1], vectors[len(words) + 1 :]
    # A subject gives up what it shares with the description; squared, so that only its own subject gives up much.
    rivals = subjects - np.outer(np.clip(subjects @ about, 0, 1) ** 2, about)
    weights: dict[str, float] = {}
    if words:
        # A key word is nearer to the description than to any rival (0.2 closer to even than that will do) and is rare.
        nearness = np.clip(0.2 + terms @ about - (terms @ rivals.T).max(axis=1), 0, None)
        for word, near in zip(words, nearness, strict=True):
            weights[_stem(word)] = max(weights.get(_stem(word), 0.0), float(near**3 * _rarity(word) ** 2))
        top = max(weights.values()) or 1.0
        weights = {stem: weight / top for stem, weight in weights.items() if weight > 0.005 * top}
    return about, rivals, weights


def _rarity(word: str) -> float:
    """Return 0.2 for the commonest English words to 1 for rare ones.

    BERT's vocabulary of 30,522 pieces stands in the order of frequency, its first words behind place 1,000 (Devlin et
    al. 2019); a word that is none of them is rare.
    """
    vocabulary = load_embedder().tokenizer.get_vocab()
    place = max(1_500, vocabulary.get(word, len(vocabulary)))
    return float(np.log(place / 1_000) / np.log(len(vocabulary) / 1_000))


def _mentions(title: str, text: str, weights: Mapping[str, float]) -> float:
    """Return how much a text mentions the key words, 0 to 1."""
    words = [*title.split(), *text.split()]
    mentions, length = 0.0, 0
    for start in range(0, len(words), WINDOW_WORDS):
        window = _words(" ".join(words[start : start + WINDOW_WORDS]))
        mentions += min(sum(_weight(_stem(word), weights) for word in window), MENTIONS_MOST * len(window) / 1_000)
        length += len(window)
    per_1000_words = 1_000 * mentions / (length + STEADY_WORDS)
    return per_1000_words**2 / (per_1000_words**2 + MENTIONS_HALF**2)


def _weight(stem: str, weights: Mapping[str, float]) -> float:
    # A key stem of four letters or more also counts where it begins a word: charg-, chargepoint.
    return max(
        (w for key, w in weights.items() if stem == key or (len(key) >= 4 and stem.startswith(key))), default=0.0
    )


def _words(text: str) -> list[str]:
    """Return the words that carry meaning; identifiers are taken apart (ocppPermitsCharge: ocpp, permits, charge)."""
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", re.sub(r"https?://\S+", " ", text))
    return [w for w in re.findall(r"[a-z]{2,}", text.lower()) if w not in STOP_WORDS]


@cache
def _stem(word: str) -> str:
    """Return a word's Snowball stem, without the -er of who or what does it: charger is a form of charge."""
    from nltk.stem.snowball import EnglishStemmer

    stem = EnglishStemmer().stem(word)
    return stem[:-2] if stem.endswith("er") and len(stem) >= 6 else stem
