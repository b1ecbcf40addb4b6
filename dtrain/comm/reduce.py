"""Sum a rank's slice of the shard gradients, block by block, in tree order, and the squares for the norm with it.

A block is added over all present shards while it is in cache, so each gradient is read from memory once and the sum
written once; nothing is exchanged, since every worker of the host maps every gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import BLOCK, Layout
from dtrain.comm.tree import Leaf, Register, additions, registers


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
        count = registers(gradients.shape[0])
        self._scratch = [np.empty(BLOCK, layout.dtype) for _ in range(count - 1)]
        self._wide = np.empty(BLOCK, np.float64)
        self._bound: dict[tuple[int, ...], list[list[Callable[[], object]]]] = {}
        # A norm is over one segment, so that the figure cannot depend on the slice that a rank holds.
        self._norms = [
            [(layout.segment_starts[block] + i, total[s.lo : s.hi]) for i, s in enumerate(layout.segments[block])]
            for block in range(*blocks)
        ]

    def run(self, present: tuple[int, ...], squares: NDArray[np.float64] | None) -> None:
        """Sum over the ``present`` shards; write each own segment's sum of squares into ``squares`` (None: no norm)."""
        calls = self._bound.get(present)
        if calls is None:
            calls = self._bound[present] = self._bind(present)
        for block, segments in zip(calls, self._norms, strict=True):
            for call in block:
                call()
            if squares is not None:
                for index, part in segments:
                    squares[index] = self._square(part)

    def _square(self, part: NDArray[np.generic]) -> float:
        """The sum of squares of one segment in float64: a function of its values alone."""
        wide = self._wide[: part.size]
        np.copyto(wide, part)
        return float(np.dot(wide, wide))

    def _bind(self, present: Sequence[int]) -> list[list[Callable[[], object]]]:
        adds, result = additions(self._gradients.shape[0], present)
        blocks: list[list[Callable[[], object]]] = []
        for block in range(*self._blocks):
            where = self._layout.block(block)
            length = where.stop - where.start

            def memory(place: Leaf | Register, where: slice = where, length: int = length) -> NDArray[np.generic]:
                if isinstance(place, Leaf):
                    return self._gradients[place.shard, where]
                return self._total[where] if place.index == 0 else self._scratch[place.index - 1][:length]

            calls: list[Callable[[], object]] = [
                partial(np.add, memory(a.left), memory(a.right), memory(a.target)) for a in adds
            ]
            if isinstance(result, Leaf):
                calls.append(partial(np.copyto, self._total[where], memory(result)))
            blocks.append(calls)
        return blocks
