"""Rows about models: what was trained, registered, promoted and published."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from ev_platform.records.columns import VOLATILE


@dataclass(frozen=True, slots=True)
class ModelArtifact:
    """One directory of weights (`base_model`, `adapter`, `merged_model`, `serving_model`)."""

    artifact_id: str  # hash of what it was made from and of its bytes
    kind: str
    path: str  # relative to the data folder
    base_model: str
    recipe: str  # JSON
    inputs: str  # JSON: fingerprints of what it was made from
    sha256: str  # of the weight files' bytes
    n_bytes: int
    metrics: Annotated[str, VOLATILE]  # JSON: losses, times, counts


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """What came of one recipe that was tried (`sweep_trials`)."""

    trial: int  # from 1 on, in the order of the grid
    overrides: str  # JSON: dotted key of the recipe to its value
    validation_loss: float | None
    n_steps: int | None
    train_seconds: Annotated[float | None, VOLATILE]
    status: str  # "finished" or "failed"
    reason: str | None  # why it failed
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One logged optimiser step (`training_log`)."""

    adapter_id: str
    step: int
    epoch: float
    loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_seen: int | None
    elapsed_s: Annotated[float, VOLATILE]
    tokens_per_second: Annotated[float | None, VOLATILE] = None
    peak_memory_bytes: Annotated[int | None, VOLATILE] = None  # of the GPU, else of the process


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """One immutable version of a task's model (`registered_model`)."""

    model_version: str  # "ev_charging@3"
    number: int
    registered_at: Annotated[datetime, VOLATILE]
    serving_model_id: str
    adapter_id: str
    training_set_version: Annotated[str, VOLATILE]  # named after its hour; reopen with Store.read(..., version=)
    training_set_fingerprint: str
    chunks_version: Annotated[str, VOLATILE]
    chunks_fingerprint: str
    serving: str  # JSON: task_type, instructions, has_retrieval, top_k, candidates, max_new_tokens, as evaluated
    benchmark_fingerprint: str
    template_fingerprint: str
    recipe: str
    verdict: str
    reason: str
    scores: str  # JSON
    base_model: str | None = None
    recipe_fingerprint: str | None = None
    weights_sha256: str | None = None  # "all:" and the digest of the serving folder's files; checked at each load
    code: str | None = None  # hash of the code that answers
    git_commit: str | None = None


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One condition of promotion, as it stood for the newest version (`promotion_gate`)."""

    model_version: str
    champion: str | None  # the version in place when it was judged
    check: str
    passed: bool
    value: float | None
    limit: float | None
    reason: str  # one sentence with the figures


@dataclass(frozen=True, slots=True)
class Promotion:
    """One decision about which version answers (`promotions`), oldest first."""

    decided_at: Annotated[datetime, VOLATILE]
    decision: str  # "promoted", "kept", "rolled_back" or "overridden"
    model_version: str  # decided about
    champion_before: str | None
    champion_after: str | None
    reason: str
    failed_checks: list[str]
    decided_by: str  # "gate", or the person's login


@dataclass(frozen=True, slots=True)
class Publication:
    """A model that was sent to the Hugging Face Hub, or would have been (`published_models`)."""

    repo_id: str
    merged_model_id: str
    is_private: bool
    is_dry_run: bool
    url: str | None  # of the commit; None after a dry run
    commit: str | None
    n_files: int
    n_bytes: int
    published_at: Annotated[datetime, VOLATILE]
