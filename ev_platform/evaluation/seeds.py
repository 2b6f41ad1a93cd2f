"""How much of a tuned system's score is chance: the same recipe, trained again with other seeds.

A seed decides the order of the rows and the first weights of an adapter or a head. Whatever two seeds differ by, no
other change of the same size has shown anything.

What does not belong here: training itself (`training`) and scores (`summary`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.evaluation.summary import mean_scores
from ev_platform.files import write_atomic
from ev_platform.identity import short_id
from ev_platform.records import SeedScore, to_frame
from ev_platform.training.export import export_serving_model, merge_adapter
from ev_platform.training.loop import Job, Result
from ev_platform.training.train import train as train_here

Ask = Callable[[Path], pl.DataFrame]


def score_seeds(
    seeds: Sequence[int],
    job: Job,
    predictions: pl.DataFrame,
    ask: Ask,
    identity: dict[str, Any],
    train: Callable[[Job], Result] = train_here,
    *,
    is_labels: bool = False,
) -> pl.DataFrame:
    """Train a recipe with further seeds and score what comes of each on the same rows.

    The scores of a finished seed are kept in `job.out`, so that a killed run goes on with the next; the models are not.

    Args:
        seeds: Further seeds; the recipe's own is not trained again.
        job: What the evaluated model was trained by; `out` is the folder of this work, `checkpoints` is not read.
        predictions: The `predictions` table of the evaluated model, whose seed is the recipe's.
        ask: Returns the predictions of the tuned systems of a serving folder.
        identity: What else the scores depend on.
        train: Runs a job.
        is_labels: Whether the answers are labels.

    Returns:
        The `seed_scores` table, the recipe's own seed first; empty without seeds.
    """
    rows: list[SeedScore] = []
    for seed in dict.fromkeys(seeds):
        if seed == job.recipe.seed:
            continue
        recipe = job.recipe.model_copy(update={"seed": seed})
        name = short_id("sed", identity, recipe.model_dump(mode="json"), job.labels, job.no_answer)
        result = job.out / f"{name}.json"
        if not result.exists():
            one = dataclasses.replace(job, recipe=recipe, out=job.out / name, checkpoints=job.out / f"{name}.steps")
            scores = mean_scores(_train_and_ask(one, ask, train), is_labels=is_labels)
            write_atomic(result, json.dumps(scores).encode())
            shutil.rmtree(one.checkpoints, ignore_errors=True)
        rows += [SeedScore(seed, *score) for score in json.loads(result.read_text())]
    if rows:
        tuned = predictions.filter(pl.col("system").is_in({row.system for row in rows}))
        rows = [SeedScore(job.recipe.seed, *score) for score in mean_scores(tuned, is_labels=is_labels)] + rows
    return to_frame("seed_scores", rows)


def spread_over_seeds(seed_scores: pl.DataFrame) -> pl.DataFrame:
    """Return mean and standard deviation over the seeds of each score.

    Args:
        seed_scores: The table.

    Returns:
        `system`, `metric`, `n_seeds`, `mean`, `sd` (of a sample; null for one seed), in the table's order.
    """
    value = pl.col("value")
    return seed_scores.group_by("system", "metric", maintain_order=True).agg(
        n_seeds=pl.col("seed").n_unique(), mean=value.mean(), sd=value.std()
    )


def _train_and_ask(job: Job, ask: Ask, train: Callable[[Job], Result]) -> pl.DataFrame:
    shutil.rmtree(job.out, ignore_errors=True)  # of a killed process
    adapter, merged, serving = (job.out / name for name in ("adapter", "merged", "serving"))
    for folder in (adapter, merged, serving):
        folder.mkdir(parents=True)
    try:
        train(dataclasses.replace(job, out=adapter, log=None))
        merge_adapter(job.base, adapter, merged)
        export_serving_model(merged, serving, job.recipe, job.labels, job.no_answer)
        return ask(serving)
    finally:
        shutil.rmtree(job.out, ignore_errors=True)
