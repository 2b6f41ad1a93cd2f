"""Questions about the layout of a passage: tables, numbered steps, terms with their meaning, headings that ask.

What does not belong here: single sentences (`offline_rules`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from ev_platform.teachers import Draft
from ev_platform.teachers.offline_grammar import parse_clause, topic_of
from ev_platform.teachers.offline_rules import is_sound
from ev_platform.teachers.offline_text import (
    DANGLING,
    is_common_noun,
    lower_first,
    plain,
    prose_lines,
    split_sentences,
    tag,
)

_RULE_CELL = re.compile(r":?-{2,}:?")
_EMPTY = {"", "-", "–", "—", "n/a", "na", "yes", "no", "none", "x", "✓", "✗", "✔", "tbd", "?"}
_COMMON = {"true", "false", "all", "any", "other", "others", "default", "total", "sum", "average", "min", "max"}
_FIGURE = re.compile(r"(?P<value>\d[\d,]*(?:\.\d+)?) ?(?P<unit>[^\d\s]\S*(?: \S+)?)?")
_STEP = re.compile(r"^\s*(?P<n>\d+)[.)]\s+(?P<text>\S.*)$")


def block_drafts(heading_path: str, text: str, *, is_first_of_heading: bool) -> Iterator[Draft]:
    """Yield the questions that tables, lists and headings of a passage give.

    Args:
        heading_path: `Title > Section`.
        text: The passage.
        is_first_of_heading: Whether the passage begins its section; a heading asks for the beginning.
    """
    headings = heading_path.split(" > ")
    topic = topic_of(heading_path)
    for draft in _tables(text):
        # "What is the description for the value LPG?" asks about no table in particular.
        if is_sound(draft) and topic and topic.lower() in draft.question.lower():
            yield draft
        elif is_sound(draft) and topic:
            yield replace(draft, question=f"In the context of {topic}, {draft.question[0].lower()}{draft.question[1:]}")
    for rule in (_terms(text), _steps(headings, text)):
        yield from (draft for draft in rule if is_sound(draft))
    if is_first_of_heading:
        yield from (draft for draft in _heading(headings[-1], text) if is_sound(draft))


def _tables(text: str) -> Iterator[Draft]:
    rows: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip().startswith("|"):
            rows.append(line)
        elif rows:
            yield from _table(rows)
            rows = []


def _table(rows: list[str]) -> Iterator[Draft]:
    """Ask for a cell by its row and column, and which of two rows has the greater figure."""
    cells = [[plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows]
    if len(cells) < 3 or not all(_RULE_CELL.fullmatch(cell) for cell in cells[1]):
        return
    header, body = (
        cells[0],
        [(raw, row) for raw, row in zip(rows[2:], cells[2:], strict=True) if len(row) == len(cells[0])],
    )
    if not _is_name(header[0]) and all(re.fullmatch(r"[A-Za-z]{0,2}\d+[.)]?", row[0]) for _, row in body):
        # A column of numbers names nothing; the next one does.
        header, body = header[1:], [(raw, row[1:]) for raw, row in body]
    if len(header) < 2:
        return
    key = header[0]
    keys = Counter(row[0].lower() for _, row in body)
    # Two rows with one key would give one question two answers; numbered rows are known by their number only.
    body = [(raw, row) for raw, row in body if keys[row[0].lower()] == 1 and _names(row[0])]
    if not _is_name(key) or len(header) < 2:
        return
    for number, column in enumerate(header[1:], start=1):
        if not _is_name(column) or column.lower() == key.lower():
            continue
        letters = tag(_inner(column))[1]
        is_natural = re.fullmatch(r"[JGCV]*N*N(?:\([^()]*\))?|[JG]*S", letters) is not None
        is_natural |= re.fullmatch(r"[\w -]+ (?:of|per) [\w -]+", column) is not None and letters[0] in "JGNV"
        be = "are" if letters[-1:] == "S" else "is"
        figures = []
        for raw, row in body:
            where = f"where the {_inner(key)} is {row[0]}" if row[0][0].isdigit() else f"for the {_inner(key)} {row[0]}"
            value = row[number]
            if (
                value.lower() in _EMPTY
                or len(value.split()) > 25
                or DANGLING.search(value)
                or re.sub(r"\W|_", "", value).lower() == re.sub(r"\W|_", "", row[0]).lower()
            ):
                continue
            what = f"What {be} the {_inner(column)}" if is_natural else f'What is listed under "{_inner(column)}"'
            yield Draft(f"{what} {where}?", value, "table", evidence=raw.strip())
            figure = _FIGURE.fullmatch(value)
            if (
                figure
                and be == "is"
                and is_natural
                and " of " not in column
                and re.search(r"[A-Za-zΩ%]", row[0])
                and (figure["unit"] or "(" in column)
            ):
                figures.append((float(figure["value"].replace(",", "")), figure["unit"], row[0], raw))
        for (a, unit, first, raw), (b, other, second, raw_2) in combinations(figures, 2):
            if a != b and unit == other:
                question = f"Which {_inner(key)} has the greater {_inner(column)}, {first} or {second}?"
                best = first if a > b else second
                yield Draft(question, best, "comparison", evidence=(raw if a > b else raw_2).strip())


def _names(key: str) -> bool:
    """Say whether a cell tells its row apart outside the table; `true`, `N` and `other` stand in many tables."""
    return len(key) > 1 and re.search(r"\w", key) is not None and key.lower() not in _EMPTY | _COMMON


def _is_name(header: str) -> bool:
    """Say whether a column's header is a phrase that a question can use."""
    return (
        1 <= len(header.split()) <= 9
        and re.match(r"[A-Za-z]{3}|[A-Z]{2}", header) is not None
        and not DANGLING.search(re.sub(r"\b(?:above|below)\b", "", header))
        and not re.search(r"[?:]", header)
        and tag(_inner(header))[1][0] in "NSJKVGC"
    )


def _inner(header: str) -> str:
    word = header.lower()
    return word if is_common_noun(word) else lower_first(header)


def _terms(text: str) -> Iterator[Draft]:
    """`**Site host.** Owns the ground ...` and lists of a term and its meaning in turn ask what the term means."""
    lines = list(prose_lines(text))
    pairs = []
    for line in lines:
        found = re.match(r"\s*(?:[-*+] )?\*\*(?P<term>[^*]{2,60}?)[.:]?\*\*(?P<mark>[.:]?)\s+(?P<rest>[A-Z].+)$", line)
        if found is None or not re.search(r"[.:]", line[found.end("term") : found.start("rest")]):
            continue
        # With a colon it may be any label; only what begins as a definition is taken for one.
        if ":" not in line[: found.start("rest")] or re.match(r"(?:A|An|The) ", found["rest"]):
            pairs.append((found["term"], found["rest"], line))
    items = [re.sub(r"^\s*[-*+] ", "", line) for line in lines if re.match(r"\s*[-*+] ", line)]
    if len(items) >= 4 and len(items) % 2 == 0:
        terms, meanings = items[::2], items[1::2]
        if all(len(t.split()) <= 6 and not t.endswith((".", ":")) for t in terms) and all(
            m.endswith(".") for m in meanings
        ):
            pairs += [(t, m, m) for t, m in zip(terms, meanings, strict=True)]
    for term, meaning, raw in pairs:
        sentence = next(split_sentences(plain(meaning)), None)
        if sentence is None or not re.fullmatch(r"[JNSVGCKi(),DI]*[NSG)]", tag(term)[1]) or " and " in term:
            continue
        # A definition is a phrase; a whole statement says something else about the term.
        if tag(sentence.text)[1][0] not in "DNSJVZC" or DANGLING.search(term) or parse_clause(sentence.text):
            continue
        yield Draft(
            f'What does the term "{lower_first(plain(term))}" mean?', sentence.text, "definition", evidence=raw.strip()
        )


def _steps(headings: list[str], text: str) -> Iterator[Draft]:
    """A numbered list from 1 on, under a heading that names the goal, asks for the steps."""
    steps: list[str] = []
    for line in [*text.splitlines(), ""]:
        found = _STEP.match(line)
        if found and int(found["n"]) == len(steps) + 1:
            steps.append(plain(found["text"]).rstrip(".;"))
        elif line.strip() and not found:
            break
    goal = _goal(headings[-1])
    if len(steps) < 2 or goal is None or not all(tag(step)[1][:1] in "BNHV" for step in steps):
        return
    yield Draft(f"What is the first step {goal}?", steps[0], "procedure", evidence=steps[0])
    whole = "; ".join(steps)
    if len(whole.split()) <= 45:
        yield Draft(f"What are the steps {goal}?", whole, "procedure", evidence=text.strip())


def _goal(heading: str) -> str | None:
    heading = plain(heading).rstrip(".:")
    found = re.match(r"How (?:do you |do I |can you |to )(?P<aim>[a-z].+?)\??$", heading)
    if found:
        aim = found["aim"]
        return None if DANGLING.search(aim) else f"to {aim}"
    if re.match(r"[A-Z][a-z]+ing [A-Za-z]", heading) and tag(heading)[1][0] in "GN" and not DANGLING.search(heading):
        return f"in {heading[0].lower()}{heading[1:]}"
    return None


def _heading(heading: str, text: str) -> Iterator[Draft]:
    """A heading that is a question is answered by the first sentence below it."""
    heading = re.sub(r"^(?:Q\s*[:.)]\s*|\d+[.)]\s*)", "", plain(heading)).strip()
    found = re.match(r"(?P<wh>What|Which|Who|When|Where|Why|How|Is|Are|Can|Do|Does|Must|Should|Will)\b.*\?$", heading)
    lines = prose_lines(text)
    if found is None or not lines or not 4 <= len(heading.split()) <= 25:
        return
    sentence = next(split_sentences(lines[0]), None)
    if sentence is None or not plain(lines[0]).startswith(sentence.text) or sentence.text.endswith(":"):
        return
    answer, wh = sentence.text, found["wh"]
    kind = {"What": "definition", "Why": "reason", "How": "procedure"}.get(wh, "fact")
    if wh in {"Is", "Are", "Can", "Do", "Does", "Must", "Should", "Will"}:
        kind = "yes_no"
        if not re.match(r"(?:Yes|No)\b", answer):
            return
    if re.match(r"How (?:many|much|long|often|far|fast|high)\b", heading):
        kind = "number"
        if not re.search(r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve)\b", answer):
            return
    elif kind == "definition" and not re.match(r"What (?:is|are) ", heading):
        kind = "fact"
    # The answer must be about what is asked: they share a word that is no function word.
    asked = {w.lower().rstrip("s") for w in re.findall(r"[A-Za-z]{4,}", heading)}
    if asked & {w.lower().rstrip("s") for w in re.findall(r"[A-Za-z]{4,}", answer)} - {
        "what",
        "which",
        "when",
        "where",
        "does",
    }:
        yield Draft(heading, answer, kind, evidence=sentence.raw)
