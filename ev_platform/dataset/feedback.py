"""The way from what people said of served answers to training rows: candidates for review, then examples.

What a client sends is text of a stranger: it becomes a candidate, with personal data masked, and nothing more until a
person has accepted or edited it (`review`). An accepted row then passes the filters of every other row, and it must
rest on a passage of the corpus.

What does not belong here: taking feedback (`serving.feedback`), the sheet for reviewers (`review`), and the order in
which rules are asked (`validate`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import polars as pl

from ev_platform.corpus.privacy import mask_personal_data
from ev_platform.dataset.filters import find_refusal, find_residue, find_unnatural, find_unsupported
from ev_platform.dataset.grounding import Flaw
from ev_platform.dataset.locate import Locator, words
from ev_platform.dataset.overlap import normalise
from ev_platform.identity import short_id
from ev_platform.prompting import passage_text
from ev_platform.records import Example, FeedbackCandidate, to_frame
from ev_platform.tasks.rows import TaskRow
from ev_platform.tasks.types import TaskType

LIKED, CORRECTED, DISLIKED = "liked", "corrected", "disliked"
_STRONGEST_FIRST = (CORRECTED, LIKED, DISLIKED)

Row = dict[str, Any]


def collect_candidates(feedback: pl.DataFrame, previous: pl.DataFrame, reviews: pl.DataFrame) -> pl.DataFrame:
    """Turn feedback into candidates, one for each question and proposed answer.

    A correction proposes its text, a thumb up the given answer, and a thumb down alone nothing: a reviewer may write
    the answer. Of several judgements of one answer under one key the latest counts; ids are the clients' own, so that
    one id with two questions is two answers. A thumb up where the answer's text was not kept says nothing that could be
    judged, and is left out.

    Args:
        feedback: The journal's rows of one task.
        previous: Candidates of before, in any version of the table. What somebody has decided on stays as it was then,
            also when the journal no longer holds it, or its author said something else meanwhile.
        reviews: The `reviews` table.

    Returns:
        The table `feedback_candidates`, oldest first.
    """
    latest: dict[tuple[str, str, str], Row] = {}
    for row in feedback.sort("given_at", maintain_order=True).iter_rows(named=True):
        key = row["request_id"], row["key_id"], row["question"]
        latest.pop(key, None)
        latest[key] = row | {name: _masked(row[name]) for name in ("question", "answer", "correction", "comment")}

    keys: dict[tuple[str, str | None, str], set[str]] = defaultdict(set)
    proposals: dict[tuple[str, str], list[tuple[str, Row]]] = defaultdict(list)
    for row in latest.values():
        if not row["question"]:
            continue  # nothing was left of it
        keys[row["question"], row["answer"], row["rating"]].add(row["key_id"])
        kind, answer = _proposal(row)
        if kind:
            proposals[row["question"], answer].append((kind, row))

    decided = previous.filter(pl.col("example_id").is_in(reviews["example_id"].to_list()))
    made = {row["example_id"]: FeedbackCandidate(**row) for row in decided.iter_rows(named=True)}
    for (question, answer), rows in proposals.items():
        first = rows[0][1]
        candidate = FeedbackCandidate(
            example_id=short_id("fbk", question, answer),
            kind=min((kind for kind, _ in rows), key=_STRONGEST_FIRST.index),
            question=question,
            answer=answer,
            given_answer=first["answer"] or None,
            comments=list(dict.fromkeys(row["comment"] for _, row in reversed(rows) if row["comment"])),
            n_up=len(keys[question, first["answer"], "up"]),
            n_down=len(keys[question, first["answer"], "down"]),
            chunk_ids=first["chunk_ids"] or [],
            request_id=first["request_id"],
            request_ids=list(dict.fromkeys(row["request_id"] for _, row in rows)),
            model_version=first["model_version"],
            given_at=rows[-1][1]["given_at"],
            feedback_id=first["feedback_id"],
            key_id=first["key_id"],
        )
        made.setdefault(candidate.example_id, candidate)
    return to_frame("feedback_candidates", made.values())


def _masked(text: str | None) -> str:
    # A sheet cannot hold a NUL byte, and nobody means one.
    return mask_personal_data(text.replace("\0", "\ufffd"))[0].strip() if text else ""


def _proposal(row: Row) -> tuple[str | None, str]:
    """Return the kind of a judgement and the answer that it proposes; no kind where nothing can be judged."""
    if row["correction"] and row["correction"] != row["answer"]:
        return CORRECTED, row["correction"]
    if row["rating"] == "up":
        return (LIKED, row["answer"]) if row["answer"] else (None, "")
    return DISLIKED, ""


def decided_candidates(candidates: pl.DataFrame, reviews: pl.DataFrame) -> pl.DataFrame:
    """Return the candidates that somebody has decided on; the others take part in nothing."""
    return candidates.filter(pl.col("example_id").is_in(reviews["example_id"].to_list()))


def accepted_examples(
    candidates: pl.DataFrame, reviews: pl.DataFrame, chunks: pl.DataFrame, task_type: TaskType, no_answer: str
) -> list[Example]:
    """Return the candidates that somebody decided on as examples of the train split, in the reviewer's words.

    Each is joined to a passage that supports it: one that the served answer was made from, else one that the whole
    corpus holds, as hand-written rows are. Rejected ones keep the id under which they were rejected.

    Args:
        candidates: Rows of `feedback_candidates`; those without a decision are left out.
        reviews: One for each example: see `agreement.winning_reviews`.
        chunks: The `chunks` table.
        task_type: Whether there is a corpus to rest on.
        no_answer: What is answered where the passages do not hold the answer.
    """
    by_id = {review["example_id"]: review for review in reviews.iter_rows(named=True)}
    passages = _Passages(chunks if task_type.has_corpus else chunks.clear(), no_answer)
    examples = []
    for row in candidates.iter_rows(named=True):
        review = by_id.get(row["example_id"])
        if review is None:
            continue
        is_kept = review["decision"] != "reject"
        said = review if review["decision"] == "edit" else row
        question, answer = said["question"], said["answer"]
        chunk = passages.find(question, answer, row["chunk_ids"]) if is_kept else None
        chunk_id = chunk["chunk_id"] if chunk else None
        examples.append(
            Example(
                example_id=short_id("exm", question, answer, chunk_id) if is_kept else row["example_id"],
                question=question,
                answer=answer,
                answers=[answer],
                answer_start=None,
                is_answerable=passages.is_answerable(answer),
                chunk_id=chunk_id,
                document_id=chunk["document_id"] if chunk else None,
                cluster_id=chunk["cluster_id"] if chunk else None,
                context=None,
                origin="human",
                teacher=None,
                kind=row["kind"],
                difficulty=None,
                register=None,
                evidence=None,
                confidence=None,
                split="train",
                row=None,
                call_id=None,
                prompt_version=None,
                cost_usd=None,
                request_id=row["request_id"],
            )
        )
    return examples


def find_unsound(
    row: Mapping[str, Any], passage: str | None, task_type: TaskType, classes: Mapping[str, str], no_answer: str
) -> Flaw | None:
    """Return why an accepted row cannot be an example all the same; its style is the reviewer's business.

    Args:
        row: A candidate that comes from feedback.
        passage: The text that it rests on; None where none was found.
        task_type: Judges what it forbids, and says whether there must be a passage.
        classes: Label to its description; empty where there are no classes.
        no_answer: What is answered where the passages do not hold the answer.
    """
    question, answer = row["question"], row["answer"]
    said = task_type.flaw(row, passage, classes)
    if said:
        reason, _, detail = said.partition(":")
        return reason.strip(), detail.strip()
    if not task_type.has_corpus:
        return find_unnatural(question)
    flaw = find_residue(question, answer)
    if flaw is None and row["is_answerable"]:
        flaw = find_refusal(answer)
    if flaw is None and passage is None:
        return "no_source", f"no passage of the corpus holds it; asked in request {row['request_id']}"
    if flaw is None and passage is not None:
        flaw = find_unsupported(question, answer, passage, is_answerable=row["is_answerable"], no_answer=no_answer)
    return flaw


def _share(text: str, chunk: Row) -> float:
    asked = set(words(text))
    return len(asked & set(words(passage_text(chunk["heading_path"], chunk["text"])))) / max(1, len(asked))


class _Passages:
    """Finds the passage that an accepted row rests on."""

    def __init__(self, chunks: pl.DataFrame, no_answer: str):
        self._frame, self._no_answer = chunks, no_answer
        self._chunks = {chunk["chunk_id"]: chunk for chunk in chunks.iter_rows(named=True)}

    @cached_property
    def _locator(self) -> Locator:
        nothing = to_frame("clean_documents", []), to_frame("dropped_documents", [])
        return Locator(self._frame, *nothing)

    def is_answerable(self, answer: str) -> bool:
        return normalise(answer) != normalise(self._no_answer)

    def find(self, question: str, answer: str, cited: Sequence[str]) -> Row | None:
        """Return the cited passage that supports a row and says most of it, else another, else a cited one."""
        known = [self._chunks[chunk_id] for chunk_id in cited if chunk_id in self._chunks]
        # The rules of grounding find what contradicts an answer: of two passages that do not, one may be beside it.
        known.sort(key=lambda chunk: _share(answer, chunk) * 2 + _share(question, chunk), reverse=True)
        for chunk in known:
            if self._supports(chunk, question, answer):
                return chunk
        if self._chunks and self.is_answerable(answer):
            elsewhere = self._locator.find(TaskRow("train", "feedback", question, answer, None, None))
            if elsewhere and self._supports(elsewhere, question, answer):
                return elsewhere
        return known[0] if known else None

    def _supports(self, chunk: Row, question: str, answer: str) -> bool:
        passage, is_answerable = passage_text(chunk["heading_path"], chunk["text"]), self.is_answerable(answer)
        flaw = find_unsupported(question, answer, passage, is_answerable=is_answerable, no_answer=self._no_answer)
        return flaw is None
