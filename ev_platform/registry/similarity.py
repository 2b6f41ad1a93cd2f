"""How near a question is to those that a version was trained on: their vectors, computed once and kept on disk.

The vectors lie in `<data>/vectors/<task>/`, a file for each set of training rows. They are a cache: a load that misses
them makes them anew.

What does not belong here: comparing a question with them (`releases`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ev_platform.files import write_atomic
from ev_platform.identity import fingerprint
from ev_platform.retrieval import EMBEDDER, embed_once
from ev_platform.storage import Store
from ev_platform.tasks.splitting import spread_evenly

_log = logging.getLogger(__name__)

# 15 MB, and a minute of embedding on two cores. Of more questions, so many spread evenly speak for the others.
MAX_QUESTIONS = 10_000


def trained_vectors(store: Store, task: str, row: Mapping[str, Any]) -> np.ndarray | None:
    """Return unit vectors of the questions that a version was trained on, float32, one row for each distinct question.

    Args:
        store: Where its training rows lie.
        task: Partition.
        row: Of `registered_model`.

    Returns:
        At most `MAX_QUESTIONS` of them; None where there are none, or the rows are gone.
    """
    name = fingerprint([row["training_set_fingerprint"], EMBEDDER, MAX_QUESTIONS])[:20]
    file = store.root / "vectors" / task / f"{name}.npy"
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there yet, or cut short
        pass
    try:
        rows = store.read("training_set", task, row["training_set_version"])
    except FileNotFoundError:
        return None
    if rows.is_empty():
        return None
    questions = rows["question"].unique(maintain_order=True).to_list()
    vectors = embed_once(spread_evenly(questions, MAX_QUESTIONS))
    out = io.BytesIO()
    np.save(out, vectors, allow_pickle=False)
    try:
        write_atomic(file, out.getvalue())
    except OSError as error:  # a folder that may only be read
        _log.info("The vectors of %s are not kept: %s", row["model_version"], error)
    return vectors
