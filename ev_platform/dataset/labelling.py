"""Unlabelled texts as classification candidates: which are labelled, and which labels are used.

What does not belong here: how a teacher is asked for a label (`teachers`), and label noise (`validate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ev_platform.dataset.locate import plain
from ev_platform.dataset.sampling import in_seeded_order, not_asked, text_id, was_asked
from ev_platform.identity import short_id
from ev_platform.records import Example, GenerationOutcome
from ev_platform.tasks.config import DatasetConfig
from ev_platform.tasks.rows import TaskRow
from ev_platform.teachers import Brief, Label, Outcome, Teacher, TextJob

# So many texts are labelled for each one that is wanted: a class with a fifth of its even share still gets its quota.
TEXTS_PER_LABEL = 5


def choose_texts(
    texts: Sequence[str], rows: Sequence[TaskRow], config: DatasetConfig, teacher: str
) -> tuple[list[TextJob], dict[str, GenerationOutcome]]:
    """Choose the texts that a teacher labels.

    Args:
        texts: Distinct.
        rows: Hand-written rows of both splits; a text that one of them holds is left out.
        config: Limits and seed.
        teacher: Its name, for the log.

    Returns:
        The jobs, in a seeded order; and by source_id, what became of the other texts.
    """
    known = {plain(row.question): f"it stands in {row.where}" for row in reversed(rows)}
    jobs: list[TextJob] = []
    log = {}
    for text in in_seeded_order(texts, texts, config.seed):
        source_id = text_id(text)
        why = known.get(plain(text))
        if why is None and len(jobs) >= TEXTS_PER_LABEL * config.max_examples:
            why = f"{len(jobs)} other texts are enough for dataset.max_examples {config.max_examples}"
        if why is None:
            jobs.append(TextJob(source_id, text))
            known[plain(text)] = f"its words are those of {source_id}"
        else:
            log[source_id] = not_asked(teacher, source_id, "not_sampled", why)
    return jobs, log


def label_texts(
    brief: Brief, jobs: Sequence[TextJob], config: DatasetConfig, teacher: Teacher
) -> tuple[dict[str, Example], dict[str, GenerationOutcome]]:
    """Label texts, and use as many of each class.

    Of the confident labels of a class, those of the first jobs are used, up to an even share of `max_examples`. The
    surest ones are not preferred: they are the easiest.

    Args:
        brief: The task, with its classes.
        jobs: In the order in which they are to be used.
        config: Limits.
        teacher: Who labels.

    Returns:
        By source_id, the labelled texts that are used, and what became of every one.
    """
    outcomes = list(teacher.label(brief, jobs)) if jobs else []
    shares = _shares(brief.classes, outcomes, config)
    n_used: Counter[str] = Counter()
    used: dict[str, Example] = {}
    log: dict[str, GenerationOutcome] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        label = outcome.value
        why = _why_unused(label, n_used, shares, config) if label else None
        if label and why is None:
            n_used[label.label] += 1
            used[job.source_id] = _example(job.text, label, outcome, teacher)
        log[job.source_id] = was_asked(teacher.name, outcome, 1, int(job.source_id in used), why)
    return used, log


def _shares(classes: Iterable[str], outcomes: Sequence[Outcome[Label]], config: DatasetConfig) -> dict[str, int]:
    """Return how many of each class may be used; what does not divide goes to the classes that have the most."""
    n_found = Counter(o.value.label for o in outcomes if o.value and o.value.confidence >= config.min_label_confidence)
    names = sorted(classes, key=lambda name: (-n_found[name], name))
    each, n_more = divmod(config.max_examples, max(1, len(names)))
    return {name: each + (rank < n_more) for rank, name in enumerate(names)}


def _why_unused(label: Label, n_used: Counter[str], shares: dict[str, int], config: DatasetConfig) -> str | None:
    said = f"labelled {label.label!r}"
    if label.confidence < config.min_label_confidence:
        return f"{said} with confidence {label.confidence:.2f} < {config.min_label_confidence:.2f}"
    if n_used[label.label] >= shares.get(label.label, 0):
        return f"{said}, a class that has its share of {shares.get(label.label, 0)}"
    return None


def _example(text: str, label: Label, outcome: Outcome[Label], teacher: Teacher) -> Example:
    return Example(
        example_id=short_id("exm", text, label.label, None),
        question=text,
        answer=label.label,
        answers=[label.label],
        answer_start=None,
        is_answerable=True,
        chunk_id=None,
        document_id=None,
        cluster_id=None,
        context=None,
        origin="labelled",
        teacher=teacher.name,
        kind="label",
        difficulty=None,
        register=None,
        evidence=None,
        confidence=label.confidence,
        split="train",
        row=None,
        call_id=outcome.call_id,
        prompt_version=outcome.prompt_version,
        cost_usd=outcome.cost_usd,
    )
