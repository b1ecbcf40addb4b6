"""The flat layout: every parameter is a slice of one buffer, and gradients and optimizer state share that layout.

The buffer is walked in blocks of ``BLOCK`` elements. A block is the unit of everything that must not depend on the
number of workers: of summation, of the norm, of the update and of the undo record. A *segment* is the part of one
parameter that lies in one block; norms are summed per segment.

Running values (model state that is averaged over the steps instead of learnt) lie behind all parameters in blocks of
their own, so that a block is updated in one way. Everything else takes them for parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from dtrain.errors import InputError

BLOCK = 16384
"""Elements of a block: with gradient, parameter, two states and their undo copies it stays inside 512 KB of L2."""

_ALIGN_BYTES = 64


@dataclass(frozen=True)
class Segment:
    """The part of parameter ``parameter`` (an index) that lies in one block: elements ``lo:hi`` of the flat buffer."""

    parameter: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in a flat buffer of one dtype. The same names and shapes give the same layout.

    ``running`` are those that are running values, as pairs (index, momentum), with ascending indices.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype[np.generic]
    running: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(
        cls,
        leaves: Sequence[tuple[str, NDArray[np.generic]]],
        dtype: np.dtype[np.generic],
        running: Sequence[tuple[int, float]] = (),
    ) -> Layout:
        """Lay out named arrays; refuse anything that is not a float array."""
        for name, leaf in leaves:
            if np.asarray(leaf).dtype.kind != "f":
                raise InputError(
                    f"parameter {name}: expected a {dtype} array, got dtype {np.asarray(leaf).dtype}; "
                    "keep counters and tables out of the parameters"
                )
        if len(leaves) == len(running):
            raise InputError(
                "the model has no parameters: init must return a dict with at least one float array"
                + (" that is not marked as running" if running else "")
            )
        shapes = tuple(np.shape(a) for _, a in leaves)
        return cls(tuple(n for n, _ in leaves), shapes, np.dtype(dtype), tuple(running))

    @cached_property
    def momenta(self) -> dict[int, float]:
        """The momentum of each running value, by index."""
        return dict(self.running)

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """The names without those of running values."""
        return tuple(n for i, n in enumerate(self.names) if i not in self.momenta)

    @cached_property
    def _places(self) -> tuple[tuple[int, ...], int, int]:
        """The offsets, the end of the parameters, and the end of everything."""
        step = _ALIGN_BYTES // self.dtype.itemsize
        offsets, end = [0] * len(self.shapes), 0

        def place(index: int) -> None:
            nonlocal end
            offsets[index] = end
            end += -(-prod(self.shapes[index]) // step) * step

        for index in range(len(self.shapes)):
            if index not in self.momenta:
                place(index)
        parameters = end = max(step, end)
        if self.running:
            end = -(-end // BLOCK) * BLOCK
            for index, _ in self.running:
                place(index)
        return tuple(offsets), parameters, end

    @property
    def offsets(self) -> tuple[int, ...]:
        """First element of each parameter; each starts on a 64-byte boundary."""
        return self._places[0]

    @property
    def size(self) -> int:
        """Elements of the flat buffer, padding included; what is in the padding counts for nothing."""
        return self._places[2]

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def blocks(self) -> int:
        return -(-self.size // BLOCK)

    @cached_property
    def parameter_blocks(self) -> int:
        """How many blocks hold parameters; those behind them hold running values."""
        return -(-self._places[1] // BLOCK)

    def block(self, index: int) -> slice:
        """The elements of block ``index``; the last one of the parameters and the last one of all may be shorter."""
        end = self._places[1] if index < self.parameter_blocks else self.size
        return slice(index * BLOCK, min((index + 1) * BLOCK, end))

    def views(self, buffer: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """The parameters as shaped views of a flat buffer of this layout, in the order of ``names``."""
        return [
            buffer[offset : offset + prod(shape)].reshape(shape)
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        ]

    @cached_property
    def segments(self) -> tuple[tuple[Segment, ...], ...]:
        """For each block, the segments in it in index order."""
        blocks: list[list[Segment]] = [[] for _ in range(self.blocks)]
        for parameter in sorted(range(len(self.shapes)), key=self.offsets.__getitem__):
            lo = self.offsets[parameter]
            end = lo + prod(self.shapes[parameter])
            while lo < end:
                index = lo // BLOCK
                hi = min(end, (index + 1) * BLOCK)
                blocks[index].append(Segment(parameter, lo, hi))
                lo = hi
        return tuple(tuple(b) for b in blocks)

    @cached_property
    def segment_starts(self) -> tuple[int, ...]:
        """For each block, the index of its first segment among all segments; one more entry holds their number."""
        starts = [0]
        for block in self.segments:
            starts.append(starts[-1] + len(block))
        return tuple(starts)

    @cached_property
    def segment_parameters(self) -> tuple[int, ...]:
        """The parameter of each segment, in index order."""
        return tuple(s.parameter for block in self.segments for s in block)


def split_evenly(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into ``parts`` contiguous runs whose lengths differ by at most one."""
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
