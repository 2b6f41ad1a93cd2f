"""The offline teacher: takes an answer from a sentence, then asks for it, so every pair is grounded by construction.

It needs no model and no key. Each rule turns one shape of English sentence into a question whose answer is a span of
that sentence; a sentence that fits no rule gives nothing, because a bad question costs more than a missing one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TEACHER = "extractive"

_AUXILIARY = "is|are|was|were|must|should|may|can|shall"
_NUMBER_WORDS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
# Words that refer to something outside the sentence: a question with one of them cannot stand alone.
_DANGLING = re.compile(
    r"\b(it|its|they|them|their|theirs|this|these|that|those|he|she|here|there|such|above|below|following|former|latter"
    r"|both|another|others?|same|one of|we|our|you|your|also|therefore|thus|however|then)\b",
    re.IGNORECASE,
)
_LEADING_CLAUSE = re.compile(
    r"^(If|When|While|Where|Because|Since|Although|Before|After|Without|With|On|In|At|For|As|To)\b"
)
_ADVERBS = {"not", "only", "still", "always", "never", "often", "usually", "be", "have"}
_IMPERATIVE = re.compile(
    r"^(Suppose|Choose|Do|Use|Keep|Check|Measure|Mark|Write|Look|Take|Put|Set|Find|Ask|Compare|Make|Open|Fit)\b"
)
# A noun phrase as the subject: up to nine words without a comma, a verb form or a clause inside.
_VERB = r"\b(?:is|are|was|were|must|should|may|can|shall|has|have|and that|which|who|because)\b"
_SUBJECT = rf"(?P<np>(?:(?!{_VERB})[^\s,;:]+ ){{1,9}}?)"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One generated question.

    Attributes:
        question: Ends with a question mark.
        answer: A span of the sentence.
        kind: `number`, `definition`, `requirement`, `subject`, `reason` or `table`.
    """

    question: str
    answer: str
    kind: str


def generate(text: str) -> list[Candidate]:
    """Return every question that the rules find in a passage, in the order of the text."""
    found: list[Candidate] = []
    rows = [line for line in text.splitlines() if line.strip().startswith("|")]
    found += _from_table(rows)
    prose = "\n".join(line for line in text.splitlines() if not line.strip().startswith("|"))
    for sentence in _sentences(prose):
        candidate = next((c for rule in _RULES if (c := rule(sentence)) is not None), None)
        if candidate is not None and _is_sound(candidate):
            found.append(candidate)
    return found


def _sentences(text: str) -> Iterator[str]:
    for block in re.split(r"\n+", text):
        block = re.sub(r"^\s*(?:[-*+]|\d+[.)])\s+", "", block).strip()
        block = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)
        for sentence in re.split(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])", block):
            if 5 <= len(sentence.split()) <= 40 and sentence.endswith("."):
                yield sentence[:-1].strip()


def _lower_first(phrase: str) -> str:
    first, _, rest = phrase.partition(" ")
    is_plain = first.lower() in {"the", "a", "an", "every", "each", "most", "many", "some", "all", "no", "any", "only"}
    is_common = first[1:].islower() and rest and first.isalpha() and not rest[:1].isupper()
    # "Liquid-cooled cables" loses its capital; "Combo 2", "OCPP" and "Type 1" are names and keep theirs.
    return (first.lower() if is_plain or (is_common and not rest[:1].isdigit()) else first) + (
        f" {rest}" if rest else ""
    )


def _subject_of(match: re.Match[str]) -> str | None:
    phrase = match["np"].strip()
    if (
        _LEADING_CLAUSE.match(phrase)
        or _DANGLING.search(phrase)
        or phrase.endswith((" to", " of", " and", " or", " not"))
    ):
        return None
    return _lower_first(phrase)


def _number(sentence: str) -> Candidate | None:
    """`NP has five contacts` asks how many."""
    match = re.match(
        rf"^{_SUBJECT}(?P<v>has|have|uses|use|needs|need) (?P<n>{_NUMBER_WORDS}|\d+) (?P<noun>[a-z]+s)\b", sentence
    )
    subject = _subject_of(match) if match else None
    if match is None or subject is None:
        return None
    verb = {"has": "have", "uses": "use", "needs": "need"}.get(match["v"], match["v"])
    do = "do" if verb == match["v"] else "does"
    return Candidate(f"How many {match['noun']} {do} {subject} {verb}?", match["n"], "number")


def _year(sentence: str) -> Candidate | None:
    """`NP was founded in 2015` asks when."""
    match = re.match(rf"^{_SUBJECT}(?P<aux>was|were) (?P<vp>[a-z]+(?: [a-z]+)?) in (?P<year>(?:19|20)\d\d)\b", sentence)
    subject = _subject_of(match) if match else None
    if match is None or subject is None:
        return None
    return Candidate(f"When {match['aux']} {subject} {match['vp']}?", f"in {match['year']}", "number")


def _reason(sentence: str) -> Candidate | None:
    """`NP is VP because REASON` asks why."""
    match = re.match(rf"^{_SUBJECT}(?P<aux>{_AUXILIARY}) (?P<vp>[^;:]+?),? because (?P<why>.+)$", sentence)
    subject = _subject_of(match) if match else None
    if match is None or subject is None or _DANGLING.search(match["vp"]):
        return None
    return Candidate(f"Why {match['aux']} {subject} {match['vp']}?", f"because {match['why']}", "reason")


def _requirement(sentence: str) -> Candidate | None:
    """`NP must hold REST` asks what it must hold."""
    match = re.match(
        rf"^{_SUBJECT}(?P<aux>must|should|may|can|shall) (?P<verb>(?:be )?[a-z]+) (?P<rest>[^;:]+)$", sentence
    )
    subject = _subject_of(match) if match else None
    if match is None or subject is None or match["verb"] in _ADVERBS:
        return None
    verb, rest = match["verb"], match["rest"]
    if verb.startswith("be "):
        preposition = re.match(r"(at|in|on|with|by|to|from|for|within|under|above|below|after|before) (.+)$", rest)
        if preposition is None:
            return None
        ask = {"by": "By what", "with": "With what"}.get(preposition[1])
        if ask is None:
            return None
        return Candidate(f"{ask} {match['aux']} {subject} {verb}?", rest, "requirement")
    if re.match(r"(at|in|on|with|by|to|from|for|up|off|out|down|within|more|less|as|much|again) ", rest):
        return None
    return Candidate(f"What {match['aux']} {subject} {verb}?", rest, "requirement")


_MEASURES = {
    "carries": "carry",
    "costs": "cost",
    "delivers": "deliver",
    "lasts": "last",
    "reaches": "reach",
    "takes": "take",
    "weighs": "weigh",
}


def _measure(sentence: str) -> Candidate | None:
    """`NP carries 500 A` asks how much."""
    match = re.match(
        rf"^{_SUBJECT}(?P<verb>{'|'.join([*_MEASURES, *_MEASURES.values()])}) "
        r"(?P<value>(?:(?:about|up to|at least|at most|over|under|around|only|some) )?"
        r"\d[\d,.]*(?: ?(?:to|-|–) ?\d[\d,.]*)? ?"
        r"(?:%|[A-Za-zΩ°µ]+)(?: (?:a|per) [a-z]+)?)",
        sentence,
    )
    subject = _subject_of(match) if match else None
    if match is None or subject is None:
        return None
    verb = _MEASURES.get(match["verb"], match["verb"])
    do = "do" if verb == match["verb"] else "does"
    ask = "How long" if verb in {"take", "last"} else "How much"
    return Candidate(f"{ask} {do} {subject} {verb}?", match["value"].strip(), "number")


def _definition(sentence: str) -> Candidate | None:
    """`NP is REST` asks what it is."""
    match = re.match(
        rf"^{_SUBJECT}(?P<aux>is|are|was|were) (?P<rest>(?:a|an|the|about|at least|at most|\d|one|two)\b[^;:]*)$",
        sentence,
    )
    subject = _subject_of(match) if match else None
    if match is None or subject is None:
        return None
    return Candidate(f"What {match['aux']} {subject}?", match["rest"], "definition")


def _subject(sentence: str) -> Candidate | None:
    """`NP verbs REST` asks what does, with the subject as the answer."""
    match = re.match(rf"^{_SUBJECT}(?P<aux>is|are|can|must|may|should|was|were|has) (?P<rest>[^;:]+)$", sentence)
    # A long or many-claused rest makes a question nobody would ask; a one-word subject is seldom an answer.
    if (
        match is None
        or _subject_of(match) is None
        or not 4 <= len(match["rest"].split()) <= 14
        or "," in match["rest"]
        or len(match["np"].split()) < 2
    ):
        return None
    return Candidate(f"What {match['aux']} {match['rest']}?", _lower_first(match["np"].strip()), "subject")


_RULES: tuple[Callable[[str], Candidate | None], ...] = (
    _year,
    _number,
    _measure,
    _reason,
    _requirement,
    _definition,
    _subject,
)


def _from_table(rows: list[str]) -> list[Candidate]:
    """Ask for the second column of each row by its first: the commonest shape of a reference table."""
    cells = [[c.strip() for c in row.strip().strip("|").split("|")] for row in rows]
    rules = [i for i, row in enumerate(cells) if row and all(re.fullmatch(r":?-{3,}:?", c) for c in row)]
    if not rules or rules[0] == 0:
        return []
    header, body = cells[rules[-1] - 1], cells[rules[-1] + 1 :]
    if len(header) < 2 or not header[0] or not header[1]:
        return []
    found = []
    for row in body:
        if len(row) == len(header) >= 2 and row[0] and row[1] and not row[0].isdigit() and row[0] != header[0]:
            column, key = header[1].lower(), header[0].lower()
            found.append(Candidate(f"What is the {column} for the {key} {row[0]}?", row[1], "table"))
    # Two rows with one key would give one question two answers.
    asked = Counter(c.question for c in found)
    return [c for c in found if asked[c.question] == 1 and _is_sound(c)]


def _is_sound(candidate: Candidate) -> bool:
    question, answer = candidate.question, candidate.answer
    return (
        5 <= len(question.split()) <= 30
        and 1 <= len(answer.split()) <= 20
        and not _DANGLING.search(question.partition(" ")[2])
        and not re.search(r"\b(it|this|these|they)\b", answer)
        and question.count("(") == question.count(")")
        and answer.count("(") == answer.count(")")
    )
