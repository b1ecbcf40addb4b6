"""What a host adds by itself before anything travels: the largest subtrees whose shards it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import BLOCK
from dtrain.comm.memory import RunMemory
from dtrain.comm.reduce import Call, bind_additions, scratch_of
from dtrain.comm.tree import Leaf, Subtree, cover, partial_additions

Held = tuple[frozenset[int], ...]
"""The shards whose gradients each host holds, by host."""


@dataclass(frozen=True)
class Part:
    """The place of one process in the sum between hosts: its host among ``hosts``, its rank among those of the host."""

    host: int
    hosts: int
    rank: int
    ranks: int


class OwnSubtrees:
    """The subtrees that each host holds, and where the sums of this host's own lie.

    The sum of a subtree of one shard is the gradient itself; the others are added into ``memory.partials``.
    """

    def __init__(self, memory: RunMemory, part: Part, held: Held, present: tuple[int, ...]) -> None:
        shards = memory.dimensions.shards
        self._memory, self._present = memory, present
        self.held = held
        self.of_host = [cover(shards, present, h) for h in held]
        self.losses = sorted(held[part.host] & set(present))
        self.rows: dict[Subtree, NDArray[np.generic]] = {}
        self._many: list[Subtree] = []
        for subtree in self.of_host[part.host]:
            alone = [s for s in present if subtree.lo <= s < subtree.hi]
            if len(alone) == 1:
                self.rows[subtree] = memory.gradients[alone[0]]
            else:
                self.rows[subtree] = memory.partials[len(self._many)]
                self._many.append(subtree)

    def bind(self, blocks: tuple[int, int]) -> list[Call]:
        """The additions that make the own subtrees in blocks ``lo..hi``."""
        memory, layout = self._memory, self._memory.dimensions.layout
        scratch = scratch_of(layout, memory.dimensions.shards)
        calls: list[Call] = []
        for block in range(*blocks):
            where = layout.block(block)

            def gradient(leaf: Leaf, where: slice = where) -> NDArray[np.generic]:
                return memory.gradients[leaf.shard, where]

            for subtree in self._many:
                adds, result = partial_additions(subtree, self._present)
                calls += bind_additions(adds, result, gradient, self.rows[subtree][where], scratch)
        return calls


def elements(memory: RunMemory, blocks: tuple[int, int]) -> slice:
    """The elements of blocks ``lo..hi``."""
    size = memory.dimensions.layout.dense_size
    return slice(min(blocks[0] * BLOCK, size), min(blocks[1] * BLOCK, size))
