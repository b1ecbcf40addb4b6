# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Convolution of batches of signals, images and volumes, (n, channels, *size) with weights (out, channels/groups,
*kernel), and its two adjoints. The three are each other's gradients, so derivatives of every order exist.

Each kernel lays what the windows see out as the columns of a matrix, a block that stays in the cache at a time, and
multiplies. The blocks are a function of the shapes alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dtrain.graph.ops.windows import Pairs, Windows, windows
from dtrain.graph.primitive import Call, Shape, primitive

BLOCK_BYTES = 1 << 20
"""The size of the matrix of columns: half of a core's second-level cache on current servers."""


@dataclass(frozen=True)
class _Block:
    samples: slice
    rows: slice

    @property
    def lead(self) -> int:
        """How many samples it has."""
        return int(self.samples.stop - self.samples.start)


class _Columns:
    """The scratch of a convolution: the split input of a block of samples, and its columns (channels, taps, places)."""

    def __init__(self, w: Windows, n: int, channels: int, dtype: np.dtype[Any]) -> None:
        self.windows, self.channels, self.dtype = w, channels, dtype
        self.depth = channels * math.prod(w.kernel)
        one_row = self.depth * math.prod(w.rows[1:]) * dtype.itemsize
        fits = max(1, BLOCK_BYTES // max(1, one_row))
        first = w.rows[0]
        self.samples = max(1, min(n, fits // first))
        height = first if len(w.size) == 1 else min(first, -(-first // -(-first // fits)))
        self.blocks = [
            _Block(slice(i, min(i + self.samples, n)), slice(r, min(r + height, first)))
            for i, r in itertools.product(range(0, n, self.samples), range(0, first, height))
        ]
        self.split = w.empty_split((self.samples, channels), dtype)
        self._memory = np.empty(self.depth * self.samples * height * math.prod(w.rows[1:]), dtype)

    def size_of(self, block: _Block) -> int:
        """How many columns the block has."""
        return block.lead * math.prod(self.windows.run_shape(block.rows))

    def views(self, block: _Block) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return pairs (columns, what the windows see) of the taps of each phase, (channels, *taps, samples, *rows)."""
        w, lead = self.windows, block.lead
        columns = self._of(block).reshape(self.channels, *w.kernel, lead, *w.run_shape(block.rows))
        pairs = []
        for taps in w.taps:
            seen = w.runs(self.split[:lead], taps, block.rows)
            pairs.append((columns[(slice(None), *taps.index)], np.moveaxis(seen, 0, 1 + len(w.kernel))))
        return pairs

    def _of(self, block: _Block) -> np.ndarray:
        return self._memory[: self.depth * self.size_of(block)]

    def matrix(self, block: _Block, groups: int) -> np.ndarray:
        """Return the columns as (groups, depth of a group, places)."""
        return self._of(block).reshape(groups, self.depth // groups, self.size_of(block))

    def enters(self, block: _Block) -> bool:
        """Whether the block is the first of its samples."""
        return bool(block.rows.start == 0)

    def leaves(self, block: _Block) -> bool:
        """Whether the block is the last of its samples."""
        return bool(block.rows.stop == self.windows.rows[0])

    def fill(self, block: _Block, x: np.ndarray) -> None:
        """Make the columns of the block."""
        if self.enters(block):
            self.windows.split(x[block.samples], self.split[: block.lead])
        for columns, seen in self.views(block):
            np.copyto(columns, seen)

    def add(self, block: _Block, out: np.ndarray) -> None:
        """Add the columns where the windows see them; write the input (n, channels, *size) with the last block."""
        if self.enters(block):
            self.split.fill(0)
        kernel = len(self.windows.kernel)
        for columns, seen in self.views(block):
            for tap in itertools.product(*[range(k) for k in columns.shape[1 : 1 + kernel]]):
                index: Any = (slice(None), *tap)
                np.add(seen[index], columns[index], seen[index])
        if self.leaves(block):
            self.windows.merge(self.split[: block.lead], out[block.samples])


class _Places:
    """The scratch of the other side: (out channels, samples, *rows) of a block, in which dropped places are zeros."""

    def __init__(self, columns: _Columns, channels: int) -> None:
        self.windows, self.channels = columns.windows, channels
        size = max([columns.size_of(b) for b in columns.blocks], default=0)
        self._memory = np.empty(channels * size, columns.dtype)

    def _shape(self, block: _Block) -> Shape:
        return (self.channels, block.lead, *self.windows.run_shape(block.rows))

    def matrix(self, block: _Block, groups: int) -> np.ndarray:
        shape = self._shape(block)
        return self._memory[: math.prod(shape)].reshape(groups, self.channels // groups, -1)

    def _rows(self, y: np.ndarray, block: _Block) -> np.ndarray:
        last = len(self.windows.count) == 1
        rows = slice(block.rows.start, min(block.rows.stop, self.windows.count[0])) if last else block.rows
        shown: np.ndarray = np.swapaxes(y[block.samples, :, rows], 0, 1)
        return shown

    def load(self, block: _Block, y: np.ndarray) -> None:
        shape, count = self._shape(block), self.windows.count[-1]
        whole = self._memory[: math.prod(shape)].reshape(shape)
        whole[..., count:] = 0
        np.copyto(whole[..., :count], self._rows(y, block))

    def store(self, block: _Block, y: np.ndarray) -> None:
        shape, count = self._shape(block), self.windows.count[-1]
        np.copyto(self._rows(y, block), self._memory[: math.prod(shape)].reshape(shape)[..., :count])


def _windows(size: Shape, kernel: Shape, stride: Shape, padding: Pairs, dilation: Shape) -> Windows:
    return windows(tuple(size), tuple(kernel), stride, padding, dilation)


def _grouped(w: np.ndarray, groups: int) -> np.ndarray:
    return w.reshape(groups, w.shape[0] // groups, -1)


# -- the convolution ---------------------------------------------------------------------------------------------------


def _conv_shape(x: Any, w: Any, *, groups: int, **slide: Any) -> tuple[Shape, np.dtype[Any]]:
    if x.ndim != w.ndim or x.ndim < 3 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError("channels differ")
    count = _windows(x.shape[2:], w.shape[2:], **slide).count
    return (x.shape[0], w.shape[0], *count), np.result_type(x.dtype, w.dtype)


def _conv_bind(out: np.ndarray, x: np.ndarray, w: np.ndarray, *, groups: int, **slide: Any) -> Call:
    columns = _Columns(_windows(x.shape[2:], w.shape[2:], **slide), len(x), x.shape[1], out.dtype)
    return partial(_conv_run, out, x, w, groups, columns, _Places(columns, w.shape[0]))


def _conv_run(out: np.ndarray, x: np.ndarray, w: np.ndarray, groups: int, columns: _Columns, places: _Places) -> None:
    weights = _grouped(np.ascontiguousarray(w, out.dtype), groups)
    for block in columns.blocks:
        columns.fill(block, x)
        np.matmul(weights, columns.matrix(block, groups), places.matrix(block, groups))
        places.store(block, out)


def _conv_expects(x: Any, w: Any, *, groups: int, **slide: Any) -> str:
    return f"x (n, channels, *size) and w (out, channels/groups, *kernel) with groups={groups} and room for a window"


@primitive(shape=_conv_shape, bind=_conv_bind, expects=_conv_expects)
def conv(g, out, x, w, *, groups, **slide):
    """y[n, o, p] = Σ w[o, c, t]·x[n, c, p·stride + t·dilation − padding]. Its own primitive for speed: composed of
    slices, each window would be copied and kept."""
    dx = conv_input(g, w, size=x.shape[2:], groups=groups, **slide)
    return dx, conv_weight(x, g, kernel=w.shape[2:], groups=groups, **slide)


# -- its adjoint in the input -----------------------------------------------------------------------------------------


def _input_shape(y: Any, w: Any, *, size: Shape, groups: int, **slide: Any) -> tuple[Shape, np.dtype[Any]]:
    count = _windows(size, w.shape[2:], **slide).count
    if y.shape[1:] != (w.shape[0], *count) or w.shape[0] % groups:
        raise ValueError("shapes differ")
    return (y.shape[0], w.shape[1] * groups, *size), np.result_type(y.dtype, w.dtype)


def _input_bind(out: np.ndarray, y: np.ndarray, w: np.ndarray, *, size: Shape, groups: int, **slide: Any) -> Call:
    columns = _Columns(_windows(size, w.shape[2:], **slide), len(y), out.shape[1], out.dtype)
    return partial(_input_run, out, y, w, groups, columns, _Places(columns, w.shape[0]))


def _input_run(out: np.ndarray, y: np.ndarray, w: np.ndarray, groups: int, columns: _Columns, places: _Places) -> None:
    turned = np.swapaxes(_grouped(np.ascontiguousarray(w, out.dtype), groups), 1, 2)
    for block in columns.blocks:
        places.load(block, y)
        np.matmul(turned, places.matrix(block, groups), columns.matrix(block, groups))
        columns.add(block, out)


@primitive(shape=_input_shape, bind=_input_bind)
def conv_input(g, out, y, w, *, size, groups, **slide):
    """The transposed convolution: what `conv` of an input of this size sends back to it."""
    return conv(g, w, groups=groups, **slide), conv_weight(g, y, kernel=w.shape[2:], groups=groups, **slide)


# -- its adjoint in the weights ---------------------------------------------------------------------------------------


def _weight_shape(x: Any, y: Any, *, kernel: Shape, groups: int, **slide: Any) -> tuple[Shape, np.dtype[Any]]:
    count = _windows(x.shape[2:], kernel, **slide).count
    if y.shape[0] != x.shape[0] or y.shape[2:] != count or x.shape[1] % groups or y.shape[1] % groups:
        raise ValueError("shapes differ")
    return (y.shape[1], x.shape[1] // groups, *kernel), np.result_type(x.dtype, y.dtype)


def _weight_bind(out: np.ndarray, x: np.ndarray, y: np.ndarray, *, kernel: Shape, groups: int, **slide: Any) -> Call:
    columns = _Columns(_windows(x.shape[2:], kernel, **slide), len(x), x.shape[1], out.dtype)
    return partial(_weight_run, out, x, y, groups, columns, _Places(columns, y.shape[1]), np.empty_like(out))


def _weight_run(
    out: np.ndarray, x: np.ndarray, y: np.ndarray, groups: int, columns: _Columns, places: _Places, term: np.ndarray
) -> None:
    if not columns.blocks:
        out.fill(0)
    for number, block in enumerate(columns.blocks):
        columns.fill(block, x)
        places.load(block, y)
        turned = np.swapaxes(columns.matrix(block, groups), 1, 2)
        np.matmul(places.matrix(block, groups), turned, _grouped(term if number else out, groups))
        if number:
            np.add(out, term, out)


@primitive(shape=_weight_shape, bind=_weight_bind)
def conv_weight(g, out, x, y, *, kernel, groups, **slide):
    """What `conv` sends back to weights of this kernel, summed over the samples."""
    size = x.shape[2:]
    return conv_input(y, g, size=size, groups=groups, **slide), conv(x, g, groups=groups, **slide)
