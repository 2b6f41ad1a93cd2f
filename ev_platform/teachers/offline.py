"""The offline teacher: takes an answer from a passage, then asks for it, so every pair is grounded by construction.

It needs no key and no language model: questions come from rules over English sentences, tables and lists, labels from a
classifier of sentence embeddings. Here stands which of the questions found are returned, and how unanswerable ones are
chosen; what does not belong here: the rules (`offline_rules`, `offline_blocks`) and the classifier (`offline_labels`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version

from ev_platform.identity import code_version, fingerprint, short_id
from ev_platform.teachers import (
    AnswerJob,
    Brief,
    Check,
    CheckJob,
    Draft,
    GenerationJob,
    JudgeJob,
    Judgement,
    Label,
    Outcome,
    PairJob,
    Preference,
    Shot,
    TextJob,
)

# Of the content words of an unanswerable question, so many stand in the passage: few enough that it holds no answer in
# other words, and at least one so that the question is about the same thing.
_MAX_SHARED = 0.67
# A passage that shares this share of its words with the question's own says the same things.
_MAX_SAME_PASSAGE = 0.5
# Candidates that are looked at before a passage is left without an unanswerable question.
_MAX_TRIES = 3000
_STOPWORDS = frozenset(
    "a an and are as at be been by can could do does for from had has have how if in into is it its many may more"  # noqa: SIM905 - words
    " most"
    " must much not of on one only or other should so such than that the their them then there these they this those to"
    " under used was were what when where which while who why will with within would context yes no".split()
)
_CANNOT = "The offline teacher has no language model, so that it cannot {}; configure teacher.provider to use one."


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A question of one passage that may be unanswerable from another."""

    key: str
    job: int
    draft: Draft
    question_words: frozenset[str]
    answer_words: frozenset[str]


class OfflineTeacher:
    """A `Teacher` of rules and a small classifier.

    Args:
        train_rows: Hand-written rows that the classifier learns from, beside the shots of the brief.
        seed: Chooses among the questions that a passage gives.
    """

    name = "offline"

    def __init__(self, train_rows: Sequence[Shot] = (), seed: int = 17):
        self._train_rows = tuple(train_rows)
        self._seed = seed

    def generate(self, brief: Brief, jobs: Sequence[GenerationJob]) -> Iterator[Outcome[tuple[Draft, ...]]]:
        """Write questions whose answers stand in the passages.

        A question is returned for each plan, of its kind where the passage gives one. Difficulty, register and topics
        are beyond the rules. An unanswerable question is one that another passage answers, so that it needs several
        jobs; where no passage gives one, another kind stands in for it.

        Args:
            brief: Its language must be English; `no_answer` answers the unanswerable.
            jobs: Passages in the order of their documents: a heading that asks is answered by the first below it.

        Yields:
            One outcome a job; an empty tuple where no rule found anything.
        """
        if brief.language != "en":
            detail = f"The offline teacher's rules are for English and the task's language is {brief.language!r}."
            yield from (Outcome(job.source_id, "unsupported", detail=detail) for job in jobs)
            return
        found: list[list[Draft]] = []
        headings: set[str] = set()
        for job in jobs:
            found.append(_drafts(job, is_first_of_heading=job.heading_path not in headings))
            headings.add(job.heading_path)
        chosen = [self._choose(job, drafts) for job, drafts in zip(jobs, found, strict=True)]
        foreign = _Foreign(jobs, found, chosen)
        for number, job in enumerate(jobs):
            drafts = chosen[number]
            for _ in range(sum(plan.kind == "unanswerable" for plan in job.plans)):
                draft = foreign.pick(number, brief.no_answer) or _first(self._pool(job, found[number]), drafts, None)
                drafts = [*drafts, draft] if draft else drafts
            yield Outcome(job.source_id, "ok", tuple(drafts), prompt_version=prompt_version())

    def _pool(self, job: GenerationJob, found: Sequence[Draft]) -> list[Draft]:
        """Return drafts in a random order that is the job's own; what is answered by no, which is rare, comes first."""

        def order(draft: Draft) -> tuple[bool, str]:
            is_no = draft.kind == "yes_no" and draft.answer.startswith("No")
            return not is_no, fingerprint([self._seed, job.source_id, draft.question, draft.answer])

        return sorted(found, key=order)

    def _choose(self, job: GenerationJob, found: Sequence[Draft]) -> list[Draft]:
        """Return a draft for each answerable plan, of its kind first; no two from one sentence while there are others.

        Whether a statement holds is asked only where that is wanted: almost every sentence gives such a question, and
        they would crowd out the others.
        """
        pool = self._pool(job, found)
        chosen: list[Draft] = []
        plans = [plan for plan in job.plans if plan.kind != "unanswerable"]
        for plan in plans:
            fit = _first(pool, chosen, plan.kind)
            if fit is not None:
                chosen.append(fit)
        while len(chosen) < len(plans):
            fit = _first(pool, chosen, None)
            if fit is None:
                break
            chosen.append(fit)
        return chosen

    def label(self, brief: Brief, jobs: Sequence[TextJob]) -> Iterator[Outcome[Label]]:
        """Label texts by a classifier fitted on the train rows, the brief's shots and the descriptions of its classes.

        Its confidence is the probability of the label. Calibrated by cross-validation where each class has three rows.

        Raises:
            UserError: If the brief has fewer than two classes.
        """
        labels = self._classify(brief, [job.text for job in jobs])
        for job, label in zip(jobs, labels, strict=True):
            yield Outcome(job.source_id, "ok", label, prompt_version=prompt_version())

    def _classify(self, brief: Brief, texts: Sequence[str]) -> Iterator[Label]:
        from ev_platform.teachers.offline_labels import LabelModel

        return LabelModel(brief.classes, [*self._train_rows, *brief.shots]).predict(texts)

    def answer(self, brief: Brief, jobs: Sequence[AnswerJob]) -> Iterator[Outcome[str]]:
        """Answer with a label where the task has classes; questions are beyond this teacher."""
        if not brief.classes:
            yield from _unsupported(jobs, "answer questions")
            return
        labels = self._classify(brief, [job.question for job in jobs])
        for job, label in zip(jobs, labels, strict=True):
            yield Outcome(job.source_id, "ok", label.label, prompt_version=prompt_version())

    def judge(self, brief: Brief, jobs: Sequence[JudgeJob]) -> Iterator[Outcome[Judgement]]:
        """Say that this teacher cannot judge."""
        yield from _unsupported(jobs, "judge answers")

    def compare(self, brief: Brief, jobs: Sequence[PairJob]) -> Iterator[Outcome[Preference]]:
        """Say that this teacher cannot compare."""
        yield from _unsupported(jobs, "compare answers")

    def check(self, brief: Brief, jobs: Sequence[CheckJob]) -> Iterator[Outcome[Check]]:
        """Say that this teacher cannot check."""
        yield from _unsupported(jobs, "check examples")


@cache
def prompt_version() -> str:
    """Return the hash of the rules, which stand in the place of a prompt, and of the tagger's version."""
    modules = ("blocks", "clauses", "grammar", "labels", "numbers", "rules", "text")
    code = code_version(*(import_module(f"ev_platform.teachers.offline_{name}") for name in modules))
    return short_id("prm", code, version("textblob"))


def _unsupported(jobs: Sequence[AnswerJob | JudgeJob | PairJob | CheckJob], what: str) -> Iterator[Outcome]:
    return (Outcome(job.source_id, "unsupported", detail=_CANNOT.format(what)) for job in jobs)


def _drafts(job: GenerationJob, *, is_first_of_heading: bool) -> list[Draft]:
    from ev_platform.teachers.offline_blocks import block_drafts
    from ev_platform.teachers.offline_rules import sentence_drafts

    found = [
        *block_drafts(job.heading_path, job.text, is_first_of_heading=is_first_of_heading),
        *sentence_drafts(job.heading_path, job.text),
    ]
    asked = Counter(draft.question.lower() for draft in found)
    # A question that the passage answers in two ways has no right answer.
    return [draft for draft in found if asked[draft.question.lower()] == 1]


def _first(pool: Sequence[Draft], chosen: Sequence[Draft], kind: str | None) -> Draft | None:
    """Return the first draft of a kind (None: of any but yes_no), rather of a sentence that none was chosen from."""
    fit = [d for d in pool if d not in chosen and (d.kind == kind if kind else d.kind != "yes_no")]
    used = {draft.evidence for draft in chosen}
    return next((draft for draft in fit if draft.evidence not in used), fit[0] if fit else None)


class _Foreign:
    """Questions that no passage has used, to find one that a passage does not answer; each is given away once."""

    def __init__(
        self, jobs: Sequence[GenerationJob], found: Sequence[Sequence[Draft]], chosen: Sequence[Sequence[Draft]]
    ):
        self._jobs = jobs
        self._used = {draft.question for drafts in chosen for draft in drafts}
        self._words = [_content_words(f"{job.heading_path} {job.text}") for job in jobs]
        self._ring = sorted(
            (
                _Candidate(
                    fingerprint([jobs[number].source_id, draft.question]),
                    number,
                    draft,
                    _content_words(draft.question),
                    _content_words(draft.answer),
                )
                for number, drafts in enumerate(found)
                for draft in drafts
                # A yes or no question has half a chance of being true elsewhere too.
                if draft.kind != "yes_no"
            ),
            key=lambda candidate: candidate.key,
        )
        self._by_title: dict[str, list[_Candidate]] = defaultdict(list)
        for candidate in self._ring:
            self._by_title[self._title(candidate.job)].append(candidate)

    def _title(self, number: int) -> str:
        return self._jobs[number].heading_path.split(" > ")[0]

    def pick(self, number: int, no_answer: str) -> Draft | None:
        """Return a question about the passage's subject that it does not answer.

        Questions of the same document come first. Passages and questions lie on one ring of hashes (consistent
        hashing), so that a changed page changes only few choices of others.
        """
        place = fingerprint([self._jobs[number].source_id])
        for ring in (self._by_title[self._title(number)], self._ring):
            start = bisect_left(ring, place, key=lambda candidate: candidate.key)
            for step in range(min(len(ring), _MAX_TRIES)):
                candidate = ring[(start + step) % len(ring)]
                if candidate.draft.question not in self._used and self._is_unanswered(candidate, number):
                    self._used.add(candidate.draft.question)
                    return Draft(candidate.draft.question, no_answer, "unanswerable", is_answerable=False)
        return None

    def _is_unanswered(self, candidate: _Candidate, number: int) -> bool:
        here, there = self._words[number], self._words[candidate.job]
        asked = candidate.question_words
        if candidate.job == number or not asked or not candidate.answer_words:
            return False
        shared = asked & here
        return (
            0 < len(shared) <= _MAX_SHARED * len(asked)
            # What its own passage answers with must not stand here, not even in part.
            and not candidate.answer_words & here
            and len(here & there) <= _MAX_SAME_PASSAGE * min(len(here), len(there))
            and (len(shared) >= 2 or self._title(number) == self._title(candidate.job))
        )


def _content_words(text: str) -> frozenset[str]:
    """Return the words of a text that carry meaning, without plural and verb endings."""
    words = re.findall(r"[^\W_]+(?:[.,]\d+)?", text.lower())
    return frozenset(_stem(word) for word in words if word not in _STOPWORDS)


def _stem(word: str) -> str:
    if len(word) < 5 or not word.isalpha():
        return word
    return re.sub(r"(?:ies|y|es|s|ed|ing|e)$", "", word)
