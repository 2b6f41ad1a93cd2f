"""What differs between two versions: training rows, recipe, settings, fingerprints, scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ev_platform.registry.versions import resolve
from ev_platform.storage import Store

# Column of `registered_model` to what it identifies.
FINGERPRINTS = {
    "base_model": "base model",
    "training_set_fingerprint": "training rows",
    "recipe_fingerprint": "recipe",
    "weights_sha256": "weights",
    "chunks_fingerprint": "passages",
    "template_fingerprint": "prompt template",
    "benchmark_fingerprint": "benchmark",
    "code": "code that answers",
    "git_commit": "git commit",
    "verdict": "verdict",
}

Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """What the second of two versions has otherwise than the first.

    Attributes:
        versions: Their names.
        same: What is the same in both, of the values of `FINGERPRINTS`.
        other: The others, each with both values.
        added: Questions of training rows that only the second has.
        removed: Questions of training rows that only the first has.
        n_shared: Training rows that both have.
        recipe: Dotted key to both values, where they differ.
        serving: The same for the settings of serving.
        scores: `system/metric` to both values, where both have one; their difference means something only if
            `has_same_test_rows`.
    """

    versions: tuple[str, str]
    same: tuple[str, ...]
    other: dict[str, Pair]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    n_shared: int
    recipe: dict[str, Pair]
    serving: dict[str, Pair]
    scores: dict[str, Pair]

    @property
    def has_same_test_rows(self) -> bool:
        """Whether both versions answered the same version of the benchmark."""
        return FINGERPRINTS["benchmark_fingerprint"] in self.same


def compare(store: Store, task: str, first: str, second: str) -> Difference:
    """Compare two versions.

    Args:
        store: Where they lie.
        task: Partition.
        first: Version or alias.
        second: Version or alias.

    Raises:
        UserError: If there is no such version.
    """
    a, b = resolve(store, task, first), resolve(store, task, second)
    rows = [
        {
            row["example_id"]: row["question"]
            for row in store.read("training_set", task, it["training_set_version"]).iter_rows(named=True)
        }
        for it in (a, b)
    ]
    scores = [json.loads(it["scores"]) for it in (a, b)]
    return Difference(
        versions=(a["model_version"], b["model_version"]),
        same=tuple(name for column, name in FINGERPRINTS.items() if a[column] == b[column]),
        other={name: (a[column], b[column]) for column, name in FINGERPRINTS.items() if a[column] != b[column]},
        added=tuple(question for key, question in rows[1].items() if key not in rows[0]),
        removed=tuple(question for key, question in rows[0].items() if key not in rows[1]),
        n_shared=len(rows[0].keys() & rows[1].keys()),
        recipe=_differing(_flat(json.loads(a["recipe"])), _flat(json.loads(b["recipe"]))),
        serving=_differing(json.loads(a["serving"]), json.loads(b["serving"])),
        scores={key: (scores[0][key], scores[1][key]) for key in scores[0] if key in scores[1]},
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return flat


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}
