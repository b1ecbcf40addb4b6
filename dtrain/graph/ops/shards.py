# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""The sum over the shards of a step, as one shard sees it: alone it is the value itself.

Whoever runs a plan for several shards makes the sum of them instead of the copy that is made here: this package knows
of no other shards. The invariant: it is recorded in training only, and in the graph of the loss itself, so that every
shard of a step comes to the same sums in the same order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dtrain.errors import InputError, TraceError
from dtrain.graph.context import current_context
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive
from dtrain.graph.tensor import Tensor, active_graph, format_line, user_line


def _shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, x.dtype


def _bind(out: np.ndarray, x: np.ndarray) -> Call:
    return partial(np.copyto, out, x)


# The loss of a step is the sum of the shards' losses, so each of them has a part in the gradient of every value.
@primitive(name="sum_over_shards", shape=_shape, bind=_bind, is_random=True)
def sum_over_shards_(g, out, x):
    """The sum of x over all shards of the step; it is neither folded nor merged, for the others' x may differ."""
    _refuse_in_loops(g.graph.depth)
    return sum_over_shards_(g)


def _refuse_in_loops(depth: int) -> None:
    if depth:
        raise TraceError(
            f"sum_over_shards at {format_line(user_line())}: is within a loop or a jacobian; return the value from "
            "the body and sum it after"
        )


def sum_over_shards(x: Any) -> Any:
    """The sum of x over all shards of the step: in training, every shard gets the same array, of the shape of x.

    x is a small array, traced or plain: at most a few thousand numbers, since all shards wait for each other here.
    Every shard of a step must come to the same sums in the same order, whatever its samples. The terms are added in the
    order of the shards' binary tree, so the bits do not depend on the number of workers. The gradient is the sum over
    the shards of the gradients. Outside of a training step, the sum is that over one shard: x itself.

    Raises TraceError within `scan` and `checkpoint`, InputError for a dtype that is no number.
    """
    context = current_context()
    if context is None or not context.training:
        return x
    graph = active_graph()
    if graph is None:
        return x
    _refuse_in_loops(graph.depth)
    node = graph.capture(x) if isinstance(x, Tensor) else as_tensor(x, graph)
    if node.dtype.kind not in "iufc":
        raise InputError(f"sum_over_shards at {format_line(user_line())}: expected numbers, got {node.dtype}")
    total = sum_over_shards_(node)
    total.weak = node.weak or type(x) in (int, float, complex)  # takes the dtype of what it meets, summed or not
    return total
