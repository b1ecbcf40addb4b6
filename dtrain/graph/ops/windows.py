"""Sliding windows over the last axes of an array: where they lie, and how they reach memory in long runs.

A window of `kernel` places (*taps*), `dilation` apart, slides by `stride` over an input that zeros surround. The input
is first *split* by its place modulo the stride into phases, each a small dense grid. Then what one tap sees in all
windows is one run of memory, wherever the tap lies: it is copied, compared or added without a gather. A run takes whole
rows of the grid where those are not much longer than the windows are many; what lies between is dropped at the end.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dtrain.graph.primitive import Shape

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Taps:
    """The taps that fall into one phase: every `step`-th of the kernel along each axis, from `start`."""

    phase: int
    index: tuple[Any, ...]
    count: Shape
    first: int
    """How far into the phase the first tap's run begins, in elements."""
    steps: Shape
    """How much farther the next tap's run begins, along each axis."""


@dataclass(frozen=True)
class Copy:
    """One phase of the input: the same elements in the split array and in the input."""

    phase: int
    grid: tuple[Any, ...]
    input: tuple[Any, ...]
    size: int


@dataclass(frozen=True)
class Windows:
    """Windows over axes of lengths `size`; `padding` is (before, after) for each axis."""

    size: Shape
    kernel: Shape
    stride: Shape
    padding: Pairs
    dilation: Shape

    @cached_property
    def count(self) -> Shape:
        """How many windows there are along each axis; 0 or less where none fits."""
        return tuple(
            [
                (n + before + after - d * (k - 1) - 1) // s + 1
                for n, (before, after), d, k, s in zip(
                    self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
                )
            ]
        )

    @cached_property
    def grid(self) -> Shape:
        """The places of one phase that the windows reach, along each axis."""
        return tuple(
            [
                m + d * (k - 1) // s
                for m, d, k, s in zip(self.count, self.dilation, self.kernel, self.stride, strict=True)
            ]
        )

    @cached_property
    def row(self) -> int:
        """How many elements of a run a row of windows takes: all of the grid's row if at most a quarter is lost."""
        return self.grid[-1] if 4 * self.grid[-1] <= 5 * self.count[-1] else self.count[-1]

    @property
    def rows(self) -> Shape:
        """The shape of a run: the windows, with the last axis as long as a row takes."""
        return (*self.count[:-1], self.row)

    @cached_property
    def span(self) -> int:
        """The elements of one phase: the grid, and behind it what a run of whole rows reads too many."""
        return math.prod(self.grid) + self.row - self.count[-1]

    @cached_property
    def grid_strides(self) -> Shape:
        """The distance between neighbours of the grid along each axis, in elements."""
        return tuple([math.prod(self.grid[i + 1 :]) for i in range(len(self.grid))])

    @cached_property
    def _phases(self) -> list[list[tuple[int, slice, int, int, int]]]:
        """For each axis and each phase that a tap falls into: (phase, taps, their count, first shift, step)."""
        axes = []
        for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True):
            period = s // math.gcd(s, d)
            axes.append(
                [
                    (i * d % s, slice(i, k, period), len(range(i, k, period)), i * d // s, period * d // s)
                    for i in range(min(period, k))
                ]
            )
        return axes

    @cached_property
    def taps(self) -> list[Taps]:
        """The taps of each phase."""
        found = []
        for number, parts in enumerate(itertools.product(*self._phases)):
            _, index, count, first, step = zip(*parts, strict=True)
            begin = sum(f * g for f, g in zip(first, self.grid_strides, strict=True))
            steps = tuple([t * g for t, g in zip(step, self.grid_strides, strict=True)])
            found.append(Taps(number, index, count, begin, steps))
        return found

    @cached_property
    def copies(self) -> list[Copy]:
        """Which elements of the input each phase holds; the others of the grid are zeros."""
        found = []
        for number, parts in enumerate(itertools.product(*self._phases)):
            places, sources, size = [], [], 1
            for (phase, *_), n, m, s, (before, _) in zip(
                parts, self.size, self.grid, self.stride, self.padding, strict=True
            ):
                low = max(0, -((phase - before) // s))
                high = max(low, min(m, -((phase - before - n) // s)))
                begin = low * s + phase - before
                places.append(slice(low, high))
                sources.append(slice(begin, begin + (high - low) * s, s))
                size *= high - low
            found.append(Copy(number, tuple(places), tuple(sources), size))
        return found

    @property
    def phases(self) -> int:
        return len(self.taps)

    @cached_property
    def is_dense(self) -> bool:
        """Whether the split array is the input itself."""
        return self.phases == 1 and self.grid == self.size and self.span == math.prod(self.size)

    @cached_property
    def covers(self) -> bool:
        """Whether every element of the input is in a phase."""
        return sum(copy.size for copy in self.copies) == math.prod(self.size)

    @cached_property
    def is_disjoint(self) -> bool:
        """Whether no element of the input is in two windows, each phase being what one tap sees."""
        widths = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return all(s >= width for s, width in zip(self.stride, widths, strict=True)) and self.grid == self.count

    def empty_split(self, lead: Shape, dtype: np.dtype[Any], fill: float = 0.0) -> np.ndarray:
        """Return an array (*lead, phases, span) for the split input, filled with what surrounds it."""
        return np.full((*lead, self.phases, self.span), fill, dtype)

    def split(self, x: np.ndarray, into: np.ndarray) -> None:
        """Copy x (*lead, *size) to its places in a split array; what surrounds it is left as it is."""
        grid = self._grid_view(into)
        for copy in self.copies:
            np.copyto(grid[(..., copy.phase, *copy.grid)], x[(..., *copy.input)])

    def merge(self, split: np.ndarray, into: np.ndarray) -> None:
        """Copy a split array back to the form (*lead, *size); zeros where no tap reaches."""
        grid = self._grid_view(split)
        if not self.covers:
            into.fill(0)
        for copy in self.copies:
            np.copyto(into[(..., *copy.input)], grid[(..., copy.phase, *copy.grid)])

    def _grid_view(self, split: np.ndarray) -> np.ndarray:
        return split[..., : math.prod(self.grid)].reshape(*split.shape[:-1], *self.grid)

    def run_shape(self, rows: slice) -> Shape:
        """The shape of a run of some of the rows along the first axis."""
        n = rows.stop - rows.start
        return (n, *self.rows[1:])

    def runs(self, split: np.ndarray, taps: Taps, rows: slice) -> np.ndarray:
        """Return what the taps of one phase see, (*lead, *taps, *rows), as a view of the split array."""
        begin = taps.first + rows.start * self.grid_strides[0]
        lead = split.shape[:-2]
        item = split.itemsize
        return as_strided(
            split[..., taps.phase, begin:],
            (*lead, *taps.count, *self.run_shape(rows)),
            (*split.strides[: len(lead)], *[s * item for s in taps.steps], *[s * item for s in self.grid_strides]),
        )


@lru_cache(1024)
def windows(size: Shape, kernel: Shape, stride: Shape, padding: Pairs, dilation: Shape) -> Windows:
    """Return the windows, of which at least one fits along each axis; ValueError otherwise."""
    found = Windows(size, kernel, stride, padding, dilation)
    if min(found.count) < 1:
        raise ValueError("no window fits")
    return found
