"""The steps of the stage `dataset`, one function each, from a task's folder and the tables before it to new tables.

What belongs here: bringing task, teacher and tables together. What does not: any rule about rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from ev_platform.corpus import privacy
from ev_platform.dataset import feedback as feedback_rules
from ev_platform.dataset.agreement import winning_reviews
from ev_platform.dataset.coverage import build_coverage
from ev_platform.dataset.examine import examine_teacher
from ev_platform.dataset.feedback import accepted_examples, collect_candidates, decided_candidates
from ev_platform.dataset.generate import make_brief, make_candidates, prompt_rows
from ev_platform.dataset.locate import Locator, locate_rows
from ev_platform.dataset.validate import validate_candidates
from ev_platform.errors import UserError
from ev_platform.identity import code_version, fingerprint
from ev_platform.prompting import passage_text
from ev_platform.records import to_frame
from ev_platform.retrieval import Retriever
from ev_platform.serving.journal import read_journal
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.formats import Problem
from ev_platform.tasks.rows import TaskRow, read_rows, row_files, scan_texts
from ev_platform.tasks.types import get_task_type
from ev_platform.teachers import Check, CheckJob, Outcome
from ev_platform.teachers.language_model import prompt_version
from ev_platform.teachers.ledger import Ledger, ledger_path
from ev_platform.teachers.open import open_teacher
from ev_platform.teachers.replies import REPLIES


def read_task_rows(task: Task) -> list[TaskRow]:
    """Return the hand-written rows of both splits.

    Raises:
        UserError: If a file is missing or a row cannot be used; names file and row.
    """
    return [*read_rows(task, "train"), *read_rows(task, "test")]


def read_unlabelled(task: Task) -> list[str]:
    """Return the texts to label of a task without a corpus; for the others they are documents.

    Raises:
        UserError: If a row cannot be used; names file and row.
    """
    if get_task_type(task.config.type).has_corpus or not row_files(task, "unstructured"):
        return []
    texts = []
    for text in scan_texts(task):
        if isinstance(text, Problem):
            raise UserError(text.sentence)
        texts.append(text)
    return texts


def describe_task(task: Task, *parts: str) -> dict[str, Any]:
    """Return what rows depend on beside their inputs: the task in words, its rows, and parts of config.yaml."""
    config = task.config.model_dump(mode="json", include={"type", "no_answer", *parts})
    if "teacher" in parts:
        config["teacher"] = task.config.teacher.identity()
        if task.config.teacher.provider != "offline":
            config["prompts"] = {purpose: prompt_version(purpose) for purpose in REPLIES}
    return config | {
        "description": task.description,
        "classes": task.classes,
        "languages": task.config.corpus.languages,
        "rows": prompt_rows(read_task_rows(task)),
    }


def examine(
    task: Task,
    store: Store,
    run_id: str,
    chunks: pl.DataFrame,
    vectors: pl.DataFrame,
    documents: pl.DataFrame,
    dropped: pl.DataFrame,
    overruled_by: str,
) -> dict[str, pl.DataFrame]:
    """Let the teacher answer test rows, over their own context or over what retrieval brings."""
    rows = read_task_rows(task)
    test = [row for row in rows if row.split == "test"]
    examples = to_frame("qa_candidates", locate_rows(test, Locator(chunks, documents, dropped)))
    contexts: dict[str, list[str]] = {}
    if get_task_type(task.config.type).has_corpus and chunks.height:
        passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
        retriever = Retriever.build(chunks, task.config.retrieval.candidates, vectors)
        bare = examples.filter(pl.col("context").is_null())
        hits = retriever.search(bare["question"].to_list(), task.config.retrieval.top_k)
        contexts = {
            example_id: [passages[hit.chunk_id] for hit in found]
            for example_id, found in zip(bare["example_id"], hits, strict=True)
        }
    teacher = open_teacher(task, store.root, run_id)
    config = task.config.teacher_evaluation
    why = overruled_by or config.overruled_by
    return examine_teacher(examples, contexts, teacher, make_brief(task, rows), config, why)


def generate(
    task: Task, store: Store, run_id: str, chunks: pl.DataFrame, documents: pl.DataFrame, dropped: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """Locate the hand-written rows, and let the teacher write questions or label texts."""
    teacher = open_teacher(task, store.root, run_id)
    return make_candidates(task, read_task_rows(task), read_unlabelled(task), chunks, documents, dropped, teacher)


def feedback_build(task: Task, store: Store) -> dict[str, Any]:
    """Return what `Store.build` needs to bring `feedback_candidates` up to date: `config`, `code` and `compute`.

    The graph and the command line build it alike, so that what one has built the other need not build again.
    """
    feedback = read_journal(store.root, "feedback").filter(pl.col("task") == task.name)
    previous, reviews = _all_candidates(task, store), store.read("reviews", task.name)

    def compute() -> dict[str, pl.DataFrame]:
        return {"feedback_candidates": collect_candidates(feedback, previous, reviews)}

    # Rows of feedback never change, nor does what is decided on, so that their ids tell what there is.
    decided = sorted(decided_candidates(previous, reviews)["example_id"])
    return {
        "config": {"feedback": fingerprint(feedback["feedback_id"].to_list()), "decided": fingerprint(decided)},
        "code": code_version(feedback_rules, privacy),
        "compute": compute,
    }


def _all_candidates(task: Task, store: Store) -> pl.DataFrame:
    """Return the candidates from feedback of all versions: a sheet may list what its author has taken back since."""
    table = "feedback_candidates"
    known = store.read(table, task.name)
    for record in reversed(store.history(table, task.name)):
        older = store.read(table, task.name, record.version)
        known = pl.concat([older.filter(~pl.col("example_id").is_in(known["example_id"].to_list())), known])
    return known


def decided_feedback(task: Task, store: Store, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the candidates from feedback that somebody has decided on: no others take part in a run."""
    return decided_candidates(candidates, store.read("reviews", task.name))


def reviewable(task: Task, store: Store) -> pl.DataFrame:
    """Return every row that a review may be about: its id, question, answer, kind and origin.

    What a review edited or rejected is no longer among the examples, but still among the candidates.
    """
    columns = ("example_id", "question", "answer", "kind", "origin")
    feedback = _all_candidates(task, store).with_columns(pl.lit("feedback").alias("origin"))
    rows = [store.read("qa_candidates", task.name), store.read("examples", task.name), feedback]
    return pl.concat([frame.select(columns) for frame in rows])


def validate(
    task: Task,
    store: Store,
    run_id: str,
    candidates: pl.DataFrame,
    generation_log: pl.DataFrame,
    feedback: pl.DataFrame,
    chunks: pl.DataFrame,
    documents: pl.DataFrame,
) -> dict[str, pl.DataFrame]:
    """Judge the candidates by rules, by people's reviews and by the teacher, and count what covers the sources.

    Of the candidates from feedback only those take part that somebody has decided on.
    """

    def ask_teacher(jobs: list[CheckJob]) -> Iterator[Outcome[Check]]:
        teacher = open_teacher(task, store.root, run_id)
        return teacher.check(make_brief(task, read_task_rows(task)), jobs)

    teaching, task_type = task.config.teacher, get_task_type(task.config.type)
    reviews = winning_reviews(store.read("reviews", task.name))
    accepted = accepted_examples(feedback, reviews, chunks, task_type, task.config.no_answer)
    candidates = pl.concat([candidates, to_frame("qa_candidates", accepted)])
    judged = validate_candidates(
        candidates,
        chunks,
        reviews,
        config=task.config.dataset,
        task_type=task_type,
        classes=task.classes,
        no_answer=task.config.no_answer,
        languages=task.config.corpus.languages,
        # The offline teacher takes its answers from the passages: it has nothing to say about them.
        check=ask_teacher if teaching.is_checking and teaching.provider != "offline" else None,
    )
    covered = build_coverage(
        generation_log, candidates, judged["examples"], judged["rejected_examples"], chunks, documents
    )
    return judged | {"coverage": covered}


def paid_calls(store: Store, tables: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return the calls that some tables name, as the ledger has them."""
    columns = ("call_id", "judge_call_id", "check_call_id")
    ids = {
        call_id
        for table in tables
        for column in columns
        if column in table.columns
        for call_id in table[column].drop_nulls().to_list()
    }
    path = ledger_path(store.root)
    return to_frame("teacher_calls", Ledger(path).calls(sorted(ids)) if ids and path.exists() else [])


def has_news(store: Store, task: str, *tables: str) -> bool:
    """Return whether asking again may change tables: the provider failed at a call, or another run has its reply now.

    What the cap kept from being asked waits for a higher cap, and what a killed run left for `resend_interrupted`: both
    are for a person to decide.
    """
    frames = [store.read(table, task) for table in tables]
    told = [frame for frame in [*frames, store.read("teacher_calls", task)] if "status" in frame.columns]
    left = {call_id for frame in told for call_id in frame.filter(pl.col("status") == "interrupted")["call_id"]}
    return any(
        status == "failed" or (status != "interrupted" and call_id in left)
        for call_id, status in paid_calls(store, frames).select("call_id", "status").iter_rows()
    )
