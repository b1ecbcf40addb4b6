"""The rows of tables that one rank updates in a step, in chunks: gathered, handed to the rule, and put back.

A chunk is of one group of tables and fits into the rank's undo record, which holds its rows' old content: parameters
and state, one after the other. Which rows these are need not be written down: it follows from what the shards have
left, which stays as it is until the step is committed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.comm.layout import BLOCK
from dtrain.comm.memory import RunMemory
from dtrain.comm.rows import compact, moved_rows, part_starts, used_rows
from dtrain.optim.rule import Block


class RowChunks:
    """The chunks of the ``parts`` of a step's rows; row ``row`` of ``undo`` is theirs. ``begin`` comes first."""

    def __init__(self, memory: RunMemory, row: int, parts: tuple[int, int]) -> None:
        layout = memory.dimensions.layout
        self._memory, self._groups, self._parts = memory, layout.groups, parts
        self.count = 0
        if layout.groups:
            self._undo = memory.undo[row]
            self._live = [[g.whole(b) for b in (memory.parameters, *memory.state)] for g in layout.groups]
            self._work = [np.empty(BLOCK, layout.dtype) for _ in range(len(self._undo) + 3)]

    def begin(self, samples: int) -> None:
        """Find the chunks of a step of so many samples."""
        memory, self._chunks, self._unions = self._memory, [], []
        shards = range(min(samples, memory.dimensions.shards))
        for number, group in enumerate(self._groups):
            ids = used_rows(memory, number, shards)
            self._unions.append(ids)
            total = compact(memory.total, group, len(ids))
            cuts = part_starts(len(ids), self._parts)
            size = BLOCK // group.width
            for lo in range(cuts[0], cuts[-1], size):
                hi = min(lo + size, cuts[-1])
                self._chunks.append((number, ids[lo:hi], total[lo:hi], lo))
        self.count = len(self._chunks)

    def save(self, chunk: int, is_sampled: bool = False) -> None:
        """Copy the old content of a chunk into the undo record, at a sampled step parameters to ``old_rows`` too."""
        number, ids, _, lo = self._chunks[chunk]
        if is_sampled:
            group = self._groups[number]
            old = compact(self._memory.old_rows[lo * group.width :], group, len(ids))
            np.take(self._live[number][0], ids, 0, old, "clip")
        for saved, live in zip(self._cut(self._undo, chunk), self._live[number], strict=True):
            np.take(live, ids, 0, saved, "clip")  # "raise" would make NumPy buffer `saved`; the ids are valid

    def restore(self, chunk: int) -> None:
        """Put the old content back."""
        number, ids, _, _ = self._chunks[chunk]
        for saved, live in zip(self._cut(self._undo, chunk), self._live[number], strict=True):
            live[ids] = saved

    def gather(self, chunk: int, factor: Any) -> tuple[Block, Block, tuple[Block, ...], tuple[Block, Block]]:
        """What the rule takes, after ``save``: parameter, gradient (the sum times ``factor``), state, scratch."""
        _, _, total, _ = self._chunks[chunk]
        saved, work = self._cut(self._undo, chunk), self._cut(self._work, chunk)
        for old, new in zip(saved, work, strict=False):
            np.copyto(new, old)
        parameter, *others = (w.reshape(-1) for w in work)
        *state, gradient, one, other = others
        np.multiply(total.reshape(-1), factor, gradient)
        return parameter, gradient, tuple(state), (one, other)

    def put_back(self, chunk: int) -> None:
        """Write what the rule has made of parameter and state."""
        number, ids, _, _ = self._chunks[chunk]
        for new, live in zip(self._cut(self._work, chunk), self._live[number], strict=False):
            live[ids] = new

    def measure(self, moved: Any) -> None:
        """Write down how large the rows of the own parts are now, and how far they have moved."""
        for number, ids in enumerate(self._unions):
            moved_rows(self._memory, number, ids, self._parts, moved)

    def _cut(self, buffers: Any, chunk: int) -> list[Any]:
        number, ids, _, _ = self._chunks[chunk]
        width = self._groups[number].width
        return [b[: len(ids) * width].reshape(len(ids), width) for b in buffers]
