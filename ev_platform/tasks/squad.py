"""SQuAD 1.1 and 2.0 files: paragraphs with questions, and answers that are spans of their paragraph.

The format is that of Rajpurkar et al. 2016 and 2018: `data`, `paragraphs`, `qas`; offsets count Unicode characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ev_platform.tasks.formats import Problem, check_value


@dataclass(frozen=True, slots=True)
class SquadQuestion:
    """One question of a SQuAD file.

    Attributes:
        place: Path in the file, such as `data[0].paragraphs[2].qas[5]`.
        question: Not empty.
        context: The paragraph, without the blanks around it.
        answers: All that are accepted, each once; none where the paragraph holds no answer.
        answer_start: Where the first answer begins in the context, in characters.
    """

    place: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_start: int | None


def read_squad(file: Path, data: dict[str, Any]) -> Iterator[SquadQuestion | Problem]:
    """Yield the questions of a parsed SQuAD file, in its order."""
    for article_place, article in _items(file, "", "data", data):
        if isinstance(article, Problem):
            yield article
            continue
        for paragraph_place, paragraph in _items(file, article_place, "paragraphs", article):
            if isinstance(paragraph, Problem):
                yield paragraph
                continue
            context = check_value(file, paragraph_place, "context", paragraph.get("context"))
            if isinstance(context, Problem):
                yield context
                continue
            for place, qa in _items(file, paragraph_place, "qas", paragraph):
                yield qa if isinstance(qa, Problem) else _question(file, place, qa, paragraph["context"])


def _items(file: Path, place: str, key: str, parent: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (place, object or Problem) for each object of a list."""
    items = parent.get(key)
    if not isinstance(items, list):
        where = f"{place}: " if place else ""
        problem = Problem(f"{file} {where}{key} is not a list, as SQuAD has it.", file.name, place or None, key)
        yield place, problem
        return
    for number, item in enumerate(items):
        inside = f"{place}.{key}[{number}]".lstrip(".")
        if isinstance(item, dict):
            yield inside, item
        else:
            yield inside, Problem(f"{file} {inside} is not an object, as SQuAD has it.", file.name, inside)


def _question(file: Path, place: str, qa: dict[str, Any], context: str) -> SquadQuestion | Problem:
    def wrong(column: str, what: str) -> Problem:
        return Problem(f"{file} {place}: {what}", file.name, place, column)

    question = check_value(file, place, "question", qa.get("question"))
    if isinstance(question, Problem):
        return question
    answers = qa.get("answers") or []
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return wrong("answers", "answers is not a list of objects with text and answer_start.")
    if qa.get("is_impossible"):
        if answers:
            return wrong("is_impossible", "is_impossible is true, but there are answers: remove one of the two.")
        return SquadQuestion(place, question, context.strip(), (), None)
    if not answers:
        return wrong("answers", "answers is empty: write one, or set is_impossible to true.")
    starts: dict[str, int] = {}
    for answer in answers:
        text = check_value(file, place, "answers.text", answer.get("text"))
        if isinstance(text, Problem):
            return text
        start = answer.get("answer_start")
        if not isinstance(start, int) or isinstance(start, bool):
            return wrong("answer_start", f"answer_start of {text!r} is {type(start).__name__}, not a whole number.")
        # Blanks around an answer belong to neither side.
        raw = str(answer["text"])
        if start < 0 or context[start : start + len(raw)] != raw:
            nearest = min((abs(at - start), at) for at in _positions(context, raw)) if raw in context else None
            hint = f"it stands at {nearest[1]}" if nearest else "the context does not hold it"
            return wrong("answer_start", f"answer_start {start} does not point at {text!r}: {hint}.")
        starts.setdefault(text, start + len(raw) - len(raw.lstrip()) - (len(context) - len(context.lstrip())))
    first = next(iter(starts))
    return SquadQuestion(place, question, context.strip(), tuple(starts), starts[first])


def _positions(context: str, text: str) -> Iterator[int]:
    at = context.find(text)
    while at >= 0:
        yield at
        at = context.find(text, at + 1)
