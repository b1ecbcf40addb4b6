"""What the coordinator does to the memory of one host: to its own by itself, to another's through a worker there.

Between generations nobody else writes; while one runs, only the words of the header are touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtrain.comm.layout import split_evenly
from dtrain.comm.memory import (
    ARRIVED,
    BEATS,
    BEGUN,
    COMPLETE,
    GRANTED,
    HALT,
    RING,
    SUMMED,
    WAITS,
    RunMemory,
)
from dtrain.comm.rows import parts_of
from dtrain.train.program import Program
from dtrain.train.update import Settings, SliceUpdate, decide, write_down

FOREVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Report:
    """How far a halted generation has come on one host.

    ``begun`` is the generation that has begun there. ``committed`` steps are committed by all its ranks; ``is_whole``
    tells whether it has the whole sum of the next one, and ``done`` which shards' gradients of the next one lie here.
    """

    begun: int
    committed: int
    is_whole: bool
    done: frozenset[int]


class Host:
    """The memory of one host, and what may be done to it. Use it in the process that maps the memory."""

    def __init__(self, program: Program, memory: RunMemory) -> None:
        self._program, self.memory = program, memory
        self._settings = Settings(program.rule, program.clip_norm, program.clip_value, program.on_nonfinite)
        self._sampler = program.sampler()

    def begin(self, generation: int, step: int) -> None:
        """Set the words for a generation that begins at ``step``; its ranks wait until that is done."""
        memory = self.memory
        # A member of the generation before may not have read its message yet when the next steps are granted.
        memory.header[HALT] = generation - 1
        memory.header[COMPLETE] = 0
        memory.arrived[:, :] = 0
        memory.arrived[:, ARRIVED] = 4 * step
        memory.header[BEGUN] = generation

    def halt(self, generation: int) -> None:
        """Make every rank of the generation stop where it is."""
        self.memory.header[HALT] = max(generation, int(self.memory.header[HALT]))

    def grant(self, first: int, coefficients: Sequence[Sequence[float]]) -> None:
        """Let the steps from ``first`` on run that have a row in ``coefficients``."""
        memory = self.memory
        for step, values in enumerate(coefficients, first):
            memory.coefficients[step % RING, : len(values)] = values
        memory.header[GRANTED] = first + len(coefficients)

    def rows(self, ranks: int) -> list[tuple[int, int, int]]:
        """How far each rank is: what it has reached, its beats, and how often it has waited for another host."""
        return [(int(r[ARRIVED]), int(r[BEATS]), int(r[WAITS])) for r in self.memory.arrived[:ranks]]

    def report(self, ranks: int) -> Report:
        """Say how far the ranks of the halted generation have come; they are all at rest."""
        memory = self.memory
        least = int(memory.arrived[:ranks, ARRIVED].min())
        step = (least + 1) // 4
        is_whole = least >= 4 * step + SUMMED or memory.header[COMPLETE] == step + 1
        done = frozenset(np.flatnonzero(memory.shard_done == step + 1).tolist())
        return Report(int(memory.header[BEGUN]), step, bool(is_whole), done)

    def mend(self, ranks: int) -> int:
        """Finish the update of the step whose sum is whole, unless it must not be made; return the steps committed.

        The same decision as the ranks', from the same figures. May be called again after a death in the middle.
        """
        memory, step = self.memory, self.report(ranks).committed
        samples, slot = self._sampler.batch_size(step), step % RING
        losses = memory.losses[slot, : min(samples, self._program.shards)]
        decision = decide(self._settings, memory.squares[slot], losses, samples)
        if decision.action == "stop":
            return step
        write_down(decision, memory.decisions[slot])
        if decision.action == "update":
            with np.errstate(all="ignore"):
                for rank, blocks in enumerate(split_evenly(memory.dimensions.layout.blocks, ranks)):
                    SliceUpdate(memory, self._settings, rank, blocks, parts_of(rank, ranks)).complete(step, decision)
        memory.arrived[:ranks, ARRIVED] = 4 * step + 3
        return step + 1
