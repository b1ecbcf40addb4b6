"""`checkpoint`: forget what lies inside a part of the model, and compute it again when its gradient is asked for.

The part is recorded as usual and becomes a region. The reverse sweep records it a second time behind barriers, so the
plan keeps of the first time only what goes in and what comes out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dtrain.errors import TraceError
from dtrain.graph.differentiate import backward
from dtrain.graph.ops.shards import sum_over_shards_
from dtrain.graph.regions import Region, append, barrier, members, reachable, replay
from dtrain.graph.tensor import Tensor, active_graph
from dtrain.graph.tree import flatten, unflatten


def around(outputs: Sequence[Tensor], start: int, cut: Collection[int] = ()) -> list[Tensor]:
    """Return the nodes outside of a region (before `start`, or inputs) that its outputs are computed from, without
    constants and those in `cut`."""
    inside = reachable(outputs, cut, lambda n: n.inputs if n.index >= start else ())
    return [n for n in inside if not n.is_constant and (n.index < start or n.op is None)]


class _Checkpoint(Region):
    """A part of the model that is computed again for its gradient. The inputs are its outputs and what it reads."""

    def adjoint(self, node: Tensor, gs: Mapping[int, Tensor], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        graph = next(iter(gs.values())).graph
        count = node.static["count"]
        read = node.inputs[count:]
        walls = [append(barrier, [graph.capture(x)]) for x in read]
        cut = {x.index: wall for x, wall in zip(read, walls, strict=True)}
        again = replay([node.inputs[i] for i in gs], cut, graph)
        floats = [i for i, x in enumerate(read) if wanted[count + i] and x.dtype.kind == "f"]
        found = dict(zip(floats, backward(again, list(gs.values()), [walls[i] for i in floats]), strict=True))
        return [None] * count + [found.get(i) for i in range(len(read))]


_checkpoint = _Checkpoint("checkpoint")


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return f as a part of the model that is computed again when its gradient is asked for, instead of being kept.

    It saves memory and costs one more evaluation of f, of which every value and random mask has the same bits; where
    gradients meet, those from within f are added first. Arguments and result are trees, and f may close over traced
    arrays. Outside of a trace it is f.

        for block in params["blocks"]:
            x = dtrain.checkpoint(transformer_block)(block, x)
    """

    @functools.wraps(f)
    def call(*args: Any, **options: Any) -> Any:
        graph = active_graph()
        if graph is None:
            return f(*args, **options)
        start = len(graph.nodes)
        leaves, structure = flatten(f(*args, **options))
        sums = [node for node in graph.nodes[start:] if node.op is sum_over_shards_]
        if sums:
            raise TraceError(
                f"sum_over_shards at {sums[0].location}: is within checkpoint, which would make the sum twice; keep it "
                "outside"
            )
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.graph is graph]
        if places:
            outputs = [leaves[i] for i in places]
            read = around(outputs, start)
            for i, result in zip(places, members(_checkpoint, outputs, read, {"count": len(outputs)}), strict=True):
                leaves[i] = result
        return unflatten(structure, leaves)

    return call
