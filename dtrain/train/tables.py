"""The uses of tables in a recorded loss, and what a shard leaves of them: the rows that it takes and their gradients.

A table's gradient is a sum over its uses: each takes rows, so each gives (ids, gradient of what was taken), and no
array of the table's size is made. Invariant: what a shard leaves is a function of the shard alone: rows ascending, and
the terms of one row added in the order of the uses, then of their place in the use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import Layout
from dtrain.comm.memory import RunMemory
from dtrain.comm.rows import compact
from dtrain.errors import InputError
from dtrain.graph import Bound, Graph, Tensor
from dtrain.graph.differentiate import passes_gradient
from dtrain.graph.ops.indexing import gather
from dtrain.graph.ops.shape import stop
from dtrain.graph.plan import Step
from dtrain.graph.primitive import Call

_ROWS = (("array", 0),)


@dataclass(frozen=True, eq=False)
class Use:
    """One place where rows of table ``table`` (an index of a parameter) are taken: ``rows`` = table[``ids``]."""

    table: int
    ids: Tensor
    rows: Tensor


def uses_of_tables(layout: Layout, leaves: Sequence[Tensor], loss: Tensor) -> list[Use]:
    """Return the uses of tables that the loss depends on, in the order in which they were recorded.

    ``leaves`` are the recorded parameters in the order of the layout. Raises InputError for a use that does anything
    else than take rows.
    """
    if not layout.tables:
        return []
    tables = {leaves[i].index: i for i in layout.tables}
    uses = []
    for node in _needed(loss):
        for number, x in enumerate(node.inputs):
            table = tables.get(x.index)
            if table is None or node.op is stop or not passes_gradient(node):
                continue
            if node.op is not gather or number or node.static["index"] != _ROWS:
                assert node.op is not None
                raise InputError(
                    f"loss: the table {layout.names[table]} is used by {node.op.name} at {node.location}; the gradient "
                    "of a table is that of rows taken with an array of ids, table[ids]: take rows first, or leave "
                    "dtrain.nn.table away in init"
                )
            uses.append(Use(table, node.inputs[1], node))
    return uses


def rows_taken(layout: Layout, graph: Graph) -> dict[int, NDArray[np.int64]]:
    """The rows that a recorded loss, the output of ``graph``, takes of each table, by index of the parameter.

    They are ascending. The first inputs of the graph are the parameters, and it has values.
    """
    found: dict[int, NDArray[np.int64]] = {i: np.empty(0, np.int64) for i in layout.tables}
    for use in uses_of_tables(layout, graph.inputs, graph.outputs[0]):
        ids = np.ravel(use.ids.value).astype(np.int64)
        found[use.table] = np.union1d(found[use.table], np.where(ids < 0, ids + layout.shapes[use.table][0], ids))
    return found


def _needed(result: Tensor) -> list[Tensor]:
    """The nodes that a value was computed from, in order."""
    found, stack = {result.index: result}, [result]
    while stack:
        for x in stack.pop().inputs:
            if x.index not in found:
                found[x.index] = x
                stack.append(x)
    return [found[i] for i in sorted(found)]


class ShardRows:
    """Memory for what the uses of tables in one recording give, and the step from there to a shard's rows.

    ``gradients`` and ``ids`` are the arrays that a run of the plan fills, in the order of the uses.
    """

    def __init__(self, memory: RunMemory, uses: Sequence[Use]) -> None:
        self._memory = memory
        layout = memory.dimensions.layout
        of_use: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._groups = []
        for group in layout.groups:
            own = [(n, u) for n, u in enumerate(uses) if u.table in group.tables]
            counts = [prod(u.ids.shape) for _, u in own]
            ids, gradients = np.empty(sum(counts), np.int64), np.empty((sum(counts), group.width), layout.dtype)
            starts, lengths = np.empty_like(ids), np.empty_like(ids)
            lo = 0
            for (number, use), count in zip(own, counts, strict=True):
                here = slice(lo, lo + count)
                of_use[number] = gradients[here].reshape(use.rows.shape), ids[here].reshape(use.ids.shape)
                starts[here] = group.starts[group.tables.index(use.table)]
                lengths[here] = layout.shapes[use.table][0]
                lo += count
            self._groups.append((group, ids, gradients, starts, lengths, np.arange(group.width)))
        self.gradients = [of_use[n][0] for n in range(len(uses))]
        self.ids = [of_use[n][1] for n in range(len(uses))]

    def keep(self, shard: int) -> None:
        """Leave the rows that the last run has taken, and their gradients, as those of ``shard``."""
        memory = self._memory
        for number, (group, ids, gradients, starts, lengths, columns) in enumerate(self._groups):
            ids += np.where(ids < 0, lengths + starts, starts)
            unique, places = np.unique(ids, return_inverse=True)
            count = len(unique)
            memory.row_ids[shard, group.first_row : group.first_row + count] = unique
            memory.row_counts[shard, number] = count
            out = compact(memory.gradients[shard], group, count)
            if count == len(ids):
                out[places] = gradients
                continue
            out.fill(0)
            flat = (places[:, None] * group.width + columns).reshape(-1)
            np.add.at(out.reshape(-1), flat, gradients.reshape(-1))


def with_rows(bound: Bound, rows: ShardRows, shard: int) -> Bound:
    """Let the last call of a bound plan also leave the shard's rows, and name the line of ids that are no rows."""
    for number, step in enumerate(bound.plan.steps):
        if step.op is gather:
            bound.calls[number] = partial(_taken, bound.calls[number], step)
    bound.calls[-1] = partial(_both, bound.calls[-1], partial(rows.keep, shard))
    return bound


def _both(first: Call, second: Call) -> None:
    first()
    second()


def _taken(take: Call, step: Step) -> None:
    try:
        take()
    except IndexError as error:
        name = step.inputs[0].node.name
        raise InputError(f"loss: {name + ': ' if name else ''}{error}; made at {step.node.location}") from None
