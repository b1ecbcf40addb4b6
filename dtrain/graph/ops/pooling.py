# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Pooling of signals, images and volumes (n, channels, *size): sums and maxima of windows, each channel by itself.

The sum and its adjoint are each other's gradients. So are the two halves of the maximum's, which send a window's
gradient to its largest elements, and gather it from there; which these are is constant almost everywhere.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property, partial
from typing import Any

import numpy as np

from dtrain.graph.ops.windows import Windows, windows
from dtrain.graph.primitive import Call, Shape, primitive

BLOCK_BYTES = 1 << 18
"""The size of the split input of one block of channels; up to two of them and what the windows hold share a cache."""


class _Planes:
    """The split input of a block of channels, and what each tap sees of it as (samples, channels, *rows)."""

    def __init__(self, w: Windows, n: int, channels: int, dtype: np.dtype[Any], fill: float = 0.0) -> None:
        self.windows, self.dtype = w, dtype
        fits = max(1, BLOCK_BYTES // (w.phases * w.span * dtype.itemsize))
        depth = max(1, min(fits, channels))
        samples = max(1, min(fits // depth, n))
        self.blocks = [
            (slice(i, min(i + samples, n)), slice(c, min(c + depth, channels)))
            for i, c in itertools.product(range(0, n, samples), range(0, channels, depth))
        ]
        self._lead, self._fill = (samples, depth), fill
        self._taps: dict[Shape, list[np.ndarray]] = {}

    @cached_property
    def _split(self) -> np.ndarray:
        return self.windows.empty_split(self._lead, self.dtype, self._fill)

    def lead(self, block: tuple[slice, slice]) -> Shape:
        """How many samples and channels the block has."""
        return tuple([s.stop - s.start for s in block])

    def split(self, block: tuple[slice, slice]) -> np.ndarray:
        n, c = self.lead(block)
        return self._split[:n, :c]

    def taps(self, block: tuple[slice, slice]) -> list[np.ndarray]:
        """What each tap sees of the split input, as views."""
        lead = self.lead(block)
        if lead not in self._taps:
            found, every = [], slice(0, self.windows.rows[0])
            for taps in self.windows.taps:
                seen = self.windows.runs(self.split(block), taps, every)
                for index in itertools.product(*[range(k) for k in taps.count]):
                    place: Any = (slice(None), slice(None), *index)
                    found.append(seen[place])
            self._taps[lead] = found
        return self._taps[lead]

    def load(self, block: tuple[slice, slice], x: np.ndarray) -> list[np.ndarray]:
        """Take in the block of x; return what each tap sees."""
        self.windows.split(x[block], self.split(block))
        return self.taps(block)


class _Results:
    """An array of a block's windows, (samples, channels, *rows), in which places that are dropped hold zeros."""

    def __init__(self, planes: _Planes, dtype: Any = None) -> None:
        self._planes = planes
        size = max([math.prod(planes.lead(b)) for b in planes.blocks], default=0) * math.prod(planes.windows.rows)
        self._memory = np.empty(size, planes.dtype if dtype is None else dtype)

    def of(self, block: tuple[slice, slice]) -> np.ndarray:
        shape = (*self._planes.lead(block), *self._planes.windows.rows)
        return self._memory[: math.prod(shape)].reshape(shape)

    def load(self, block: tuple[slice, slice], y: np.ndarray) -> np.ndarray:
        whole, count = self.of(block), self._planes.windows.count[-1]
        whole[..., count:] = 0
        np.copyto(whole[..., :count], y[block])
        return whole

    def store(self, block: tuple[slice, slice], y: np.ndarray) -> None:
        np.copyto(y[block], self.of(block)[..., : self._planes.windows.count[-1]])


def _pooled_shape(x: Any, **slide: Any) -> tuple[Shape, np.dtype[Any]]:
    return (*x.shape[:2], *windows(tuple(x.shape[2:]), **slide).count), x.dtype


def _planes(x: np.ndarray, fill: float = 0.0, **slide: Any) -> _Planes:
    return _Planes(windows(x.shape[2:], **slide), x.shape[0], x.shape[1], x.dtype, fill)


# -- sums --------------------------------------------------------------------------------------------------------------


def _sum_bind(out: np.ndarray, x: np.ndarray, **slide: Any) -> Call:
    planes = _planes(x, **slide)
    return partial(_sum_run, out, x, planes, _Results(planes))


def _sum_run(out: np.ndarray, x: np.ndarray, planes: _Planes, results: _Results) -> None:
    for block in planes.blocks:
        first, *others = planes.load(block, x)
        total = results.of(block)
        np.copyto(total, first)
        for seen in others:
            np.add(total, seen, total)
        results.store(block, out)


@primitive(shape=_pooled_shape, bind=_sum_bind)
def sum_pool(g, out, x, **slide):
    """The sum of each window, zeros outside."""
    return sum_pool_input(g, size=x.shape[2:], **slide)


def _sum_input_shape(g: Any, *, size: Shape, **slide: Any) -> tuple[Shape, np.dtype[Any]]:
    return (*g.shape[:2], *size), g.dtype


def _sum_input_bind(out: np.ndarray, g: np.ndarray, *, size: Shape, **slide: Any) -> Call:
    planes = _planes(out, **slide)
    return partial(_sum_input_run, out, g, planes, _Results(planes))


def _sum_input_run(out: np.ndarray, g: np.ndarray, planes: _Planes, results: _Results) -> None:
    for block in planes.blocks:
        share = results.load(block, g)
        planes.split(block).fill(0)
        for seen in planes.taps(block):
            np.add(seen, share, seen)
        planes.windows.merge(planes.split(block), out[block])


@primitive(shape=_sum_input_shape, bind=_sum_input_bind)
def sum_pool_input(g, out, y, *, size, **slide):
    """Each window's value, added to all of its elements."""
    return sum_pool(g, **slide)


# -- maxima ------------------------------------------------------------------------------------------------------------


def _max_bind(out: np.ndarray, x: np.ndarray, **slide: Any) -> Call:
    planes = _planes(x, -math.inf, **slide)
    return partial(_max_run, out, x, planes, _Results(planes))


def _max_run(out: np.ndarray, x: np.ndarray, planes: _Planes, results: _Results) -> None:
    for block in planes.blocks:
        first, *others = planes.load(block, x)
        largest = results.of(block)
        np.copyto(largest, first)
        for seen in others:
            np.maximum(largest, seen, out=largest)
        results.store(block, out)


@primitive(shape=_pooled_shape, bind=_max_bind)
def max_pool(g, out, x, **slide):
    """The largest of each window. Ties share the gradient equally, as in np.max."""
    return max_pool_input(g, x, out, **slide)


class _Largest:
    """Which elements of a block's windows are the largest, and how many in each."""

    def __init__(self, x: np.ndarray, y: np.ndarray, planes: _Planes) -> None:
        self.x, self.y, self.planes = x, y, planes
        taps = math.prod(planes.windows.kernel)
        self._largest, self._count = _Results(planes), _Results(planes, np.min_scalar_type(taps))
        self._hits = [_Results(planes, bool) for _ in range(taps)]
        self._kept = _Results(planes, f"i{x.dtype.itemsize}")

    def load(self, block: tuple[slice, slice]) -> tuple[list[np.ndarray], np.ndarray]:
        """Return for each tap whether it sees the largest, and how many do; 1 where none does (NaN)."""
        largest = self._largest.load(block, self.y)
        hits, count = self.empty(block)
        for seen, hit in zip(self.planes.load(block, self.x), hits, strict=True):
            np.equal(seen, largest, hit)
            np.add(count, hit.view(np.uint8), count)
        np.maximum(count, 1, out=count)
        return hits, count

    def empty(self, block: tuple[slice, slice]) -> tuple[list[np.ndarray], np.ndarray]:
        """Return memory for the hits of each tap, and zeros for how many there are."""
        count = self._count.of(block)
        count.fill(0)
        return [hit.of(block) for hit in self._hits], count

    def where(self, block: tuple[slice, slice], hit: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the values where the tap hits, zeros elsewhere. It multiplies bits, so infinities do no harm."""
        kept = self._kept.of(block)
        np.copyto(kept, hit)
        np.multiply(kept, values.view(kept.dtype), kept)
        return kept.view(values.dtype)


def _max_input_shape(g: Any, x: Any, y: Any, **slide: Any) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, g.dtype


def _max_input_bind(out: np.ndarray, g: np.ndarray, x: np.ndarray, y: np.ndarray, **slide: Any) -> Call:
    planes, back = _planes(x, -math.inf, **slide), _planes(out, **slide)
    if back.windows.is_disjoint:
        return partial(_disjoint_max_input_run, out, g, x, y, _Largest(x, y, planes), _Results(back))
    return partial(_max_input_run, out, g, _Largest(x, y, planes), back, _Results(back))


def _max_input_run(out: np.ndarray, g: np.ndarray, largest: _Largest, back: _Planes, results: _Results) -> None:
    for block in back.blocks:
        hits, count = largest.load(block)
        share = results.load(block, g)
        np.divide(share, count, share)
        back.split(block).fill(0)
        for hit, place in zip(hits, back.taps(block), strict=True):
            np.add(place, largest.where(block, hit, share), place)
        back.windows.merge(back.split(block), out[block])


def _disjoint_max_input_run(
    out: np.ndarray, g: np.ndarray, x: np.ndarray, y: np.ndarray, largest: _Largest, results: _Results
) -> None:
    """As `_max_input_run`, of windows that do not overlap: each element is in one, so nothing is split nor added."""
    w = largest.planes.windows
    if not w.covers:
        out.fill(0)
    for block in largest.planes.blocks:
        xs, ys, outs, share = x[block], y[block], out[block], results.of(block)
        hits, count = largest.empty(block)
        for hit, copy in zip(hits, w.copies, strict=True):
            part = hit[(..., *copy.grid)]
            np.equal(xs[(..., *copy.input)], ys[(..., *copy.grid)], part)
            inside = count[(..., *copy.grid)]
            np.add(inside, part.view(np.uint8), inside)
        np.maximum(count, 1, out=count)
        np.divide(g[block], count, share)
        for hit, copy in zip(hits, w.copies, strict=True):
            kept = largest.where(block, hit, share)
            np.copyto(outs[(..., *copy.input)], kept[(..., *copy.grid)])


@primitive(shape=_max_input_shape, bind=_max_input_bind)
def max_pool_input(g, out, y, x, largest, **slide):
    """Each window's value, shared among its largest elements."""
    return max_pool_taken(g, x, largest, **slide), None, None


def _max_taken_shape(h: Any, x: Any, y: Any, **slide: Any) -> tuple[Shape, np.dtype[Any]]:
    return y.shape, h.dtype


def _max_taken_bind(out: np.ndarray, h: np.ndarray, x: np.ndarray, y: np.ndarray, **slide: Any) -> Call:
    planes, other = _planes(x, -math.inf, **slide), _planes(h, **slide)
    return partial(_max_taken_run, out, h, _Largest(x, y, planes), other, _Results(other), _Results(other))


def _max_taken_run(
    out: np.ndarray, h: np.ndarray, largest: _Largest, other: _Planes, copy: _Results, results: _Results
) -> None:
    for block in other.blocks:
        hits, count = largest.load(block)
        values, total = copy.of(block), results.of(block)
        total.fill(0)
        for hit, place in zip(hits, other.load(block, h), strict=True):
            np.copyto(values, place)
            np.add(total, largest.where(block, hit, values), total)
        np.divide(total, count, total)
        results.store(block, out)


@primitive(shape=_max_taken_shape, bind=_max_taken_bind)
def max_pool_taken(g, out, h, x, largest, **slide):
    """The mean of h over the places of each window's largest elements."""
    return max_pool_input(g, x, largest, **slide), None, None
