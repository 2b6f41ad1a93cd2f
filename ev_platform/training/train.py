"""One entry to training: the recipe's head names the trainer."""

from __future__ import annotations

from ev_platform.training.causal import train_causal
from ev_platform.training.heads import train_classifier, train_extractive
from ev_platform.training.loop import Job, Result

TRAINERS = {"causal": train_causal, "extractive": train_extractive, "classification": train_classifier}


def train(job: Job) -> Result:
    """Train as `job.recipe.head` says; see `loop.fit` for what is returned and raised."""
    return TRAINERS[job.recipe.head](job)
