"""Candidates: hand-written rows joined to their passages, and what a teacher makes of the rest of the corpus.

What does not belong here: which passages and texts are chosen (`sampling`, `labelling`), how a teacher is asked
(`teachers`), and which candidates are good (`validate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import polars as pl

from ev_platform.dataset.labelling import choose_texts, label_texts
from ev_platform.dataset.locate import Locator, locate_rows, plain
from ev_platform.dataset.sampling import held_out, list_passages, not_asked, plan_jobs, text_id, was_asked
from ev_platform.errors import UserError
from ev_platform.identity import short_id
from ev_platform.records import Example, GenerationOutcome, to_frame
from ev_platform.tasks import Task
from ev_platform.tasks.config import DatasetConfig
from ev_platform.tasks.rows import TaskRow
from ev_platform.tasks.types import get_task_type
from ev_platform.teachers import UNANSWERABLE, Brief, Draft, GenerationJob, Outcome, Shot, Teacher, TextJob


@dataclass(frozen=True)
class Plan:
    """What a teacher is going to be asked; nothing is paid yet.

    Attributes:
        brief: What it is told of the task.
        human: The hand-written rows, joined to their passages, in file order.
        questions: What is to be written; none for a task type without a corpus.
        spare: What is asked beyond that, one by one, where passages give less than was hoped for.
        texts: What is to be labelled; none for a task type with a corpus.
        sources: Id of every chunk, or of every text where texts are labelled, in their order.
        log: What became of the sources that no job is about.
    """

    brief: Brief
    human: list[Example]
    questions: list[GenerationJob]
    spare: list[GenerationJob]
    texts: list[TextJob]
    sources: list[str]
    log: dict[str, GenerationOutcome]


def make_brief(task: Task, rows: Sequence[TaskRow]) -> Brief:
    """Return what a teacher is told of a task.

    Where the job description names no classes, they are the labels of the train rows. Shots are train rows, spread
    evenly over the file, without those that ask what a test row asks. They hold no passage of the corpus, since they
    stand in every call: a page that changes would have all of them asked again.

    Args:
        task: Its folder.
        rows: Of both splits.
    """
    config, task_type = task.config.dataset, get_task_type(task.config.type)
    tested = {plain(row.question) for row in rows if row.split == "test"}
    train = [row for row in rows if row.split == "train" and plain(row.question) not in tested]
    n_shots = min(config.n_shots, len(train))
    shown = [train[int((number + 0.5) * len(train) / n_shots)] for number in range(n_shots)]
    classes = task.job.classes_description or {row.answer: "" for row in sorted(train, key=lambda row: row.answer)}
    return Brief(
        description=task.description,
        task_type=task.config.type,
        classes=dict(classes) if task_type.has_classes else {},
        no_answer=task.config.no_answer,
        language=task.config.corpus.languages[0],
        shots=tuple(Shot(row.question, row.answer, row.context) for row in shown),
        answer_rule=task_type.answer_rule,
        max_question_words=config.max_question_words,
        max_answer_words=config.max_answer_words,
    )


def plan_candidates(
    task: Task,
    rows: Sequence[TaskRow],
    texts: Sequence[str],
    chunks: pl.DataFrame,
    documents: pl.DataFrame,
    dropped: pl.DataFrame,
    teacher: str,
) -> Plan:
    """Join the hand-written rows to the passages that support them, and choose what a teacher is asked for.

    A type with a corpus gets questions about its chunks; its unlabelled texts are documents of the corpus already. A
    type without one gets its unlabelled texts labelled. Documents that a test row comes from, their near-duplicates,
    and passages that say what those say, are never asked about.

    Args:
        task: Its folder.
        rows: Hand-written rows of both splits.
        texts: Unlabelled texts; used by a type without a corpus only.
        chunks: The `chunks` table.
        documents: The `clean_documents` table.
        dropped: The `dropped_documents` table.
        teacher: Its name, for the log.

    Raises:
        UserError: If there is nothing to train on, or the configuration leaves nothing to ask for.
    """
    task_type, config = get_task_type(task.config.type), task.config.dataset
    _check_inputs(task, rows, texts, chunks, has_corpus=task_type.has_corpus)
    texts = list(dict.fromkeys(texts))
    if not task_type.has_corpus:
        # Its rows rest on no passage, whatever else the task collects.
        human = locate_rows(rows, Locator(chunks.clear(), documents, dropped))
        jobs, log = choose_texts(texts, rows, config, teacher)
        return Plan(make_brief(task, rows), human, [], [], jobs, [text_id(text) for text in texts], log)
    human = locate_rows(rows, Locator(chunks, documents, dropped))
    passages = list_passages(chunks, documents)
    fraction = config.unanswerable_fraction if task_type.allows_unanswerable else 0.0
    questions, spare, log = plan_jobs(passages, held_out(passages, human), config, fraction, teacher)
    return Plan(make_brief(task, rows), human, questions, spare, [], chunks["chunk_id"].to_list(), log)


def make_candidates(
    task: Task,
    rows: Sequence[TaskRow],
    texts: Sequence[str],
    chunks: pl.DataFrame,
    documents: pl.DataFrame,
    dropped: pl.DataFrame,
    teacher: Teacher,
) -> dict[str, pl.DataFrame]:
    """Carry out what `plan_candidates` plans; the arguments are the same.

    Returns:
        `qa_candidates`: human rows in file order, then generated ones in the order of their passages or texts.
        `generation_log`: what became of every chunk; for a type without a corpus, of every distinct text.

    Raises:
        UserError: If there is nothing to train on, or the configuration leaves nothing to ask for.
    """
    plan = plan_candidates(task, rows, texts, chunks, documents, dropped, teacher.name)
    log, made = dict(plan.log), []
    if plan.questions or plan.spare:
        written, questions_log = _write_questions(plan, chunks, task.config.dataset, teacher)
        made += [example for source_id in plan.sources for example in written.get(source_id, ())]
        log |= questions_log
    if plan.texts:
        labelled, labels_log = label_texts(plan.brief, plan.texts, task.config.dataset, teacher)
        made += [labelled[source_id] for source_id in plan.sources if source_id in labelled]
        log |= labels_log
    return {
        "qa_candidates": to_frame("qa_candidates", [*plan.human, *made]),
        "generation_log": to_frame("generation_log", [log[source_id] for source_id in plan.sources]),
    }


def prompt_rows(rows: Sequence[TaskRow]) -> list[list[Any]]:
    """Return all of the rows that candidates depend on, as JSON values, for the key of a table."""
    return [[getattr(row, field.name) for field in fields(row)] for row in rows]


def _write_questions(
    plan: Plan, chunks: pl.DataFrame, config: DatasetConfig, teacher: Teacher
) -> tuple[dict[str, list[Example]], dict[str, GenerationOutcome]]:
    """Return the questions about each chunk that was asked about, and what became of every chunk of a job.

    Where passages give fewer questions than were wanted of them, as many spare ones are asked. Calls that went wrong
    are not made up for: a provider's bad hour must not change which passages are asked about.
    """
    by_id = {chunk["chunk_id"]: chunk for chunk in chunks.iter_rows(named=True)}
    written: dict[str, list[Example]] = {}
    log: dict[str, GenerationOutcome] = {}
    jobs, spare = plan.questions, plan.spare
    while jobs:
        n_short = 0
        for job, outcome in zip(jobs, teacher.generate(plan.brief, jobs), strict=True):
            drafts = list({(d.question, d.answer): d for d in outcome.value or ()}.values())[: len(job.plans)]
            chunk, n = by_id[job.source_id], len(drafts)
            written[job.source_id] = [_example(draft, chunk, outcome, n, plan.brief, teacher) for draft in drafts]
            log[job.source_id] = was_asked(teacher.name, outcome, len(job.plans), n)
            n_short += len(job.plans) - n if outcome.status == "ok" else 0
        jobs, spare = spare[:n_short], spare[n_short:]
    why = f"dataset.max_examples {config.max_examples} is too few for {len(plan.questions) + len(plan.spare)} passages"
    return written, log | {job.source_id: not_asked(teacher.name, job.source_id, "not_sampled", why) for job in spare}


def _check_inputs(
    task: Task, rows: Sequence[TaskRow], texts: Sequence[str], chunks: pl.DataFrame, *, has_corpus: bool
) -> None:
    config, sources = task.config.dataset, task.sources
    has_train = any(row.split == "train" for row in rows)
    if not has_corpus:
        if not texts and not has_train:
            raise UserError(f"{task.folder} has no train rows and no unlabelled texts: write train or unstructured.")
        if texts and not has_train and not task.job.classes_description:
            raise UserError(f"{task.folder / 'job_description.json'}: write the classes into classes_description.")
        return
    for name in ("kinds", "difficulties", "registers"):
        if not getattr(config, name):
            raise UserError(f"config.yaml: dataset.{name} is empty: name at least one, or leave the line out.")
    if UNANSWERABLE in config.kinds:
        raise UserError("config.yaml: dataset.kinds names 'unanswerable': set dataset.unanswerable_fraction instead.")
    if not chunks.is_empty():
        return
    # Texts come from unstructured.csv, whose rows are documents.
    if sources.seeds or sources.pdfs or sources.texts or texts:
        if config.max_examples or not has_train:
            raise UserError(
                "The corpus is empty: no document passed the filters; see dropped_documents for the reasons."
            )
    elif not has_train:
        raise UserError(f"{task.folder} has no sources, no unlabelled texts and no train rows: write sources.yaml.")


def _example(
    draft: Draft,
    chunk: dict[str, Any],
    outcome: Outcome[tuple[Draft, ...]],
    n_drafts: int,
    brief: Brief,
    teacher: Teacher,
) -> Example:
    answer = draft.answer if draft.is_answerable else brief.no_answer
    return Example(
        example_id=short_id("exm", draft.question, answer, chunk["chunk_id"]),
        question=draft.question,
        answer=answer,
        answers=[answer],
        answer_start=None,
        is_answerable=draft.is_answerable,
        chunk_id=chunk["chunk_id"],
        document_id=chunk["document_id"],
        cluster_id=chunk["cluster_id"],
        context=None,
        origin="generated",
        teacher=teacher.name,
        kind=draft.kind,
        difficulty=draft.difficulty,
        register=draft.register,
        evidence=draft.evidence,
        confidence=None,
        split="train",
        row=None,
        call_id=outcome.call_id,
        prompt_version=outcome.prompt_version,
        cost_usd=outcome.cost_usd / n_drafts,
    )
