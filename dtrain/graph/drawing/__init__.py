"""Draw a graph as the lecture does: the value above each edge, the gradient below, as a self-contained SVG."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dtrain.graph.api import trace
from dtrain.graph.drawing.layout import arrange
from dtrain.graph.drawing.picture import picture_of
from dtrain.graph.drawing.svg import render
from dtrain.graph.tensor import Graph


def draw(f: Callable[..., Any] | Graph, *args: Any, title: str = "", max_nodes: int = 60) -> str:
    """Return the picture of f on these arguments, or of a recorded graph that still has its values, as SVG text.

    The value is above each edge, the gradient of the sum of the outputs below; arrays are shown by shape and L2 norm.
    Where a value is used more than once, each edge has its own part of the gradient. A graph of more than `max_nodes`
    operations is collapsed: runs of nodes of one scope, or of one line of the user's code, become one box.
    """
    graph = f if isinstance(f, Graph) else trace(f, *args)
    if not isinstance(f, Graph):
        _name_inputs(graph, f)
    picture = picture_of(graph, title or getattr(f, "__name__", "graph"), max_nodes)
    return render(picture, arrange(picture))


def _name_inputs(graph: Graph, f: Callable[..., Any]) -> None:
    """Give the inputs the names of the arguments in place of their positions, where the function tells them."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # not every ufunc has a signature
        return
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for node in graph.inputs:
        position, dot, path = node.name.partition(".")
        if position.isdigit() and int(position) < len(names):
            node.name = f"{names[int(position)]}{dot}{path}"


__all__ = ["draw"]
