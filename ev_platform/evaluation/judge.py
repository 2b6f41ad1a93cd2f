"""The teacher as a judge: which of two systems' answers is better, asked in both orders.

What belongs here: which pairs are judged, and what two replies come to. What does not: the wording
(`teachers/prompts/compare.md`), money (`teachers`), the files that people fill in (`judgements`), and how far people
agree with the judge (`judge_agreement`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.dataset.generate import make_brief
from ev_platform.dataset.steps import paid_calls, read_task_rows
from ev_platform.evaluation.judge_agreement import agree
from ev_platform.evaluation.judgements import FILE, Judged, Key, fold, key_of, read_judgements, verdict_of, write_sheet
from ev_platform.evaluation.summary import equal_terms
from ev_platform.prompting import passage_text
from ev_platform.records import PairJudgement, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.splitting import spread_evenly
from ev_platform.tasks.types import get_task_type
from ev_platform.teachers import Brief, Outcome, PairJob, Preference, Teacher
from ev_platform.teachers.language_model import prompt_version
from ev_platform.teachers.open import open_teacher


@dataclass(frozen=True, slots=True)
class Pair:
    """Two systems' answers to one benchmark row.

    Attributes:
        row: Of the benchmark.
        system: Whose answer is judged.
        compared_to: Whose answer it is compared with.
        answer: The system's.
        other: The other system's.
    """

    row: Mapping[str, Any]
    system: str
    compared_to: str
    answer: str
    other: str

    @property
    def reference(self) -> str:
        """What counts as right."""
        answers: Sequence[str] = (self.row["answers"] or ()) if self.row["is_answerable"] is not False else ()
        accepted = list(dict.fromkeys((str(self.row["answer"]), *answers)))
        return accepted[0] if len(accepted) == 1 else f"any one of these: {'; '.join(accepted)}"

    @property
    def key(self) -> Key:
        """What a person's judgement of the pair is found by."""
        return key_of(self.row["question"], self.answer, self.other)


def why_not_judged(task: Task) -> str | None:
    """Return why a task's answers are not judged by its teacher, in a sentence; None where they are."""
    if not get_task_type(task.config.type).has_corpus:
        return "The answers are labels, which are right or wrong without a judge."
    if task.config.evaluation.n_judged == 0:
        return "evaluation.n_judged is 0 in config.yaml."
    if task.config.teacher.provider == "offline":
        return "The offline teacher has no language model, so that it cannot judge: set teacher.provider to use one."
    return None


def describe_judge(task: Task) -> dict[str, Any]:
    """Return what judgements depend on beside the answers.

    Raises:
        UserError: If `judgements.csv` cannot be used.
    """
    config = task.config
    people = {"\n".join(key): judged.better for key, judged in read_judgements(task.folder / FILE).items()}
    described = {"type": config.type, "n_judged": config.evaluation.n_judged, "people": people}
    if why_not_judged(task) is None:
        described |= {
            "teacher": config.teacher.identity(),
            "prompt": prompt_version("compare"),
            "description": task.description,
        }
    return described


def choose_pairs(predictions: pl.DataFrame, benchmark: pl.DataFrame, task: Task) -> list[Pair]:
    """Return the pairs to judge: the tuned system's answers with those of its base on equal terms.

    Of the rows that both answered, `evaluation.n_judged` are taken, spread evenly; none of a task with labels.
    """
    task_type = get_task_type(task.config.type)
    if not task_type.has_corpus or task.config.evaluation.n_judged == 0 or predictions.is_empty():
        return []
    system, compared_to = equal_terms(task_type, set(predictions["system"]))
    answers = {
        name: dict(predictions.filter(pl.col("system") == name).select("example_id", "prediction").iter_rows())
        for name in (system, compared_to)
    }
    rows = [row for row in benchmark.iter_rows(named=True) if row["example_id"] in answers[system]]
    return [
        Pair(row, system, compared_to, answers[system][row["example_id"]], answers[compared_to][row["example_id"]])
        for row in spread_evenly(rows, task.config.evaluation.n_judged)
    ]


def judge_task(
    task: Task, store: Store, run_id: str, predictions: pl.DataFrame, benchmark: pl.DataFrame, chunks: pl.DataFrame
) -> pl.DataFrame:
    """Let the task's teacher judge the tuned system against its base, and join what people said.

    Args:
        task: Names the teacher and the number of pairs; its folder may hold `judgements.csv`.
        store: Whose ledger keeps what was paid.
        run_id: All that one run asks shares one cap.
        predictions: The `predictions` table.
        benchmark: The `benchmark` table.
        chunks: The `chunks` table; of it the passages that the references rest on are shown to the judge.

    Returns:
        The `pair_judgements` table. Where the teacher does not judge, only the pairs that people judged, at no cost.

    Raises:
        UserError: If the teacher cannot be asked, or `judgements.csv` cannot be used.
    """
    people = read_judgements(task.folder / FILE)
    pairs = choose_pairs(predictions, benchmark, task)
    if why := why_not_judged(task):
        judged = [pair for pair in pairs if pair.key in people]
        rows = [_row(pair, None, "unsupported", why, (), people) for pair in judged]
        return to_frame("pair_judgements", rows)
    passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
    teacher = open_teacher(task, store.root, run_id)
    return judge_pairs(pairs, passages, teacher, make_brief(task, read_task_rows(task)), people)


def judge_pairs(
    pairs: Sequence[Pair], passages: Mapping[str, str], teacher: Teacher, brief: Brief, people: Mapping[Key, Judged]
) -> pl.DataFrame:
    """Ask a teacher about each pair in both orders.

    A verdict counts only if it is the same in both orders, else the pair is `inconsistent`: language models prefer a
    place (Zheng et al., 2023). Two answers of the same words are a tie that is not asked about.

    Args:
        pairs: What is judged.
        passages: chunk_id to its text.
        teacher: The judge.
        brief: What it knows of the task.
        people: What people said of pairs.

    Returns:
        The `pair_judgements` table, in the order of the pairs.
    """
    asked = [pair for pair in pairs if fold(pair.answer) != fold(pair.other)]
    # Both orders side by side, so that a run that ends early leaves whole pairs.
    jobs = [job for pair in asked for job in _jobs(pair, passages)]
    outcomes = teacher.compare(brief, jobs)
    rows = []
    for pair in pairs:
        if fold(pair.answer) == fold(pair.other):
            rows.append(_row(pair, "tie", "ok", "Both answers are the same.", (), people))
            continue
        both = next(outcomes), next(outcomes)
        rows.append(_row(pair, *_combine(*both), both, people))
    return to_frame("pair_judgements", rows)


def _jobs(pair: Pair, passages: Mapping[str, str]) -> Iterator[PairJob]:
    row = pair.row
    # What cannot be answered rests on no passage, whichever it was written from.
    chunk_id = row["chunk_id"] if row["is_answerable"] is not False else None
    source = row["context"] or passages.get(chunk_id or "")
    contexts = (source,) if source else ()
    for first, second in ((pair.answer, pair.other), (pair.other, pair.answer)):
        yield PairJob(row["example_id"], row["question"], pair.reference, first, second, contexts)


def _combine(one: Outcome[Preference], swapped: Outcome[Preference]) -> tuple[str | None, str, str | None]:
    """Return verdict, status and reason of two replies, of which the first had the system's answer first."""
    for outcome in (one, swapped):
        if outcome.value is None:
            return None, outcome.status, outcome.detail
    assert one.value and swapped.value  # noqa: S101 - for the type checker
    said = {"first": "better", "second": "worse", "tie": "tie"}[one.value.better]
    said_swapped = {"first": "worse", "second": "better", "tie": "tie"}[swapped.value.better]
    if said == said_swapped:
        return said, "ok", one.value.reason
    reason = f"As the first answer: {said} ({one.value.reason}) As the second: {said_swapped} ({swapped.value.reason})"
    return "inconsistent", "ok", reason


def _row(
    pair: Pair,
    verdict: str | None,
    status: str,
    reason: str | None,
    outcomes: Sequence[Outcome[Preference]],
    people: Mapping[Key, Judged],
) -> PairJudgement:
    return PairJudgement(
        example_id=pair.row["example_id"],
        system=pair.system,
        compared_to=pair.compared_to,
        verdict=verdict,
        reason=reason,
        status=status,
        human=verdict_of(people.get(pair.key), pair.answer),
        call_ids=[outcome.call_id for outcome in outcomes if outcome.call_id],
        cost_usd=sum(outcome.cost_usd for outcome in outcomes),
    )


def summarise_judgements(judgements: pl.DataFrame, task: Task) -> dict[str, Any]:
    """Return what a `pair_judgements` table comes to, by name: counts, cost, agreement, and why there is nothing."""
    told: dict[str, Any] = {"n_judged": judgements["verdict"].drop_nulls().len()}
    if told["n_judged"]:
        counts = dict(judgements.drop_nulls("verdict").group_by("verdict").len().iter_rows())
        told |= {
            "compared": f"{judgements.item(0, 'system')} with {judgements.item(0, 'compared_to')}",
            **{verdict: counts.get(verdict, 0) for verdict in ("better", "worse", "tie", "inconsistent")},
        }
    elif why := why_not_judged(task):
        told["why"] = why
    if failed := judgements.filter(pl.col("verdict").is_null() & (pl.col("status") != "unsupported")).height:
        told["n_failed"] = failed
    if judgements["human"].drop_nulls().len():
        agreement = agree(judgements)
        told["n_judged_by_people"] = judgements["human"].drop_nulls().len()
        told |= {
            name: value
            for name, value in (("agreement", agreement.share), ("kappa", agreement.kappa))
            if value is not None
        }
    return told | {"cost_usd": judgements["cost_usd"].sum()}


def write_task_sheet(task: Task, store: Store, pairs: Sequence[Pair]) -> Path | None:
    """Write the pairs of a task for people to judge to `reports/<task>_judgements.csv`; None where there are none.

    Raises:
        UserError: If a sheet is there that cannot be read.
    """
    if not pairs:
        return None
    file = store.root / "reports" / f"{task.name}_judgements.csv"
    write_sheet(
        file,
        (
            {
                "question": pair.row["question"],
                "reference": pair.reference,
                "answer": pair.answer,
                "other": pair.other,
            }
            for pair in pairs
        ),
    )
    return file


def has_news(store: Store, task: str) -> bool:
    """Return whether judging again may change the table: the provider failed, or another run has a reply now."""
    judgements = store.read("pair_judgements", task)
    asked = judgements.select("status", pl.col("call_ids").alias("call_id")).explode("call_id").drop_nulls("call_id")
    statuses = dict(paid_calls(store, [asked]).select("call_id", "status").iter_rows())
    return any(
        statuses.get(call_id) == "failed" or (status == "interrupted" and statuses.get(call_id, status) != status)
        for status, call_id in asked.iter_rows()
    )
