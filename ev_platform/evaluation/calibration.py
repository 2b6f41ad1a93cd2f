"""From which score on retrieved passages are near enough to answer from: chosen on questions that no test holds.

The score of a question is the cosine of it and the nearest of the passages that the model would be given. Questions of
the task are to lie above the chosen score, all but a stated share; what has nothing to do with the task, below it.

What belongs here: which questions take part, the choice, and what it does on questions that had no say in it. What does
not: applying it (`retrieval.is_too_far`) and whether an answer that was written declines (`abstention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from ev_platform.errors import UserError
from ev_platform.evaluation.predicting import evaluated_rows
from ev_platform.records import AbstentionScore, AbstentionShare, to_frame
from ev_platform.retrieval import Retriever, best_score, is_too_far
from ev_platform.tasks import Task
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.splitting import spread_evenly
from ev_platform.tasks.types import get_task_type

OUT_OF_DOMAIN = Path(__file__).with_name("out_of_domain.yaml")
GENERAL = Path(__file__).with_name("general.yaml")
# Below this the share of refused questions says nothing: none of 20 is anything up to 16 %.
MIN_QUESTIONS = 20
MAX_QUESTIONS = 500  # of a task; their order statistics hardly move beyond, and embedding them takes 5 s
Z = 1.96  # 95 %
SWITCHED_OFF = "Abstention by score is switched off: retrieval.max_false_abstention is 0."

# Groups of questions, and what people call them.
GROUPS = {
    "trained": "questions of the task, to choose by",
    "strange": "questions outside the task, to choose by",
    "strange_held_out": "questions outside the task, held out",
    "answerable": "test questions that have an answer",
    "unanswerable": "test questions that have none",
}


@dataclass(frozen=True, slots=True)
class Strange:
    """A question outside the task.

    Attributes:
        question: As a visitor types it.
        topic: Of the file.
        is_held_out: Whether it measures, and has no say in the choice.
    """

    question: str
    topic: str
    is_held_out: bool


def strange_questions(task: Task) -> list[Strange]:
    """Return the questions outside a task: the task's own file, or the built-in ones and the general set.

    Of each topic every other question is held out.

    Raises:
        UserError: If the task's file cannot be read, or a topic to leave out is none.
    """
    wanted = task.config.evaluation.out_of_domain
    if wanted.file is None:
        general = yaml.safe_load(GENERAL.read_text(encoding="utf-8"))["questions"]
        topics = _topics(OUT_OF_DOMAIN) | {"general": [item["question"] for item in general]}
    else:
        topics = _topics(task.folder / wanted.file)
    unknown = [topic for topic in wanted.without if topic not in topics]
    if unknown:
        raise UserError(
            f"{task.folder / 'config.yaml'}: evaluation.out_of_domain.without names {unknown[0]!r}, which is no topic: "
            f"choose among {', '.join(topics)}."
        )
    return [
        Strange(question, topic, is_held_out=number % 2 == 1)
        for topic, questions in topics.items()
        if topic not in wanted.without
        for number, question in enumerate(questions)
    ]


def _topics(file: Path) -> dict[str, list[str]]:
    try:
        topics = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{file} is missing: evaluation.out_of_domain.file names it; write it or take it out."
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not valid YAML in UTF-8: {' '.join(str(error).split())}.") from error
    is_right = isinstance(topics, dict) and all(
        isinstance(questions, list) and questions and all(isinstance(q, str) and q.strip() for q in questions)
        for questions in topics.values()
    )
    if not is_right:
        raise UserError(
            f"{file} should hold topics, each with a list of questions, such as "
            'cooking: ["How long do I boil an egg?"].'
        )
    return topics


def calibrate(
    task: Task,
    chunks: pl.DataFrame,
    vectors: pl.DataFrame | None,
    trained_on: pl.DataFrame,
    benchmark: pl.DataFrame,
) -> dict[str, pl.DataFrame]:
    """Choose the score below which a task's model abstains, and measure what that does.

    It is chosen on training and validation questions that an answer is retrieved for: people's, and where those are
    fewer than `MIN_QUESTIONS`, generated ones too, which are nearer to their passages or farther from them than
    people's are. Of them at most `retrieval.max_false_abstention` lie below. Of the scores that refuse the same
    questions outside the task, the middle is taken.

    Args:
        task: Its settings decide what is retrieved.
        chunks: The `chunks` table.
        vectors: The `chunk_vectors` table.
        trained_on: Rows of `training_set` and `validation_set`.
        benchmark: The `benchmark` table.

    Returns:
        The tables `abstention_calibration`, which has a row for each of `GROUPS`, and `abstention_scores`.

    Raises:
        UserError: If the questions outside the task cannot be read.
    """
    config = task.config
    retrieves = any(retrieves for _, _, retrieves in get_task_type(config.type).systems())
    if not retrieves or chunks.is_empty():
        return _tables([], None, "Nothing is retrieved, so that no score can tell what is out of scope.")
    asked = _questions(task, trained_on, benchmark)
    retriever = Retriever.build(chunks, config.retrieval.candidates, vectors)
    hits = retriever.search([question for _, _, question in asked], config.retrieval.top_k)
    scored = [(group, source, q, best_score(found)) for (group, source, q), found in zip(asked, hits, strict=True)]
    min_score, reason = choose(
        [score for group, _, _, score in scored if group == "trained"],
        [score for group, _, _, score in scored if group == "strange"],
        config,
    )
    return _tables(scored, min_score, reason)


def _questions(task: Task, trained_on: pl.DataFrame, benchmark: pl.DataFrame) -> list[tuple[str, str, str]]:
    """Return group, source and text of every question that takes part."""
    able = trained_on.filter(pl.col("context").is_null() & pl.col("is_answerable").fill_null(value=True))
    own = able.filter(pl.col("origin") == "human")
    if own.height < MIN_QUESTIONS:
        own = able
    found: list[tuple[str, str, str]] = [
        ("trained", origin, question)
        for origin, question in spread_evenly(
            own.select("origin", "question").unique(maintain_order=True).rows(), MAX_QUESTIONS
        )
    ]
    found += [
        ("strange_held_out" if it.is_held_out else "strange", it.topic, it.question) for it in strange_questions(task)
    ]
    for row in evaluated_rows(benchmark, task.config.evaluation.max_rows):
        if not row["context"]:
            group = "unanswerable" if row["is_answerable"] is False else "answerable"
            found.append((group, "benchmark", row["question"]))
    return found


def choose(trained: Sequence[float], strange: Sequence[float], config: TaskConfig) -> tuple[float | None, str]:
    """Return the least score of an answer, and why in a sentence.

    Args:
        trained: Scores of questions of the task.
        strange: Scores of questions outside it.
        config: Says what share of the former may be refused.

    Returns:
        None in the place of the score where there are too few questions, or the two kinds score alike.
    """
    most = config.retrieval.max_false_abstention
    if most == 0:
        return None, SWITCHED_OFF
    for scores, name in ((trained, "of the task that it retrieves for"), (strange, "outside the task")):
        if len(scores) < MIN_QUESTIONS:
            return (
                None,
                f"There are {len(scores)} questions {name}; at least {MIN_QUESTIONS} are needed to choose a score.",
            )
    ranked = np.sort(np.asarray(trained, dtype=np.float64))
    bound = float(ranked[int(most * len(ranked))])  # so many lie below it
    below = [score for score in strange if score < bound]
    # Rounded up, it could refuse questions between the middle and the bound.
    min_score = min(round((max(below) + bound) / 2, 4), bound) if below else bound
    refused = [sum(score < min_score for score in scores) for scores in (trained, strange)]
    told = (
        f"below {min_score:.3f} lie {refused[0]} of {len(trained)} questions of the task ({most:.0%} may) and "
        f"{refused[1]} of {len(strange)} outside it"
    )
    _, own_high = wilson(refused[0], len(trained))
    strange_low, _ = wilson(refused[1], len(strange))
    if strange_low <= own_high:
        return None, f"Scores do not tell the two kinds apart: {told}."
    return min_score, f"{told[0].upper()}{told[1:]}."


def wilson(n: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, 1927), which also holds where all or none are counted."""
    if of == 0:
        return 0.0, 1.0
    share, spread = n / of, Z**2 / of
    middle = share + spread / 2
    half = Z * float(np.sqrt(share * (1 - share) / of + spread / (4 * of)))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def _tables(
    scored: Sequence[tuple[str, str, str, float]], min_score: float | None, reason: str
) -> dict[str, pl.DataFrame]:
    rows = [AbstentionScore(g, s, q, score, is_too_far(score, min_score)) for g, s, q, score in scored]
    shares = []
    for group in GROUPS:
        own = [row.is_refused for row in rows if row.group == group]
        low, high = wilson(sum(own), len(own))
        value = sum(own) / len(own) if own else None
        shares.append(
            AbstentionShare(
                group, len(own), sum(own), value, low if own else None, high if own else None, min_score, reason
            )
        )
    return {
        "abstention_calibration": to_frame("abstention_calibration", shares),
        "abstention_scores": to_frame("abstention_scores", rows),
    }


def min_score_of(calibration: pl.DataFrame) -> float | None:
    """Return the chosen score of a table `abstention_calibration`; None where there is none."""
    return calibration.item(0, "min_score") if calibration.height else None
