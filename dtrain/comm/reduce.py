"""Sum a rank's slice of the shard gradients, block by block, in tree order, and the squares for the norm with it.

A block is added over all present shards while it is in cache, so each gradient is read from memory once and the sum
written once; nothing is exchanged, since every worker of the host maps every gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import BLOCK, Layout
from dtrain.comm.tree import Add, Leaf, Place, Register, additions, registers

Call = Callable[[], object]


class SliceSum:
    """The sum over shards of blocks ``lo..hi`` of the layout: ``total[slice] = tree sum of gradients[:, slice]``.

    ``gradients`` is (shards, size), ``total`` (size,). Calls are bound once per set of present shards, so that a step
    costs one NumPy call per addition and nothing else.
    """

    def __init__(
        self,
        layout: Layout,
        gradients: NDArray[np.generic],
        total: NDArray[np.generic],
        blocks: tuple[int, int],
    ) -> None:
        self._layout, self._gradients, self._total, self._blocks = layout, gradients, total, blocks
        self._scratch = scratch_of(layout, gradients.shape[0])
        self._bound: dict[tuple[int, ...], list[list[Call]]] = {}
        self._squares = Squares(layout, total, blocks)

    def run(self, present: tuple[int, ...], squares: NDArray[np.float64] | None) -> None:
        """Sum over the ``present`` shards; write each own segment's sum of squares into ``squares`` (None: no norm)."""
        calls = self._bound.get(present)
        if calls is None:
            calls = self._bound[present] = self._bind(present)
        for block, own in enumerate(calls, self._blocks[0]):
            for call in own:
                call()
            if squares is not None:
                self._squares.run(block, squares)

    def _bind(self, present: Sequence[int]) -> list[list[Call]]:
        adds, result = additions(self._gradients.shape[0], present)
        blocks = []
        for block in range(*self._blocks):
            where = self._layout.block(block)

            def gradient(leaf: Leaf, where: slice = where) -> NDArray[np.generic]:
                return self._gradients[leaf.shard, where]

            blocks.append(bind_additions(adds, result, gradient, self._total[where], self._scratch))
        return blocks


class Squares:
    """The sums of squares of the segments in blocks ``lo..hi`` of ``total``, in float64.

    A norm is over one segment, so that the figure cannot depend on the slice that a rank holds. Running values have
    no part in it: their figure is 0, or nan if one of them is not finite, so that the sum of all tells that too.
    """

    def __init__(self, layout: Layout, total: NDArray[np.generic], blocks: tuple[int, int]) -> None:
        self._first, self._running = blocks[0], layout.parameter_blocks
        self._wide = np.empty(BLOCK, np.float64)
        self._parts = [
            [(layout.segment_starts[block] + i, total[s.lo : s.hi]) for i, s in enumerate(layout.segments[block])]
            for block in range(*blocks)
        ]

    def run(self, block: int, squares: NDArray[np.float64]) -> None:
        """Write the sum of squares of each segment of ``block`` into ``squares``: a function of its values alone."""
        for index, part in self._parts[block - self._first]:
            if block >= self._running:
                squares[index] = 0.0 if np.isfinite(part).all() else np.nan
                continue
            wide = self._wide[: part.size]
            np.copyto(wide, part)
            squares[index] = float(np.dot(wide, wide))


class ShardSquare:
    """The squared norm of one shard's gradient, a figure to look at: in the layout's own dtype within a segment."""

    def __init__(self, layout: Layout, gradient: NDArray[np.generic]) -> None:
        self._parts = [gradient[s.lo : s.hi] for block in layout.segments[: layout.parameter_blocks] for s in block]

    def __call__(self) -> float:
        """Return Σ gradient² over all parameters; running values have no part in it."""
        try:
            return math.fsum(float(np.dot(part, part)) for part in self._parts)
        except OverflowError:  # float64: each square is finite, their sum is not
            return math.inf


def scratch_of(layout: Layout, shards: int) -> list[NDArray[np.generic]]:
    """Registers 1, 2, … of a sum over ``shards`` shards, of a block each; register 0 is the target."""
    return [np.empty(BLOCK, layout.dtype) for _ in range(registers(shards) - 1)]


def bind_additions(
    adds: Sequence[Add],
    result: Place,
    term: Callable[..., NDArray[np.generic]],
    target: NDArray[np.generic],
    scratch: Sequence[NDArray[np.generic]],
) -> list[Call]:
    """Bind the additions over one block: ``term`` says where a leaf or subtree lies, register 0 is ``target``."""

    def memory(place: Place) -> NDArray[np.generic]:
        if not isinstance(place, Register):
            return term(place)
        return target if place.index == 0 else scratch[place.index - 1][: target.size]

    calls: list[Call] = [partial(np.add, memory(a.left), memory(a.right), memory(a.target)) for a in adds]
    if not isinstance(result, Register):
        calls.append(partial(np.copyto, target, memory(result)))
    return calls
