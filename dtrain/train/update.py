"""The update: from the summed gradient to new parameters, so that a death in the middle leaves nothing half done.

``decide`` is a pure function of what all ranks see, so every rank takes the same decision without a message.
``SliceUpdate`` walks a slice in blocks. Before a block is touched its old content goes into the rank's undo record; who
completes the slice after a death puts the record back and goes on from that block: each block is updated exactly once.

The rows of tables that a step uses are updated in the same way, in chunks that are gathered and put back; the chunks
are counted on after the blocks of the slice.

A block of running values is not updated by the rule: the mean of what the shards reported, weighted with their samples,
is folded into it. Clipping, decay and the rule's state do not touch it.

At a sampled step the squared norms of what each segment has become, and of how far it has moved, are written down while
the block is in cache, before it counts as done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import BLOCK
from dtrain.comm.memory import (
    BEATS,
    BLOCK_IN_WORK,
    BLOCKS_DONE,
    CLIP,
    NORM,
    RING,
    ROW_WORDS,
    SAMPLED,
    SKIPPED,
    UPDATE,
    UPDATE_STEP,
    VALUE,
    RunMemory,
)
from dtrain.optim.clipping import clip_by_value
from dtrain.optim.clipping import scale as clip_scale
from dtrain.optim.rule import Block, Rule
from dtrain.train.row_update import RowChunks


@dataclass(frozen=True)
class Settings:
    """The part of a job that the update needs."""

    rule: Rule
    clip_norm: float | None
    clip_value: float | None
    on_nonfinite: Literal["stop", "skip"]


@dataclass(frozen=True)
class Decision:
    """What the ranks do with the summed gradient of one step, which had so many samples."""

    action: Literal["update", "skip", "stop"]
    norm: float
    clip: float
    samples: int

    @property
    def factor(self) -> float:
        """What the sum over samples is multiplied by."""
        return self.clip / self.samples if self.action == "update" else 0.0


def decide(settings: Settings, squares: NDArray[np.float64], losses: NDArray[np.float64], samples: int) -> Decision:
    """Decide on one step from the segments' sums of squares and the shards' losses (absent shards hold 0).

    The norm is that of the mean gradient over ``samples``. ``math.fsum`` is exact, so its order does not matter.
    """
    not_finite = Decision("skip" if settings.on_nonfinite == "skip" else "stop", math.nan, 1.0, samples)
    try:
        total = math.fsum(squares.tolist())
    except OverflowError:  # float64 gradients: each square is finite, their sum is not
        return not_finite
    # Squares are not negative, so one that is not finite shows in their sum; losses could cancel out.
    if not (math.isfinite(total) and all(map(math.isfinite, losses.tolist()))):
        return not_finite
    norm = math.sqrt(total) / samples
    clip = 1.0 if settings.clip_norm is None else clip_scale(norm, settings.clip_norm)
    return Decision("update", norm, clip, samples)


def write_down(decision: Decision, row: NDArray[np.float64]) -> None:
    """Keep a decision in the run's memory for who records the step."""
    row[SKIPPED], row[NORM], row[CLIP] = decision.action == "skip", decision.norm, decision.clip


class SliceUpdate:
    """Update blocks ``lo..hi`` in place, recording progress in row ``row`` of the run's memory.

    Of the rows of tables that a step uses it updates the parts ``row_parts`` (`comm/rows.py`).
    """

    def __init__(
        self,
        memory: RunMemory,
        settings: Settings,
        row: int,
        blocks: tuple[int, int],
        row_parts: tuple[int, int] = (0, 0),
    ) -> None:
        layout = memory.dimensions.layout
        self._rows = RowChunks(memory, row, row_parts)
        self._memory, self._settings, self._lo, self._hi = memory, settings, *blocks
        self._words, self._row = memory.arrived_words, row * ROW_WORDS
        self._coefficients = len(settings.rule.coefficients(0, 0.0))
        work = [np.empty(BLOCK, layout.dtype) for _ in range(3)]
        self._blocks: list[tuple[Any, ...]] = []
        self._parts: list[list[tuple[int, Block, Block, Block]]] = []  # segment: its value, the old one, scratch
        for block in range(*blocks):
            where = layout.block(block)
            length = where.stop - where.start
            is_running = block >= layout.parameter_blocks
            live = (memory.parameters[where], *(() if is_running else [s[where] for s in memory.state]))
            pairs = tuple(zip((u[:length] for u in memory.undo[row]), live, strict=False))
            total = memory.total[where]
            gradient, *scratch = (w[:length] for w in work)
            folds, parts = [], []
            for number, segment in enumerate(layout.segments[block], layout.segment_starts[block]):
                part = slice(segment.lo - where.start, segment.hi - where.start)
                if is_running:
                    folds.append((live[0][part], total[part], layout.momenta[segment.parameter], gradient[part]))
                else:
                    parts.append((number, live[0][part], pairs[0][0][part], gradient[part]))
            self._blocks.append((pairs, live, total, gradient, scratch, folds))
            self._parts.append(parts)

    def run(self, step: int, decision: Decision) -> None:
        """Update the slice for ``step``. The rank that owns the row calls it, once per step."""
        words, row = self._words, self._row
        words[row + BLOCK_IN_WORK] = -1
        words[row + BLOCKS_DONE] = self._lo
        words[row + UPDATE_STEP] = step + 1
        self._rows.begin(decision.samples)
        self._update(self._lo, step, decision)

    def complete(self, step: int, decision: Decision) -> None:
        """Finish what the owner of the row, now dead or halted, has left of ``step``. Nobody else is running."""
        words, row = self._words, self._row
        start = self._lo
        self._rows.begin(decision.samples)
        if words[row + UPDATE_STEP] == step + 1:
            start = words[row + BLOCKS_DONE]
            if words[row + BLOCK_IN_WORK] == start and start >= self._hi:
                self._rows.restore(start - self._hi)
            elif words[row + BLOCK_IN_WORK] == start:
                for saved, live in self._blocks[start - self._lo][0]:
                    np.copyto(live, saved)
        else:
            words[row + BLOCK_IN_WORK] = -1
            words[row + BLOCKS_DONE] = start
            words[row + UPDATE_STEP] = step + 1
        self._update(start, step, decision)

    def _update(self, start: int, step: int, decision: Decision) -> None:
        words, row, update = self._words, self._row, self._settings.rule.update
        scalars = self._memory.coefficients[step % RING].tolist()
        coefficients, is_sampled = tuple(scalars[: self._coefficients]), bool(scalars[SAMPLED])
        factor = self._memory.parameters.dtype.type(decision.factor)
        bound = self._settings.clip_value
        for block in range(start, self._hi):
            pairs, (parameter, *state), total, gradient, scratch, folds = self._blocks[block - self._lo]
            for saved, live in pairs:
                np.copyto(saved, live)
            words[row + BLOCK_IN_WORK] = block
            if folds:
                for running, reported, momentum, work in folds:
                    fold(running, reported, decision.samples, momentum, work)
            else:
                np.multiply(total, factor, gradient)
                if bound is not None:
                    clip_by_value(gradient, bound)
                update(parameter, gradient, tuple(state), coefficients, tuple(scratch))
            if is_sampled:
                self._measure(block, self._memory.moved[step % RING])
            words[row + BLOCKS_DONE] = block + 1
            words[row + BEATS] += 1
        for chunk in range(max(start - self._hi, 0), self._rows.count):
            self._rows.save(chunk, is_sampled)
            words[row + BLOCK_IN_WORK] = self._hi + chunk
            parameter, gradient, state, scratch = self._rows.gather(chunk, factor)
            if bound is not None:
                clip_by_value(gradient, bound)
            update(parameter, gradient, state, coefficients, scratch)
            self._rows.put_back(chunk)
            words[row + BLOCKS_DONE] = self._hi + chunk + 1
            words[row + BEATS] += 1
        if is_sampled:
            self._rows.measure(self._memory.moved[step % RING])

    def _measure(self, block: int, moved: NDArray[np.float64]) -> None:
        """Write down how large each parameter's part of a block is now, and how far it has moved from its old value."""
        for number, value, old, scratch in self._parts[block - self._lo]:
            np.subtract(value, old, out=scratch)
            moved[VALUE, number] = float(np.dot(value, value))
            moved[UPDATE, number] = float(np.dot(scratch, scratch))


def fold(running: Block, total: Block, samples: int, momentum: float, scratch: Block) -> None:
    """running ← (1 − momentum)·running + momentum·total/samples, in place; ``total`` is a sum over samples."""
    kind = running.dtype.type
    np.divide(total, kind(samples), out=scratch)
    np.multiply(scratch, kind(momentum), out=scratch)
    np.multiply(running, kind(1.0 - momentum), out=running)
    np.add(running, scratch, out=running)
