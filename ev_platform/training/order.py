"""Which rows go through the model together, and in which order, for a whole run: drawn from the recipe's seed alone.

A resumed run, or one on more processes with the same rows a step, sees the same rows at the same step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ev_platform.training.recipes import Recipe

# Rows are sorted by length within so many steps' worth of them: little padding, and still a random order.
_STEPS_SORTED_TOGETHER = 50
# Rows that are packed together: first fit looks at every open pack, so whole training sets would take minutes.
_ROWS_PACKED_TOGETHER = 1000

Unit = tuple[int, ...]  # rows joined into one sequence; one row, where nothing is packed


class Plan:
    """The batches of all epochs, in order.

    Attributes:
        n_steps: Optimiser steps of the run.
        n_steps_per_epoch: Of one pass over the rows.
    """

    def __init__(self, steps: list[list[list[Unit]]], lengths: list[int], n_steps_per_epoch: int):
        self._batches = [batch for step in steps for batch in step]
        self._tokens = [0, *itertools.accumulate(sum(lengths[r] for b in s for u in b for r in u) for s in steps)]
        self.n_steps = len(steps)
        self.n_steps_per_epoch = n_steps_per_epoch
        self.batch_size = None  # accelerate then deals out batches of any size in turn
        self.drop_last = False

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Unit]]:
        return iter(self._batches)

    def tokens_seen(self, step: int) -> int:
        """Return the tokens of the first `step` steps, padding not counted."""
        return self._tokens[step]

    def rows_of(self, rows: Any) -> _Units:
        """Return a dataset that is indexed by what iterating the plan gives."""
        return _Units(rows)


class _Units:
    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, unit: Unit) -> dict[str, Any]:
        if not unit:  # for a process that a step has no row for: a row without a loss
            return self._rows[0] | {"labels": _blank(self._rows[0]["labels"])}
        if len(unit) == 1:
            return self._rows[unit[0]]
        rows = [self._rows[index] for index in unit]
        joined = {name: list(itertools.chain.from_iterable(row[name] for row in rows)) for name in rows[0]}
        return joined | {"seq_lengths": [len(row["input_ids"]) for row in rows]}


def _blank(labels: list[int] | int) -> list[int] | int:
    return -100 if isinstance(labels, int) else [-100] * len(labels)


def plan_batches(lengths: list[int], recipe: Recipe, accumulation: int, n_processes: int = 1) -> Plan:
    """Lay out a run.

    Args:
        lengths: Tokens of every row.
        recipe: Its batching, batch_size, epochs, max_steps, max_length and seed count.
        accumulation: Batches that a process adds up before a step.
        n_processes: Batches of one step are dealt out to them in turn.

    Returns:
        A plan whose every step has `accumulation * n_processes` batches. Where the last step of a pass has too few
        rows for that, some rows are seen twice in the pass.
    """
    n_batches = accumulation * n_processes
    per_step = recipe.batch_size * n_batches
    random = np.random.default_rng(recipe.seed)

    def epoch() -> list[list[list[Unit]]]:
        shuffled = [int(index) for index in random.permutation(len(lengths))]
        units = _pack(shuffled, lengths, recipe.max_length) if recipe.batching == "packed" else [(r,) for r in shuffled]
        n_steps = math.ceil(len(units) / per_step)
        steps: list[list[list[Unit]]] = []
        n_windows = math.ceil(n_steps / _STEPS_SORTED_TOGETHER)
        bounds = [n_steps * window // n_windows for window in range(n_windows + 1)]
        for start, end in itertools.pairwise(bounds):
            part = units[len(units) * start // n_steps : len(units) * end // n_steps]
            part.sort(key=lambda unit: sum(lengths[row] for row in unit))
            steps += [[batch or [()] for batch in _split(step, n_batches)] for step in _split(part, end - start)]
        return [steps[index] for index in random.permutation(len(steps))]

    steps = epoch()
    per_epoch = len(steps)
    n_steps = recipe.max_steps or max(1, math.ceil(recipe.epochs * per_epoch))
    while len(steps) < n_steps:
        steps += epoch()
    return Plan(steps[:n_steps], lengths, per_epoch)


def _at_least(n: int, units: list[Unit]) -> list[Unit]:
    units = list(units)
    while len(units) < n:
        most = max(range(len(units)), key=lambda index: len(units[index]))
        pack, half = units[most], len(units[most]) // 2
        # A pack is taken apart; single rows are used again, in their random order.
        units[most : most + 1] = [pack[:half], pack[half:]] if half else [pack]
        if not half:
            return units + list(itertools.islice(itertools.cycle(units), n - len(units)))
    return units


def _split(units: list[Any], n_parts: int) -> list[list[Any]]:
    bounds = [len(units) * part // n_parts for part in range(n_parts + 1)]
    return [units[start:end] for start, end in itertools.pairwise(bounds)]


def _pack(rows: list[int], lengths: list[int], max_length: int) -> list[Unit]:
    """First fit, longest first, within windows of rows."""
    packs: list[Unit] = []
    for start in range(0, len(rows), _ROWS_PACKED_TOGETHER):
        open_packs: list[list[int]] = []
        room: list[int] = []
        for row in sorted(rows[start : start + _ROWS_PACKED_TOGETHER], key=lambda row: -lengths[row]):
            fitting = next((index for index, free in enumerate(room) if free >= lengths[row]), None)
            if fitting is None:
                open_packs.append([row])
                room.append(max_length - lengths[row])
            else:
                open_packs[fitting].append(row)
                room[fitting] -= lengths[row]
        packs += [tuple(pack) for pack in open_packs]
    return packs
