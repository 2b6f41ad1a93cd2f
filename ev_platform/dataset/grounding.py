"""Whether a passage says what an answer says: by its numbers, its words, and yes and no. Rules, no model.

What belongs here: one answer against one passage. What does not: the other rules (`filters`), and asking a teacher, who
reads where these rules only compare words (`validate`). The word lists are English; in another language the rules on
numbers and on shared words still hold.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from ev_platform.dataset.quantities import NUMBER_WORDS, Quantity, quantities

# Measured on the first half of ev_platform_tests/dataset/labelled.jsonl.
MIN_SUPPORT = 0.5  # share of an answer's own words that its passage must hold; paraphrases keep about two thirds
NEAR = 0.7  # weight of the words beside a number, against those of its whole sentence
MIN_LEAD = 0.1  # by which another number must fit a question better than the one that was answered
MIN_AWAY = 0.5  # of a question's weight, by which an answer may stand away from what is asked
MIN_DENIED = 0.35  # of a yes/no question's weight in the sentence that denies it
SHORT = 15  # words; a longer answer gathers from several sentences, so that no single one decides
MIN_AWAY_NAME = 0.4  # the same for an answer of three words or fewer
MIN_CLAIM = 0.7  # share of a yes/no question's weight that the passage must hold before it can be affirmed
MAX_HELD = 0.85  # share of a question's weight in one sentence, from which its answer stands there too

Flaw = tuple[str, str]  # reason in snake_case; the figure or the words that tripped the rule

_STOP_WORDS = """
    a an the and or but of to in on at by for from with without as is are was were be been being am do does did done
    has have had can could may might must shall should will would it its they them their he she his her him this
    that these those there here which who whom whose what when where why how if then than so such not no nor only
    also up down out over under into onto about until since while during within between through per each every any
    some all both more most much many one ones same own too very just still t s you your we our i my me because due
    yes no ever use used using get gets give gives given make makes made take takes taken mean means least long
    often
"""
_STOP = frozenset(_STOP_WORDS.split())
_NEGATION_WORDS = """
    not no never none nothing neither nor without cannot nobody unless except free only
"""
_NEGATIONS = frozenset(_NEGATION_WORDS.split())
_UNIVERSAL = frozenset(("any", "all", "every", "always", "whole", "entire", "ever"))
_OPPOSITE_WORDS = """
    faster/slower fast/slow larger/smaller large/small bigger/smaller higher/lower high/low more/less longer/shorter
    long/short above/below over/under inside/outside in/out warm/cold hot/cold warmer/colder increase/decrease
    increases/decreases raise/lower rises/falls open/closed opens/closes first/last earlier/later older/newer
    old/new minimum/maximum most/least allowed/forbidden permitted/prohibited start/stop starts/stops
    stopped/continued enabled/disabled enable/disable thickens/thins left/right front/rear wet/dry full/empty
    optional/mandatory optional/required light/heavy orally/writing oral/written adds/removes strong/weak
    accept/reject
"""
_OPPOSITES = tuple(frozenset(pair.split("/")) for pair in _OPPOSITE_WORDS.split())
# What the stemmer leaves on words of one family.
_ENDING_WORDS = """
    er or ment ing al ion ation able iti ous ic ive ness ward ship
"""
_ENDINGS = frozenset(_ENDING_WORDS.split())
_YES_NO = re.compile(
    r"^(?:is|are|was|were|do|does|did|can|could|may|might|must|shall|should|will|would|has|have|had)\b", re.IGNORECASE
)
# "No person may", "No one" and "No-one" say nothing of what was asked by themselves.
_SAID = re.compile(r"\W*(yes\b|no\b(?=\s*(?:[,.;:!–—(]|$)|\s+-))", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(`]?[A-Z0-9])|\n+|;\s+")


@cache
def _stemmer() -> Any:
    from nltk.stem.snowball import EnglishStemmer

    return EnglishStemmer()


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return str(NUMBER_WORDS[word]) if word in NUMBER_WORDS else _stemmer().stem(word)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", re.sub(r"['’]s\b", "", text.lower()))


def content_stems(text: str) -> list[str]:
    """Return the stems of the words that carry meaning, in order; numbers spelt out become digits."""
    return [_stem(word) for word in _words(text) if word not in _STOP and (len(word) > 1 or word.isdigit())]


@dataclass(frozen=True, slots=True)
class _Passage:
    text: str
    sentences: tuple[str, ...]
    stems: tuple[frozenset[str], ...]  # of each sentence
    weight: Counter[str]  # number of sentences that hold a stem
    numbers: tuple[Quantity, ...]
    ends: tuple[tuple[int, int], ...]  # spans between the sentences

    def idf(self, stem: str) -> float:
        return math.log(1 + (len(self.sentences) + 1) / (1 + self.weight[stem]))

    def share(self, stems: Collection[str], held: Collection[str]) -> float:
        """Return the share of the weight of some stems that is held."""
        total = sum(map(self.idf, set(stems)))
        return sum(self.idf(s) for s in set(stems) if is_held(s, held)) / total if total else 1.0


def is_held(stem: str, held: Collection[str]) -> bool:
    """Whether a stem stands among others, or a longer or shorter form of it (`pay`, `payment`)."""
    if stem in held:
        return True
    longer = (stem + ending for ending in _ENDINGS if len(stem) > 2)
    shorter = (stem[: -len(ending)] for ending in _ENDINGS if stem.endswith(ending) and len(stem) - len(ending) > 2)
    return any(form in held for form in (*longer, *shorter))


@lru_cache(maxsize=1024)
def _read(passage: str) -> _Passage:
    sentences = tuple(s for s in _SENTENCE.split(passage) if re.search(r"\w", s)) or ("",)
    stems = tuple(frozenset(content_stems(sentence)) for sentence in sentences)
    ends = tuple(match.span() for match in _SENTENCE.finditer(passage))
    weight = Counter(stem for own in stems for stem in own)
    return _Passage(passage, sentences, stems, weight, tuple(quantities(passage)), ends)


def find_ungrounded(question: str, answer: str, passage: str) -> Flaw | None:
    """Return why a passage does not support an answer, None where nothing speaks against it.

    Args:
        question: What is asked.
        answer: What the passage is said to hold.
        passage: The source, with its headings.
    """
    read = _read(passage)
    is_claim = _YES_NO.match(question.strip()) or _SAID.match(answer)
    return (
        _judge_numbers(question, answer, read)
        or (_judge_claim(question, answer, read) if is_claim else None)
        or _judge_opposites(question, answer, read)
        or _judge_words(question, answer, read)
    )


def find_held_answer(question: str, passage: str) -> Flaw | None:
    """Return why a question cannot be unanswerable: one sentence of the passage holds nearly all that it asks about."""
    read = _read(passage)
    asked = content_stems(question)
    if len(set(asked)) < 2:
        return None
    share = max(read.share(asked, own) for own in read.stems)
    return ("answer_in_passage", f"{share:.2f} of the question stands in one sentence") if share >= MAX_HELD else None


def _judge_numbers(question: str, answer: str, read: _Passage) -> Flaw | None:
    known, asked = read.numbers, quantities(question)
    own = quantities(answer)
    for number in own:
        if not any(number.agrees(other) for other in (*known, *asked)):
            return "number_not_in_passage", f"{answer[number.start : number.end + 12].strip()!r}"
    if len(own) != 1 or any(own[0].agrees(other) for other in asked):
        return None
    return _judge_binding(question, answer, own[0], known, read)


def _judge_binding(
    question: str, answer: str, number: Quantity, known: Sequence[Quantity], read: _Passage
) -> Flaw | None:
    """Find a number of the same kind, whose surroundings fit the question where those of the answer do not."""
    wanted = {stem for stem in content_stems(f"{question} {answer}") if stem.isalpha()}
    given = {(one.value, one.kind) for one in quantities(question)}
    places = [
        (other, _surroundings(read, known, i))
        for i, other in enumerate(known)
        if (number.rivals(other) or number.agrees(other)) and (other.value, other.kind) not in given
    ]
    own = [place for other, place in places if number.agrees(other)]
    rivals = [(other, place) for other, place in places if not number.agrees(other)]
    if not own or not rivals:
        return None

    def fit(place: _Place, side: str) -> float:
        near, far = read.share(wanted, getattr(place, side)), read.share(wanted, place.sentence)
        return NEAR * near + (1 - NEAR) * far

    best, rival = max(((fit(place, "both"), other) for other, place in rivals), key=lambda x: x[0])
    mine = max(fit(place, "both") for place in own)
    # "Check the pressure of the cold tyres: 4.5 bar at the front and 5.2 at the rear": what leads to the first number
    # is of both, so the words after them decide.
    if max(fit(place, "after") for place in own) > max(fit(place, "after") for _, place in rivals) + MIN_LEAD:
        return None
    if best - mine > MIN_LEAD:
        return "number_of_something_else", f"{rival.text} fits the question better: {best:.2f} to {mine:.2f}"
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """The stems around a number: after it, on both sides as far as they belong to it, and of its sentence."""

    after: frozenset[str]
    both: frozenset[str]
    sentence: frozenset[str]


def _surroundings(read: _Passage, known: Sequence[Quantity], i: int) -> _Place:
    text = read.text
    start, end = known[i].start, known[i].end
    first = max((after for _, after in read.ends if after <= start), default=0)
    last = next((before for before, _ in read.ends if before >= end), len(text))
    left = max((n.end for n in known[:i] if n.end > first), default=first)
    right = min((n.start for n in known[i + 1 :] if n.start < last), default=last)
    begin = (_last_break(text, left, start) or left) if left > first else first
    finish = (_last_break(text, end, right) or right) if right < last else last
    spans = ((end, right), (begin, finish), (first, last))
    return _Place(*(frozenset(content_stems(text[one:other])) for one, other in spans))


def _last_break(text: str, start: int, end: int) -> int | None:
    breaks = list(re.finditer(r",|;|:|\b(?:and|or|but|while|whereas|then|with)\b", text[start:end]))
    return start + breaks[-1].start() if breaks else None


def _judge_claim(question: str, answer: str, read: _Passage) -> Flaw | None:
    """Judge yes and no by the sentence that speaks of what is asked."""
    asked = set(content_stems(question))
    said = _SAID.match(answer)
    claim = question if said else answer
    explained = set(content_stems(answer))
    is_known = any(is_held(stem, own) for stem in explained for own in read.stems)
    is_no = said is not None and said[1].lower() == "no"  # what follows a no is what the passage says instead
    sentence, share = _best_sentence(explained if is_known and not is_no else asked, asked, read)
    is_denied = _has_negation(sentence) != _has_negation(claim)
    is_opposed = bool(opposites(claim, sentence)) or _is_swapped(claim, sentence)
    if is_no:
        is_affirmed = not is_denied and not is_opposed and share >= MIN_CLAIM and not quantities(question)
        return ("contradicts_passage", f"no, but: {sentence[:80]}") if is_affirmed else None
    if said:
        held = frozenset().union(*read.stems)
        if read.share(asked, held) < MIN_CLAIM:
            missing = ", ".join(sorted(stem for stem in asked if not is_held(stem, held)))
            return "claim_not_in_passage", f"yes, but the passage lacks {missing}"
        if set(_words(question)) & _UNIVERSAL and set(_words(sentence)) & {"only", "unless", "except"}:
            return "contradicts_passage", f"yes to a general claim, but: {sentence[:80]}"
    if is_opposed or (is_denied and share >= MIN_DENIED):
        return "contradicts_passage", f"{'yes' if said else 'affirmed'}, but: {sentence[:80]}"
    return None


def _best_sentence(wanted: set[str], asked: set[str], read: _Passage) -> tuple[str, float]:
    """Return the sentence that speaks of some words, numbers first, and the share of the question's weight in it."""
    numbers = {stem for stem in wanted if stem[0].isdigit()}
    fits = [(len(numbers & held), read.share(wanted, held)) for held in read.stems]
    best = fits.index(max(fits))
    return read.sentences[best], read.share(asked, read.stems[best])


def _has_negation(text: str) -> bool:
    found = set(_words(text))
    return bool(found & _NEGATIONS) or "n't" in text.lower() or "n’t" in text.lower()


def opposites(one: str, other: str) -> str | None:
    """Return a pair of opposite words of which each text holds one and not the other."""
    first, second = set(_words(one)), set(_words(other))
    for pair in _OPPOSITES:
        mine, theirs = pair & first, pair & second
        if len(mine) == 1 and len(theirs) == 1 and mine != theirs:
            return "/".join(sorted(pair))
    return None


def _is_swapped(question: str, sentence: str) -> bool:
    """Whether one says `A before B` and the other `B before A`."""
    sides = []
    for text in (question, sentence):
        parts = re.split(r"\b(before|after|than)\b", text.lower(), maxsplit=1)
        if len(parts) != 3:
            return False
        left, right = set(content_stems(parts[0])), set(content_stems(parts[2]))
        sides.append((left - right, right - left, parts[1]))
    (a, b, word), (c, d, other) = sides
    return word == other and bool(a & d) and bool(b & c)


def _judge_opposites(question: str, answer: str, read: _Passage) -> Flaw | None:
    """Find the sentence that the answer repeats, and an opposite word or a negation in it."""
    own = set(content_stems(answer))
    if len(own) < 2 or len(_words(answer)) > SHORT or _SAID.match(answer):
        return None
    wanted = own | set(content_stems(question))
    best = max(range(len(read.sentences)), key=lambda i: (read.share(wanted, read.stems[i]), -i))
    sentence = read.sentences[best]
    if max(read.share(wanted, read.stems[best]), read.share(own, read.stems[best])) < MIN_SUPPORT:
        return None
    pair = opposites(answer, sentence)
    return ("contradicts_passage", f"{pair}: {sentence[:80]}") if pair else None


def _judge_words(question: str, answer: str, read: _Passage) -> Flaw | None:
    """Judge by the share of the answer's own words that the passage holds, near what the question asks about."""
    if _SAID.match(answer):
        return None  # what follows a yes or a no explains it in other words
    asked = set(content_stems(question))
    units = {_stem(number.noun) for number in quantities(answer) if number.kind and number.noun}
    # Numbers were judged by themselves.
    own = {stem for stem in content_stems(answer) if not stem[0].isdigit()} - asked - units
    if not own:
        return None
    everywhere = set().union(*read.stems)
    support = sum(is_held(stem, everywhere) for stem in own) / len(own)
    is_name = len(_words(answer)) <= 3  # too short for a paraphrase
    if support < MIN_SUPPORT or (is_name and support == MIN_SUPPORT):
        return "not_in_passage", f"{support:.2f} of the answer's words"
    if len(_words(answer)) > SHORT:
        return None
    pairs = [one | other for one, other in zip(read.stems, [*read.stems[1:], frozenset()], strict=True)]
    near = max(pairs, key=lambda held: (read.share(asked, held), read.share(own, held)))
    if read.share(own, near) >= MIN_SUPPORT / 2:
        return None
    held_at = max((read.share(asked, held) for held in pairs if read.share(own, held) >= MIN_SUPPORT), default=0.0)
    away = read.share(asked, near) - held_at
    is_whole = any(read.share(own, held) == 1.0 for held in read.stems)
    if away > (MIN_AWAY_NAME if is_name else MIN_AWAY if is_whole else MIN_AWAY / 2):
        return "of_something_else", f"it stands {away:.2f} of the question's weight away from what is asked"
    return None
