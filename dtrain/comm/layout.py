"""The flat layout: every parameter is a slice of one buffer, and gradients and optimizer state share that layout.

The buffer is walked in blocks of ``BLOCK`` elements. A block is the unit of everything that must not depend on the
number of workers: of summation, of the norm, of the update and of the undo record. A *segment* is the part of one
parameter that lies in one block; norms are summed per segment.

Running values (model state that is averaged over the steps instead of learnt) lie behind all parameters in blocks of
their own, so that a block is updated in one way. Everything else takes them for parameters.

Tables (parameters of which a step uses few rows) lie behind everything else and have no blocks: what is done in a step
is done to the rows that it uses (`rows.py`). Tables whose rows are equally long are neighbours, in one `TableGroup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

from dtrain.errors import InputError

BLOCK = 16384
"""Elements of a block: with gradient, parameter, two states and their undo copies it stays inside 512 KB of L2."""

TABLE_PARTS = 16
"""Into so many parts the rows that a step uses of the tables of a group are cut: the work that the ranks share."""

_ALIGN_BYTES = 64


@dataclass(frozen=True)
class Segment:
    """The part of parameter ``parameter`` (an index) that lies in one block: elements ``lo:hi`` of the flat buffer."""

    parameter: int
    lo: int
    hi: int


@dataclass(frozen=True)
class TableGroup:
    """Tables whose rows have ``width`` elements: elements ``lo:hi`` of the flat buffer, as one array (rows, width).

    Rows are numbered through all groups. Those of this one begin at ``first_row``; table ``tables[i]`` (an index of a
    parameter) begins at row ``starts[i]``, counted from ``first_row``, and may be followed by rows that nobody uses.
    """

    width: int
    tables: tuple[int, ...]
    starts: tuple[int, ...]
    rows: int
    first_row: int
    lo: int

    @property
    def hi(self) -> int:
        return self.lo + self.rows * self.width

    def whole(self, buffer: NDArray[np.generic]) -> NDArray[np.generic]:
        """The tables as (rows, width), a view of a flat buffer."""
        return buffer[self.lo : self.hi].reshape(self.rows, self.width)


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in a flat buffer of one dtype. The same names and shapes give the same layout.

    ``running`` are those that are running values, as pairs (index, momentum), with ascending indices; ``tables`` are
    the indices of those that are tables, ascending.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype[np.generic]
    running: tuple[tuple[int, float], ...] = ()
    tables: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        leaves: Sequence[tuple[str, NDArray[np.generic]]],
        dtype: np.dtype[np.generic],
        running: Sequence[tuple[int, float]] = (),
        tables: Sequence[int] = (),
    ) -> Layout:
        """Lay out named arrays; refuse anything that is not a float array, and tables without a row or an element."""
        for name, leaf in leaves:
            if np.asarray(leaf).dtype.kind != "f":
                raise InputError(
                    f"parameter {name}: expected a {dtype} array, got dtype {np.asarray(leaf).dtype}; "
                    "keep counters out of the parameters"
                )
        if len(leaves) == len(running):
            raise InputError(
                "the model has no parameters: init must return a dict with at least one float array"
                + (" that is not marked as running" if running else "")
            )
        shapes = tuple(np.shape(a) for _, a in leaves)
        for index in tables:
            if not shapes[index] or not 0 < prod(shapes[index][1:]) <= BLOCK or not shapes[index][0]:
                raise InputError(
                    f"parameter {leaves[index][0]}: a table has at least one row, of 1 to {BLOCK} elements, got shape "
                    f"{shapes[index]}; leave dtrain.nn.table away"
                )
        return cls(tuple(n for n, _ in leaves), shapes, np.dtype(dtype), tuple(running), tuple(tables))

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
        """The offsets, the end of the parameters, and the end of what has blocks."""
        step = _ALIGN_BYTES // self.dtype.itemsize
        offsets, end = [0] * len(self.shapes), 0

        def place(index: int) -> None:
            nonlocal end
            offsets[index] = end
            end += -(-prod(self.shapes[index]) // step) * step

        for index in range(len(self.shapes)):
            if index not in self.momenta and index not in self.tables:
                place(index)
        parameters = end = max(step, end)
        if self.running:
            end = -(-end // BLOCK) * BLOCK
            for index, _ in self.running:
                place(index)
        for group in self._groups_after(end):
            for index, start in zip(group.tables, group.starts, strict=True):
                offsets[index] = group.lo + start * group.width
        return tuple(offsets), parameters, end

    def _groups_after(self, end: int) -> tuple[TableGroup, ...]:
        """The groups of tables, when everything else ends at element ``end``."""
        of_width: dict[int, list[int]] = {}
        for index in self.tables:
            of_width.setdefault(prod(self.shapes[index][1:]), []).append(index)
        groups: list[TableGroup] = []
        first_row, lo, step = 0, -(-end // BLOCK) * BLOCK, _ALIGN_BYTES // self.dtype.itemsize
        for width, indices in of_width.items():
            whole, starts, rows = step // gcd(step, width), [], 0  # every table begins on a 64-byte boundary
            for index in indices:
                starts.append(rows)
                rows += -(-self.shapes[index][0] // whole) * whole
            groups.append(TableGroup(width, tuple(indices), tuple(starts), rows, first_row, lo))
            first_row, lo = first_row + rows, groups[-1].hi
        return tuple(groups)

    @cached_property
    def groups(self) -> tuple[TableGroup, ...]:
        """The tables, by the length of their rows."""
        return self._groups_after(self._places[2])

    @property
    def table_rows(self) -> int:
        """How many rows all tables have, those between them included."""
        return sum(group.rows for group in self.groups)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First element of each parameter; each starts on a 64-byte boundary."""
        return self._places[0]

    @property
    def size(self) -> int:
        """Elements of the flat buffer, padding included; what is in the padding counts for nothing."""
        return self.groups[-1].hi if self.groups else self._places[2]

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def dense_size(self) -> int:
        """Elements of what has blocks: everything but the tables, which come after it."""
        return self._places[2]

    @property
    def dense_nbytes(self) -> int:
        return self.dense_size * self.dtype.itemsize

    @property
    def blocks(self) -> int:
        return -(-self.dense_size // BLOCK)

    @cached_property
    def parameter_blocks(self) -> int:
        """How many blocks hold parameters; those behind them hold running values."""
        return -(-self._places[1] // BLOCK)

    def block(self, index: int) -> slice:
        """The elements of block ``index``; the last one of the parameters and the last one of all may be shorter."""
        end = self._places[1] if index < self.parameter_blocks else self.dense_size
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
        dense = (i for i in range(len(self.shapes)) if i not in self.tables)
        for parameter in sorted(dense, key=self.offsets.__getitem__):
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

    @cached_property
    def square_parameters(self) -> tuple[int, ...]:
        """The parameter of each figure that the norm is made of: one for a segment, `TABLE_PARTS` for a table."""
        return self.segment_parameters + tuple(
            index for group in self.groups for index in group.tables for _ in range(TABLE_PARTS)
        )


def split_evenly(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into ``parts`` contiguous runs whose lengths differ by at most one."""
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
