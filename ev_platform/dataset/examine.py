"""The examination of a teacher before it is paid for more: it answers test rows, and a verdict follows.

What does not belong here: asking (`teachers`), the scores (`evaluation.metrics`), and which passages retrieval brings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ev_platform.errors import UserError
from ev_platform.evaluation.metrics import score_answers, score_labels
from ev_platform.records import TeacherAnswer, TeacherEvaluation, to_frame
from ev_platform.tasks.config import TeacherEvaluationConfig
from ev_platform.tasks.splitting import spread_evenly
from ev_platform.teachers import AnswerJob, Brief, JudgeJob, Judgement, Outcome, Teacher, TextJob

METRICS: tuple[str, ...] = ("exact_match", "token_f1", "rouge_l", "meteor")
# What says nothing about how well a teacher answers: its provider, the purse, a killed run.
_NOT_ITS_FAULT = ("failed", "over_budget", "interrupted")


def examine_teacher(
    examples: pl.DataFrame,
    contexts: Mapping[str, Sequence[str]],
    teacher: Teacher,
    brief: Brief,
    config: TeacherEvaluationConfig,
    overruled_by: str | None = None,
) -> dict[str, pl.DataFrame]:
    """Let the teacher answer test rows, score its answers, and say whether generation should go ahead.

    Where the task has classes the teacher labels the rows, as it will label texts. Otherwise it answers from the row's
    own passage, else from those given for it. Of several accepted answers the best one counts, score by score. A row
    without an answer scores 0 in everything, whatever the cause, which its status tells. The judge is not asked about
    an answer that equals an accepted one but for case and blanks; where it gives no judgement on an answer, the row is
    left out of its mean.

    Verdicts are `proceed`, `iterate`, `rethink` and `not_evaluated`. A run stops unless the verdict is `proceed`, a
    person overruled it, or the teacher cannot answer at all (the offline one): nothing is paid for it then. It also
    stops where more than half of the rows have no answer because of the provider, the cap or a killed run.

    Args:
        examples: Rows of the `examples` table; those of the test split are examined.
        contexts: Passages for the rows that bring none, by example_id; rows without any are asked without.
        teacher: Who is examined, and who judges.
        brief: What it knows of the task.
        config: Number of rows, metric and thresholds.
        overruled_by: Why a person lets the run go on whatever the verdict.

    Returns:
        The tables `teacher_evaluation` (one row) and `teacher_answers` (rows in the order of the file).

    Raises:
        UserError: If a judge is to decide about labels.
    """
    if brief.classes and config.metric == "judge":
        raise UserError(
            "config.yaml: teacher_evaluation.metric is judge, but this task has classes: use accuracy, which compares "
            "labels."
        )
    rows = spread_evenly(examples.filter(pl.col("split") == "test").to_dicts(), config.max_rows)
    outcomes = _ask(rows, contexts, teacher, brief)
    is_able = any(outcome.status != "unsupported" for outcome in outcomes)
    scores = _score(rows, outcomes, is_labels=bool(brief.classes)) if is_able else [dict[str, float]()] * len(rows)
    is_judging = config.is_judged and is_able and not brief.classes
    judgements = _judge(rows, outcomes, contexts, teacher, brief) if is_judging else {}
    answers = [
        TeacherAnswer(
            example_id=row["example_id"],
            question=row["question"],
            reference=row["answer"],
            prediction=outcome.value,
            status=outcome.status,
            detail=outcome.detail,
            exact_match=score.get("exact_match"),
            token_f1=score.get("token_f1"),
            rouge_l=score.get("rouge_l"),
            meteor=score.get("meteor"),
            judge_score=judgement.value.score if judgement and judgement.value else None,
            judge_reason=_words_of(judgement),
            call_id=outcome.call_id,
            judge_call_id=judgement.call_id if judgement else None,
            cost_usd=outcome.cost_usd + (judgement.cost_usd if judgement else 0.0),
        )
        for row, outcome, score in zip(rows, outcomes, scores, strict=True)
        for judgement in [judgements.get(row["example_id"])]
    ]
    verdict = _decide(answers, config, is_labels=bool(brief.classes))
    reason = (overruled_by or "").strip() or None
    evaluation = TeacherEvaluation(
        teacher=teacher.name,
        prompt_version=next((o.prompt_version for o in outcomes if o.prompt_version), None),
        n_rows=len(answers),
        n_answered=sum(answer.status == "ok" for answer in answers),
        metric=verdict.metric,
        value=verdict.value,
        scores=json.dumps({name: round(value, 6) for name, value in _means(answers).items()}),
        thresholds=json.dumps({"proceed": config.proceed, "rethink": config.rethink}),
        verdict=verdict.name,
        reason=verdict.reason,
        overruled_by=reason,
        is_blocking=verdict.stops and reason is None,
        cost_usd=_paid([*outcomes, *judgements.values()]),
    )
    return {
        "teacher_evaluation": to_frame("teacher_evaluation", [evaluation]),
        "teacher_answers": to_frame("teacher_answers", answers),
    }


def _paid(outcomes: Sequence[Outcome[Any]]) -> float:
    """Return what outcomes cost; equal questions share a call."""
    calls = {outcome.call_id: outcome.cost_usd for outcome in outcomes}
    return sum(calls.values())


def _ask(
    rows: Sequence[dict[str, Any]], contexts: Mapping[str, Sequence[str]], teacher: Teacher, brief: Brief
) -> list[Outcome[str]]:
    if not rows:
        return []
    if brief.classes:
        labelled = teacher.label(brief, [TextJob(row["example_id"], row["question"]) for row in rows])
        return [
            Outcome(
                o.source_id,
                o.status,
                o.value.label if o.value else None,
                o.detail,
                o.call_id,
                o.cost_usd,
                o.prompt_version,
            )
            for o in labelled
        ]
    jobs = [AnswerJob(row["example_id"], row["question"], _contexts_of(row, contexts)) for row in rows]
    return list(teacher.answer(brief, jobs))


def _contexts_of(row: dict[str, Any], contexts: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return (row["context"],) if row["context"] else tuple(contexts.get(row["example_id"], ()))


def _accepted(row: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([row["answer"], *(row["answers"] or [])]))


def _score(
    rows: Sequence[dict[str, Any]], outcomes: Sequence[Outcome[str]], *, is_labels: bool
) -> list[dict[str, float]]:
    predictions = [outcome.value or "" for outcome in outcomes]
    scored = (
        score_labels(predictions, [row["answer"] for row in rows], METRICS)
        if is_labels
        else score_answers(predictions, [_accepted(row) for row in rows], METRICS)
    )
    # No answer is no answer, also where an empty one would score.
    return [
        score if outcome.status == "ok" else dict.fromkeys(METRICS, 0.0)
        for outcome, score in zip(outcomes, scored.iter_rows(named=True), strict=True)
    ]


def _judge(
    rows: Sequence[dict[str, Any]],
    outcomes: Sequence[Outcome[str]],
    contexts: Mapping[str, Sequence[str]],
    teacher: Teacher,
    brief: Brief,
) -> dict[str, Outcome[Judgement]]:
    """Return judgements by example_id; none at all where the teacher cannot judge."""
    known: dict[str, Outcome[Judgement]] = {}
    jobs = []
    for row, outcome in zip(rows, outcomes, strict=True):
        example_id, accepted = row["example_id"], _accepted(row)
        if outcome.status != "ok" or outcome.value is None:
            known[example_id] = Outcome(example_id, "ok", Judgement(0.0, f"no answer ({outcome.status})"))
        elif _fold(outcome.value) in map(_fold, accepted):
            known[example_id] = Outcome(example_id, "ok", Judgement(1.0, "equals an accepted answer"))
        else:
            reference = accepted[0] if len(accepted) == 1 else f"any one of these: {'; '.join(accepted)}"
            passages = _contexts_of(row, contexts)
            jobs.append(JudgeJob(example_id, row["question"], reference, outcome.value, passages))
    if jobs:
        judged = list(teacher.judge(brief, jobs))
        if all(outcome.status == "unsupported" for outcome in judged):
            return {}
        known |= {outcome.source_id: outcome for outcome in judged}
    return known


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _words_of(judgement: Outcome[Judgement] | None) -> str | None:
    if judgement is None:
        return None
    return judgement.value.reason if judgement.value else f"{judgement.status}: {judgement.detail}"


def _means(answers: Sequence[TeacherAnswer]) -> dict[str, float]:
    columns = {name: [getattr(answer, name) for answer in answers] for name in METRICS}
    columns["judge"] = [answer.judge_score for answer in answers]
    columns["accuracy"] = columns["exact_match"]
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


@dataclass(frozen=True, slots=True)
class _Verdict:
    name: str
    metric: str
    value: float | None
    reason: str
    stops: bool


def _decide(answers: Sequence[TeacherAnswer], config: TeacherEvaluationConfig, *, is_labels: bool) -> _Verdict:
    n = len(answers)
    means = _means(answers)
    # A judge that is silent on half of the answers decides nothing.
    if 2 * sum(answer.judge_score is not None for answer in answers) <= n:
        means.pop("judge", None)
    metric = config.metric or ("accuracy" if is_labels else "judge" if "judge" in means else "token_f1")
    statuses = Counter(answer.status for answer in answers if answer.status != "ok")
    said = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))

    def not_evaluated(reason: str, *, stops: bool) -> _Verdict:
        return _Verdict("not_evaluated", metric, None, reason, stops)

    if not answers:
        return not_evaluated("There are no test rows to examine the teacher on: write some.", stops=True)
    if statuses["unsupported"] == n:
        what = "label texts" if is_labels else "answer questions"
        return not_evaluated(f"This teacher cannot {what}, so nothing was measured and the run goes on.", stops=False)
    if 2 * sum(statuses[status] for status in _NOT_ITS_FAULT) > n:
        return not_evaluated(
            f"Of {n} test rows more than half have no answer for reasons other than the teacher's skill ({said}): read "
            "`detail` in teacher_answers, put it right and run again.",
            stops=True,
        )
    value = means.get(metric)
    if value is None:
        return not_evaluated(
            f"{metric} is to decide, but the teacher judged too few of its {n} answers: name another metric in "
            "config.yaml (teacher_evaluation.metric).",
            stops=True,
        )
    figures = f"{metric} is {value:.3f} over {n} test rows{f' ({said}, counted as wrong)' if said else ''}"
    if value >= config.proceed:
        return _Verdict("proceed", metric, value, f"{figures}, at least {config.proceed:g}.", stops=False)
    if value >= config.rethink:
        reason = (
            f"{figures}, below {config.proceed:g}: read the worst rows of teacher_answers, then make the task's "
            "description, its train rows or its test rows clearer."
        )
        return _Verdict("iterate", metric, value, reason, stops=True)
    reason = (
        f"{figures}, below {config.rethink:g}: the task or the teacher does not fit; see in teacher_answers whether "
        "the passages hold the answers, then state the task anew or take a stronger teacher."
    )
    return _Verdict("rethink", metric, value, reason, stops=True)
