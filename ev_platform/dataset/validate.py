"""Which candidates become examples; every other one is kept with its reason.

What belongs here: the order in which rules are asked, and which of two rows wins. What does not: the rules themselves
(`filters`, `grounding`, `overlap`).
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from ev_platform.dataset.feedback import find_unsound
from ev_platform.dataset.filters import (
    find_dependence,
    find_foreign,
    find_malformed,
    find_refusal,
    find_residue,
    find_unnatural,
    find_unsupported,
)
from ev_platform.dataset.grounding import Flaw
from ev_platform.dataset.overlap import (
    Embed,
    Vectors,
    find_overlaps,
    near_duplicates,
    normalise,
)
from ev_platform.identity import short_id
from ev_platform.prompting import passage_text
from ev_platform.records import Example, RejectedExample, Review, to_frame
from ev_platform.tasks.config import DatasetConfig
from ev_platform.tasks.types import TaskType
from ev_platform.teachers import Check, CheckJob, Outcome

# A labelled text is doubted if the hand-written texts of another label are nearer than its own label's by this.
# Of public test rows, 0 to 3 % of right labels are doubted, and of wrong ones drawn at random 98 % in Banking77,
# 79 % in distil_banking_routing, 49 % in distil_ecommerce and distil_mental_health, whose texts are long.
LABEL_MARGIN = 0.15
_NEAREST = 3  # hand-written texts of a label that stand for it; one alone may be mislabelled itself

_log = logging.getLogger(__name__)

Ask = Callable[[list[CheckJob]], Iterator[Outcome[Check]]]


def validate_candidates(
    candidates: pl.DataFrame,
    chunks: pl.DataFrame,
    reviews: pl.DataFrame | Iterable[Review],
    *,
    config: DatasetConfig,
    task_type: TaskType,
    classes: Mapping[str, str],
    no_answer: str,
    languages: Sequence[str],
    check: Ask | None = None,
    embed: Embed | None = None,
) -> dict[str, pl.DataFrame]:
    """Split candidates into examples and rejected ones.

    Where two rows are the same, the earlier one in this order stays: test rows, which are kept whatever they look like
    unless one repeats another; hand-written train rows; rows that a person accepted or edited, which no rule on style
    judges; generated and labelled rows. A row that comes from feedback counts as hand-written, but must be supported by
    its passage. Only generated rows that pass every rule are put to the teacher; where it gives no verdict, the rules'
    verdict stands.

    Args:
        candidates: The `qa_candidates` table.
        chunks: The `chunks` table.
        reviews: People's judgements; the last one of an example counts.
        config: Limits and thresholds.
        task_type: Judges what its type forbids.
        classes: Label to its description; empty where there are no classes.
        no_answer: What is answered where a passage does not hold the answer.
        languages: ISO 639-1 codes that are wanted.
        check: Asks the teacher; None: the rules alone decide.
        embed: Embeds questions; the bundled MiniLM where None. Give a `Vectors` to share its work.

    Returns:
        The tables `examples` and `rejected_examples`; their rows add up to the candidates'.
    """
    embed = embed or Vectors()
    passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
    rows, flaws = _reviewed(candidates.to_dicts(), reviews, no_answer)
    order = sorted(range(len(rows)), key=lambda i: (_rank(rows[i]), i))
    rows, flaws = [rows[i] for i in order], {n: flaws[i] for n, i in enumerate(order) if i in flaws}

    for i, row in enumerate(rows):
        if i not in flaws and row["split"] != "test" and row["request_id"] is None:
            passage = row["context"] or passages.get(row["chunk_id"] or "")
            flaw = _judge(row, passage, config, task_type, classes, no_answer, languages)
            if flaw:
                flaws[i] = flaw
    judges = (
        _leaks(chunks, config, embed),
        _from_feedback(passages, task_type, classes, no_answer),
        _labels(classes, embed),
        _repeats(config, embed, classes),
    )
    for judge in judges:
        left = [i for i in range(len(rows)) if i not in flaws]
        flaws |= {left[i]: flaw for i, flaw in judge([rows[i] for i in left]).items()}
    if check is not None:
        left = [i for i, row in enumerate(rows) if i not in flaws and row["origin"] == "generated"]
        flaws |= _ask_teacher(check, rows, left, passages)

    names = [field.name for field in dataclasses.fields(RejectedExample) if not field.name.startswith("reject_")]
    return {
        "examples": to_frame("examples", [Example(**row) for i, row in enumerate(rows) if i not in flaws]),
        "rejected_examples": to_frame(
            "rejected_examples",
            [
                RejectedExample(
                    **{n: row[n] for n in names}, reject_reason=flaws[i][0], reject_detail=flaws[i][1] or None
                )
                for i, row in enumerate(rows)
                if i in flaws
            ],
        ),
    }


def _rank(row: dict[str, Any]) -> int:
    if row["split"] == "test":
        return 0
    return {"human": 1, "reviewed": 2}.get(row["origin"], 3)


def _reviewed(
    rows: list[dict[str, Any]], reviews: pl.DataFrame | Iterable[Review], no_answer: str
) -> tuple[list[dict[str, Any]], dict[int, Flaw]]:
    """Return the rows as people left them, and those that they rejected."""
    given = reviews.to_dicts() if isinstance(reviews, pl.DataFrame) else [dataclasses.asdict(r) for r in reviews]
    by_example = {review["example_id"]: review for review in sorted(given, key=lambda r: r["reviewed_at"])}
    flaws: dict[int, Flaw] = {}
    done = []
    for i, row in enumerate(rows):
        seen: set[str] = set()
        # An edited row has another id, under which a person may have judged it once more.
        while row["split"] != "test" and row["example_id"] in by_example and row["example_id"] not in seen:
            review = by_example[row["example_id"]]
            seen.add(row["example_id"])
            if review["decision"] == "reject":
                flaws[i] = ("rejected_by_reviewer", review["comment"] or review["reviewer"])
                break
            row = row | {"origin": "reviewed"}
            if review["decision"] == "edit":
                row = _edited(row, review["question"], review["answer"], no_answer)
        done.append(row)
    return done, flaws


def _edited(row: dict[str, Any], question: str, answer: str, no_answer: str) -> dict[str, Any]:
    edited = row | {"question": question, "answer": answer}
    edited["example_id"] = short_id("exm", question, answer, row["chunk_id"] or row["context"])
    if answer != row["answer"]:
        # Whole words: the 8 that somebody wrote is not the one in 18.
        found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", row["context"] or "")
        is_answerable = normalise(answer) != normalise(no_answer)
        start = found.start() if found and is_answerable else None
        edited |= {"answers": [answer], "answer_start": start, "is_answerable": is_answerable}
    return edited


def _judge(
    row: dict[str, Any],
    passage: str | None,
    config: DatasetConfig,
    task_type: TaskType,
    classes: Mapping[str, str],
    no_answer: str,
    languages: Sequence[str],
) -> Flaw | None:
    """Judge a training row by itself."""
    question, answer, origin = row["question"], row["answer"], row["origin"]
    if passage is None and task_type.trains_with_passages:
        return "no_source", f"{row['row'] or row['example_id']}: its source is not in the corpus; see dropped_documents"
    said = task_type.flaw(row, passage, classes)
    if said:
        reason, _, detail = said.partition(":")
        return reason.strip(), detail.strip()
    if origin == "labelled":
        if row["confidence"] is not None and row["confidence"] < config.min_label_confidence:
            return "unsure_label", f"confidence {row['confidence']:.2f} < {config.min_label_confidence:.2f}"
        return find_unnatural(question) or find_foreign(question, languages)
    if origin != "generated":
        return None
    flaw = find_residue(question, answer)
    if flaw is None and row["is_answerable"]:
        flaw = find_refusal(answer)
    flaw = flaw or find_foreign(f"{question} {answer if row['is_answerable'] else ''}", languages)
    flaw = flaw or find_dependence(question)
    flaw = flaw or find_malformed(question, answer, config.max_question_words, config.max_answer_words)
    if flaw is None and passage is not None:
        flaw = find_unsupported(question, answer, passage, is_answerable=row["is_answerable"], no_answer=no_answer)
    return flaw


def _leaks(
    chunks: pl.DataFrame, config: DatasetConfig, embed: Embed
) -> Callable[[list[dict[str, Any]]], dict[int, Flaw]]:
    """Return what finds the training rows that meet a test row."""

    def judge(rows: list[dict[str, Any]]) -> dict[int, Flaw]:
        frame = to_frame("examples", [Example(**row) for row in rows])
        test = frame.filter(pl.col("split") == "test")
        found = find_overlaps(frame.filter(pl.col("split") != "test"), test, chunks, config, embed=embed)
        where = dict(zip(test["example_id"], test["row"], strict=True))
        flaws: dict[str, Flaw] = {}
        # That a question is a test row's own says more than that they share a document.
        for leak in sorted(found, key=lambda leak: leak.reason != "equals_test_question"):
            place = where[leak.test_example_id] or leak.test_example_id
            flaws.setdefault(leak.example_id, (leak.reason, f"{leak.figure:.2f}: {place}"))
        return {
            i: flaws[row["example_id"]]
            for i, row in enumerate(rows)
            if row["split"] != "test" and row["example_id"] in flaws
        }

    return judge


def _from_feedback(
    passages: Mapping[str, str], task_type: TaskType, classes: Mapping[str, str], no_answer: str
) -> Callable[[list[dict[str, Any]]], dict[int, Flaw]]:
    """Return what finds the accepted rows from feedback that are unsound, after those that ask what a test row asks."""

    def judge(rows: list[dict[str, Any]]) -> dict[int, Flaw]:
        flaws: dict[int, Flaw] = {}
        for i, row in enumerate(rows):
            if row["request_id"] is not None:
                flaw = find_unsound(row, passages.get(row["chunk_id"] or ""), task_type, classes, no_answer)
                if flaw:
                    flaws[i] = flaw
        return flaws

    return judge


def _repeats(
    config: DatasetConfig, embed: Embed, classes: Mapping[str, str]
) -> Callable[[list[dict[str, Any]]], dict[int, Flaw]]:
    """Return what finds the rows that ask what an earlier one asks.

    Hand-written rows repeat each other only if they are equal, in what they ask and of what; a generated row
    also if it is nearly the same.
    """

    def judge(rows: list[dict[str, Any]]) -> dict[int, Flaw]:
        made = [i for i, row in enumerate(rows) if row["origin"] in ("generated", "labelled")]
        near = near_duplicates(rows, config, embed, made)
        flaws: dict[int, Flaw] = {}
        asked: dict[tuple[str, str], int] = {}
        for i, row in enumerate(rows):
            key = normalise(row["question"]), normalise(row["context"] or "")
            if key in asked:
                first = rows[asked[key]]
                flaws[i] = _repeat(row, first, "repeated_question", 1.0, classes)
                continue
            for j, figure in near.get(i, ()):
                if j not in flaws:
                    flaws[i] = _repeat(row, rows[j], "near_duplicate_question", figure, classes)
                    break
            else:
                asked[key] = i
        return flaws

    return judge


def _repeat(row: dict[str, Any], first: dict[str, Any], reason: str, figure: float, classes: Mapping[str, str]) -> Flaw:
    place = first["row"] or first["example_id"]
    if classes and row["answer"] != first["answer"]:
        return "conflicting_label", f"{row['answer']!r} here, {first['answer']!r} in {place} ({figure:.2f})"
    return reason, f"{figure:.2f}: asked in {place}"


def _labels(classes: Mapping[str, str], embed: Embed) -> Callable[[list[dict[str, Any]]], dict[int, Flaw]]:
    """Return what finds the labelled texts that lie nearer to hand-written texts of another label."""

    def judge(rows: list[dict[str, Any]]) -> dict[int, Flaw]:
        labelled = [i for i, row in enumerate(rows) if row["origin"] == "labelled"]
        by_label: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            if row["split"] != "test" and row["origin"] in ("human", "reviewed"):
                by_label[row["answer"]].append(row["question"])
        if not classes or not labelled or len(by_label) < 2:
            return {}
        texts = embed([rows[i]["question"] for i in labelled])
        flaws: dict[int, Flaw] = {}
        fits: dict[str, Any] = {}
        for label, own in sorted(by_label.items()):
            cosines = texts @ embed(own).T
            cosines.sort(axis=1)
            fits[label] = cosines[:, -_NEAREST:].mean(axis=1)
        for n, i in enumerate(labelled):
            label = rows[i]["answer"]
            if label not in fits:
                continue  # nobody wrote a text of this label
            other = max((name for name in fits if name != label), key=lambda name: fits[name][n])
            margin = float(fits[other][n] - fits[label][n])
            if margin > LABEL_MARGIN:
                flaws[i] = ("label_disagrees", f"{other!r} is nearer by {margin:.2f}")
        return flaws

    return judge


def _ask_teacher(
    check: Ask, rows: list[dict[str, Any]], left: list[int], passages: Mapping[str, str]
) -> dict[int, Flaw]:
    """Put the survivors to the teacher; where it says nothing of one, it stays."""
    jobs, asked = [], {}
    for i in left:
        row = rows[i]
        passage = row["context"] or passages.get(row["chunk_id"] or "")
        if passage is not None:
            asked[row["example_id"]] = i
            jobs.append(CheckJob(row["example_id"], passage, row["question"], row["answer"], row["is_answerable"]))
    flaws: dict[int, Flaw] = {}
    silent: Counter[str] = Counter()
    for outcome in check(jobs) if jobs else ():
        said = outcome.value
        rows[asked[outcome.source_id]]["check_call_id"] = outcome.call_id
        if outcome.status != "ok" or said is None:
            silent[outcome.status] += 1
        elif not said.is_supported:
            flaws[asked[outcome.source_id]] = ("not_supported_by_teacher", said.reason)
        elif not said.is_self_contained:
            flaws[asked[outcome.source_id]] = ("not_self_contained", f"teacher: {said.reason}")
    if silent:
        told = ", ".join(f"{n} {status}" for status, n in sorted(silent.items()))
        _log.warning("the teacher checked %d of %d candidates (%s)", len(jobs) - silent.total(), len(jobs), told)
    return flaws
