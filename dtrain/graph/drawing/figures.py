"""The picture of a graph as plain values that can be kept, with figures in the place of the arrays on its edges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dtrain.graph.drawing.layout import arrange
from dtrain.graph.drawing.picture import NOT_FINITE, Box, Edge, Picture, picture_of
from dtrain.graph.drawing.svg import render
from dtrain.graph.inspection import summary
from dtrain.graph.tensor import Graph

MOST_BOXES = 24
_MOST_ORIGINS = 20
_WIDEST = "‖0.000e+00‖"  # room for any figure: the picture does not move from one state to the next


def described(graph: Graph, max_nodes: int = MOST_BOXES) -> dict[str, Any]:
    """Return the picture of a recorded graph that still has its values: `graph`, `edges` and `origins`.

    `graph` is what does not change from step to step: `boxes` with `label`, `kind` (input, operation, output) and
    `detail`, and `edges` as pairs of numbers of boxes. `edges`, in this order: `shape` (null for several arrays), and
    of the `value` and the `gradient` what `inspection.summary` returns, null where there are no floats. A graph of more
    than ``max_nodes`` operations is collapsed as in `draw`, and an edge then stands for all arrays that go along it.
    `origins` are the inputs that are not finite, and the operations from which something comes that is not though all
    that goes in is: `what` (value or gradient), `op` (or the name of the input), `line`, `scope` and the number of the
    `box`; at most 20.
    """
    picture = picture_of(graph, "", max_nodes)
    structure = {
        "boxes": [{"label": box.label, "kind": box.kind, "detail": box.detail} for box in picture.boxes],
        "edges": [[edge.source, edge.target] for edge in picture.edges],
    }
    edges = []
    for edge in picture.edges:
        shape = list(np.shape(edge.values[0])) if len(edge.values) == 1 else None
        edges.append({"shape": shape, "value": _summary(edge.values), "gradient": _summary(edge.gradients)})
    return {"graph": structure, "edges": edges, "origins": list(itertools.islice(_origins(picture), _MOST_ORIGINS))}


def drawn(picture: Mapping[str, Any], title: str) -> str:
    """Return the SVG of what `described` returned, without a style: norms above and below the edges. The boxes are at
    the same places whatever the figures are."""
    boxes = [Box(box["label"], box["kind"], box["detail"]) for box in picture["graph"]["boxes"]]
    edges = [Edge(source, target, _WIDEST, _WIDEST) for source, target in picture["graph"]["edges"]]
    layout = arrange(Picture(title, boxes, edges))
    for edge, figure in zip(edges, picture["edges"], strict=True):
        edge.value, edge.gradient = _text(figure["value"]), _text(figure["gradient"])
    for origin in picture["origins"]:
        boxes[origin["box"]].kind = "operation origin"
    return render(Picture(title, boxes, edges), layout, style="")


def _origins(picture: Picture) -> Iterator[dict[str, Any]]:
    nodes = [(node, box) for box, members in picture.members.items() for node in members]
    back: dict[int, bool] = {}  # whether the gradient of each value is finite
    for node, _ in nodes:
        for place, source in enumerate(node.inputs):
            is_fine = _is_finite(picture.gradients.get((node.index, place)))
            back[source.index] = back.get(source.index, True) and is_fine
    for node, box in nodes:
        if not all(_is_finite(i.value) for i in node.inputs):
            continue
        name = node.name if node.op is None else node.op.name
        where = {"op": name, "line": node.location, "scope": node.scope, "box": box}
        parts = [picture.gradients.get((node.index, i)) for i in range(len(node.inputs))]
        if not _is_finite(node.value):
            yield {"what": "value", **where}
        elif back.get(node.index, True) and not all(map(_is_finite, parts)):
            yield {"what": "gradient", **where}


def _is_finite(array: Any) -> bool:
    return array is None or bool(np.isfinite(array).all())


def _summary(arrays: Sequence[Any]) -> dict[str, Any] | None:
    floats = [np.ravel(a) for a in arrays if np.asarray(a).dtype.kind == "f"]
    return summary(np.concatenate(floats)) if floats else None


def _text(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    if figure["not_finite"]:
        return f"{figure['not_finite']} {NOT_FINITE}"
    return f"‖{figure['norm']:.3g}‖" if "norm" in figure else ""
