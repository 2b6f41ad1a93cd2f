"""Checkpoints that can be trusted: known to be complete, of these library versions, and without a NaN in them.

transformers writes a checkpoint file by file. It counts from the moment that a list of its files with their hashes
lies beside them, moved there whole; a process killed before that leaves a folder that the next run removes.
"""

from __future__ import annotations

import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ev_platform.errors import UserError
from ev_platform.files import FULL_DISK
from ev_platform.identity import sha256_of

_LIST = "complete.json"
_LIBRARIES = ("torch", "transformers", "peft", "trl")
# torch and safetensors give a failed write as an error of their own, with the reason in its text or nowhere.
_FULL_DISK_TEXTS = ("No space left", "Disk quota", "File too large", "PytorchStreamWriter failed", "inline_container")
_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")

_log = logging.getLogger(__name__)


def complete(trainer: Any, folder: Path, step: int, best: int | None) -> None:
    """Declare the checkpoint of a step complete, and remove the others but the best one.

    Raises:
        UserError: If a weight is not a number.
    """
    import torch

    if not all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters() if p.requires_grad):
        raise UserError(_not_a_number("A weight", step, folder))
    trainer.accelerator.wait_for_everyone()  # each process has written its random state
    if not trainer.args.should_save:
        return
    made = _path(folder, step)
    listed = {"versions": _versions(), "files": {file.name: sha256_of(file) for file in _files(made)}}
    partial = made / f"{_LIST}.partial"
    partial.write_text(json.dumps(listed))
    partial.replace(made / _LIST)
    for other in folder.glob("checkpoint-*"):
        if other not in (made, best and _path(folder, best)):
            _remove(other)


def find_last(folder: Path) -> Path | None:
    """Return the last checkpoint that a run can go on from; remove incomplete ones, set unusable ones aside."""
    usable: dict[int, Path] = {}
    for found in sorted(folder.glob("checkpoint-*")):
        if not (found / _LIST).exists():
            _remove(found)
            continue
        reason = _unusable(found)
        if reason is None:
            usable[int(found.name.rpartition("-")[2])] = found
        else:
            aside = found.with_name(f"unusable-{found.name}")
            shutil.rmtree(aside, ignore_errors=True)
            found.rename(aside)
            _log.warning("%s: %s; it is set aside as %s.", found, reason, aside.name)
    return usable[max(usable)] if usable else None


def last_step(folder: Path) -> int:
    """Return the step of the last complete checkpoint, 0 if there is none."""
    return max((int(f.parent.name.rpartition("-")[2]) for f in folder.glob(f"checkpoint-*/{_LIST}")), default=0)


def load_weights(trainer: Any, folder: Path, step: int) -> None:
    """Put the weights of a step's checkpoint into the trainer's model."""
    # Of transformers' own resume: it knows adapters, whole models and sharded ones.
    trainer._load_from_checkpoint(str(_path(folder, step)))


def check_numbers(entry: dict[str, Any], folder: Path) -> None:
    """Check one logged step, before its weights can be saved.

    Raises:
        UserError: If a loss or the gradient's norm is not a number.
    """
    for name, told in (("loss", "The training loss"), ("grad_norm", "The gradient"), ("eval_loss", "Validation loss")):
        value = entry.get(name)
        if value is not None and not abs(value) < float("inf"):
            raise UserError(_not_a_number(told, entry["step"], folder))


def explain(error: BaseException, folder: Path, step: int) -> str | None:
    """Return the sentence for a full disk or memory, None for anything else; a half-written checkpoint is removed."""
    texts = [str(e) for e in _chain(error)]
    kinds = [type(e).__name__ for e in _chain(error)]
    on = _going_on(folder)
    if any(isinstance(e, OSError) and e.errno in FULL_DISK for e in _chain(error)) or _has(texts, _FULL_DISK_TEXTS):
        for found in folder.glob("checkpoint-*"):
            if not (found / _LIST).exists():
                _remove(found)
        return f"The disk is full: the checkpoint of step {step} did not fit into {folder}; free some space. {on}"
    if "OutOfMemoryError" in kinds or isinstance(error, MemoryError) or _has(texts, _MEMORY_TEXTS):
        return (
            f"Out of memory at step {step + 1}: in the recipe, lower batch_size and raise gradient_accumulation, lower "
            f"max_length, or set gradient_checkpointing: true. {on}"
        )
    return None


def _not_a_number(what: str, step: int, folder: Path) -> str:
    return f"{what} became NaN at step {step}: lower learning_rate in the recipe. {_going_on(folder)}"


def _going_on(folder: Path) -> str:
    step = last_step(folder)
    return f"The same recipe goes on from step {step}." if step else "The same recipe starts again: no checkpoint yet."


def _unusable(found: Path) -> str | None:
    try:
        listed = json.loads((found / _LIST).read_text())
        others = {name: v for name, v in listed["versions"].items() if v != _versions()[name]}
        if others:
            return "written with " + ", ".join(f"{name} {v}" for name, v in others.items()) + ", not what is installed"
        damaged = [name for name, digest in listed["files"].items() if sha256_of(found / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"damaged ({type(error).__name__})"
    return f"damaged ({', '.join(damaged)})" if damaged else None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(_LIST))


def _path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"


def _remove(found: Path) -> None:
    # First of all it stops counting: a process may be killed while its files go.
    (found / _LIST).unlink(missing_ok=True)
    shutil.rmtree(found)


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _has(texts: list[str], parts: tuple[str, ...]) -> bool:
    return any(part in text for text in texts for part in parts)
