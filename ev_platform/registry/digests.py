"""The digest of a folder that is served: every file in it takes part in an answer, not the weights alone.

An encoder reads its labels and its threshold from config.json, an engine its window from window.txt, and both their
words from the tokenizer. What does not belong here: what follows from another digest (`releases`, `versions`).
"""

from __future__ import annotations

from pathlib import Path

from ev_platform.identity import fingerprint
from ev_platform.training.base import sha256_files, sha256_weights

# Versions of earlier releases have the digest of their weight files alone, without a prefix.
ALL = "all:"


def digest_of(folder: Path, weights_sha256: str | None = None) -> str:
    """Return the digest of all files of a folder, hidden ones aside, which nothing loads.

    Args:
        folder: Of a model.
        weights_sha256: Of its weight files, where it is known already: see `training.base.sha256_weights`.
    """
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    shown = {name: file for name, file in files.items() if not file.name.startswith(".")}
    others = sorted(
        name for name in shown if "/" in name or shown[name].suffix not in (".safetensors", ".bin", ".gguf")
    )
    weights = weights_sha256 or sha256_weights(folder)[0]
    return ALL + fingerprint([weights, others, sha256_files([shown[name] for name in others])])


def is_intact(folder: Path, registered: str | None) -> bool:
    """Return whether a folder is as it was registered, as far as its digest tells; None tells nothing."""
    if registered is None:
        return True
    return registered == (digest_of(folder) if registered.startswith(ALL) else sha256_weights(folder)[0])
