"""The gradient of every value of a recorded graph, with one part for each place where the value is used."""

from __future__ import annotations

from dtrain.graph.differentiate import backward
from dtrain.graph.ops.shape import alias
from dtrain.graph.regions import Structural, reachable
from dtrain.graph.tensor import Graph, Tensor, recording


def gradients_by_use(graph: Graph) -> tuple[dict[tuple[int, int], Tensor], dict[int, Tensor]]:
    """Return, for each use (node, place) of a float array, a node that stands for this use alone, and the gradients
    of the sum of the outputs by the index of these nodes. The graph must still have its values."""
    copy, made = Graph(), {}
    uses: dict[tuple[int, int], Tensor] = {}
    with recording(copy):
        for node in reachable(graph.outputs, (), lambda n: n.inputs):
            if node.is_constant:
                made[node.index] = copy.constant(node.value)
                continue
            if node.op is None:
                made[node.index] = copy.input(node.value, node.name, node.weak)
                continue
            inputs = []
            for place, source in enumerate(node.inputs):
                inner = made[source.index]
                if source.dtype.kind == "f" and not source.is_constant:
                    if not isinstance(node.op, Structural):
                        inner = alias(inner)
                    uses[node.index, place] = inner
                inputs.append(inner)
            again = Tensor(
                copy, node.op, tuple(inputs), node.static, node.shape, node.dtype, node.value, node._line, "", node.weak
            )
            made[node.index] = again
        outputs = [made[o.index] for o in graph.outputs if o.dtype.kind == "f"]
        wrt = list({use.index: use for use in uses.values()}.values())
        found = backward(outputs, None, wrt) if outputs and wrt else []
    return uses, {use.index: g for use, g in zip(wrt, found, strict=False)}
