"""Print a graph: one line a node, with what it is, its shape, and the user's line that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dtrain.graph.tensor import Graph


def show(graph: Graph) -> str:
    """Return the listing of the graph."""
    lines = []
    outputs = {node.index for node in graph.outputs}
    for node in graph.nodes:
        shape = f"{node.dtype}[{','.join(map(str, node.shape))}]"
        if node.op is None:
            what = "constant" if node.is_constant else f"input {node.name!r}"
            if node.is_constant and not node.shape:
                what += f" {np.asarray(node.value)[()]}"
        else:
            static = [f"{k}={v}" for k, v in node.static.items()]
            what = f"{node.op.name}({', '.join([f'%{i.index}' for i in node.inputs] + static)})"
        mark = "  -> output" if node.index in outputs else ""
        name = f" [{node.scope}]" if node.scope else ""
        lines.append(f"%{node.index}: {shape} = {what}{name}  # {node.location}{mark}")
    return "\n".join(lines)
