"""Immutable model versions, aliases that point at them, the gate before a promotion, and loading one to answer with it.

A version is a row of the table `registered_model`; it names the very weights, training rows and passages it stands
for (`versions`). Aliases (`champion`, `candidate`, `previous`) are a small file beside it, replaced as a whole
(`aliases`). `releases` loads a version after checking its files (`digests`); `evidence` gathers what the gate judges
by, `gate` judges, `promotion` decides and rolls back, `note` writes down why, `takedown` says which versions are
tainted, `compare` says what differs between two versions and `prune` takes weights off the disk.

What does not belong here: scores (`evaluation`) and answering over HTTP (`serving`).
"""

from ev_platform.registry.aliases import alias_file, locked, name_candidate, read_aliases
from ev_platform.registry.prune import pruned_at
from ev_platform.registry.releases import LookUp, Release, SourceChunk, checked_weights, load_release
from ev_platform.registry.versions import (
    SHIPPED,
    answering_code,
    answering_now,
    reference_of,
    register,
    resolve,
    serving_settings,
    template_fingerprint,
)

__all__ = [
    "SHIPPED",
    "LookUp",
    "Release",
    "SourceChunk",
    "alias_file",
    "answering_code",
    "answering_now",
    "checked_weights",
    "load_release",
    "locked",
    "name_candidate",
    "pruned_at",
    "read_aliases",
    "reference_of",
    "register",
    "resolve",
    "serving_settings",
    "template_fingerprint",
]
