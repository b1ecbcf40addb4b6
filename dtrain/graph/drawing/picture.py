"""What is in the picture of a graph: boxes, and edges with a value and a gradient."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dtrain.graph.regions import Packed, part, reachable
from dtrain.graph.tensor import Graph, Tensor
from dtrain.graph.uses import gradients_by_use

SYMBOLS = {
    "add": "+",
    "subtract": "−",
    "multiply": "×",
    "divide": "÷",
    "matmul": "@",
    "negative": "×−1",
    "reciprocal": "1/x",
    "sum": "Σ",
    "square": "x²",
    "sqrt": "√",
    "maximum": "max",
    "minimum": "min",
    "power": "^",
}
NOT_FINITE = "not finite"
"""In a text of an edge: it has elements that are nan or infinite, and is drawn in red."""
_LONGEST_PERIOD = 256  # operations of one turn of a loop, to be found


@dataclass
class Box:
    """A node, or a group of nodes: `kind` is input, operation or output; `detail` is shown when it is pointed at."""

    label: str
    kind: str
    detail: str


@dataclass
class Edge:
    """From box to box, by number; the texts above and below it.

    ``values`` are the arrays that go along it, ``gradients`` those that come back, one of each source that has one.
    """

    source: int
    target: int
    value: str
    gradient: str
    values: list[Any] = field(default_factory=list, repr=False)
    gradients: list[Any] = field(default_factory=list, repr=False)


@dataclass
class Picture:
    """The boxes in topological order, and the edges; ``members`` are the nodes of each box, by its number, and
    ``gradients`` the gradient by each use (node, place)."""

    title: str
    boxes: list[Box] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    members: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)
    gradients: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False)


def figure(array: Any) -> str:
    """A number as it is, an array as its shape and L2 norm."""
    array = np.asarray(array)
    if array.shape == ():
        return f"{array.item():.4g}" if array.dtype.kind in "fc" else str(array.item())
    shape = "×".join(map(str, array.shape))
    if array.dtype.kind not in "fc":
        return f"{shape} {array.dtype}"
    return f"{shape} ‖{float(np.linalg.norm(array.astype(np.complex128 if array.dtype.kind == 'c' else float))):.3g}‖"


def picture_of(graph: Graph, title: str, max_nodes: int) -> Picture:
    """Describe the forward graph with the gradients of the sum of its outputs."""
    nodes = [n for n in reachable(graph.outputs, (), lambda n: n.inputs) if not _is_folded(n)]
    uses, gradients = gradients_by_use(graph)
    box_of = _boxes(nodes, max_nodes)
    picture = Picture(title)
    for group in box_of.values():
        while len(picture.boxes) <= group:
            picture.boxes.append(Box("", "operation", ""))
    groups: dict[int, list[Tensor]] = {}
    for node in nodes:
        groups.setdefault(box_of[node.index], []).append(node)
    for number, members in groups.items():
        picture.boxes[number] = _box(members)
    merged: dict[Any, list[tuple[Tensor, Tensor | None]]] = {}  # of each edge: the sources, and their uses
    is_collapsed = any(len(members) > 1 for members in groups.values())
    for node in nodes:
        for place, source in enumerate(node.inputs):
            if source.index not in box_of or box_of[source.index] == box_of[node.index]:
                continue
            use = uses.get((node.index, place))
            pair = (box_of[source.index], box_of[node.index])
            key = pair if is_collapsed else (*pair, len(merged))
            merged.setdefault(key, []).append((source, use))
    for (start, end, *_), found in merged.items():
        picture.edges.append(_edge(start, end, found, gradients))
    picture.members = groups
    picture.gradients = {place: gradients[use.index].value for place, use in uses.items() if use.index in gradients}
    for number, output in enumerate(graph.outputs):
        if output.index in box_of:
            picture.boxes.append(Box("out" if len(graph.outputs) == 1 else f"out {number}", "output", "output"))
            seed = np.ones(output.shape) if output.dtype.kind == "f" else None
            text = "" if seed is None else figure(seed)
            arrays = [output.value], [] if seed is None else [seed]
            edge = Edge(box_of[output.index], len(picture.boxes) - 1, figure(output.value), text, *arrays)
            picture.edges.append(edge)
    return picture


def _edge(start: int, end: int, uses: list[tuple[Tensor, Tensor | None]], gradients: dict[int, Tensor]) -> Edge:
    """The edge that stands for these uses: of one array its value and the sum of its gradients by these uses."""
    sources = {source.index: source for source, _ in uses}
    found: dict[int, dict[int, Any]] = {}  # of each source: the gradient by each node that stands for a use
    for source, use in uses:
        if use is not None and use.index in gradients:
            found.setdefault(source.index, {})[use.index] = np.asarray(gradients[use.index].value)
    sums = [sum(list(parts.values())[1:], next(iter(parts.values()))) for parts in found.values()]
    values = [source.value for source in sources.values()]
    if len(sources) > 1:
        return Edge(start, end, f"{len(sources)} arrays", "", values, sums)
    (source,) = sources.values()
    if isinstance(source.op, Packed):
        return Edge(start, end, "", "")  # several results in one block of bytes: each is shown behind its own box
    return Edge(start, end, figure(source.value), figure(sums[0]) if sums else "", values, sums)


def _is_folded(node: Tensor) -> bool:
    """Whether a node is shown within the boxes that use it: a constant."""
    return node.is_constant


def _boxes(nodes: list[Tensor], max_nodes: int) -> dict[int, int]:
    """Return the number of each node's box: its own, or that of a run of nodes of one scope or line, or of some turns
    of a loop. A run of the topological order has edges forward only, so the boxes have no cycle."""
    inputs = [[node] for node in nodes if node.op is None]
    operations = [node for node in nodes if node.op is not None]
    runs = [[node] for node in operations] if len(operations) <= max_nodes else _collapsed(operations, max_nodes)
    return {node.index: number for number, run in enumerate([*inputs, *runs]) for node in run}


def _collapsed(nodes: list[Tensor], max_nodes: int) -> list[list[Tensor]]:
    """Cut the nodes into runs of one scope or line; the longest loop outside of scopes into at most half of the
    boxes."""
    runs: list[list[Tensor]] = []
    for scope, found in itertools.groupby(nodes, key=lambda n: n.scope):
        stretch = list(found)
        if scope:
            runs.append(stretch)
            continue
        start, stop, period = _loop([(n._line, n.op.name) for n in stretch if n.op])
        turns = -(-(stop - start) // period)
        size = period * max(1, -(-turns // max(2, max_nodes // 2)))
        runs += _by_line(stretch[:start])
        runs += [stretch[i : min(i + size, stop)] for i in range(start, stop, size)]
        runs += _by_line(stretch[stop:])
    return runs


def _by_line(nodes: list[Tensor]) -> list[list[Tensor]]:
    return [list(found) for _, found in itertools.groupby(nodes, key=lambda n: n._line)]


def _loop(keys: list[Any]) -> tuple[int, int, int]:
    """Return (start, stop, period) of the longest part that repeats itself at least three times; (0, 0, 1) if none
    does."""
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    best = (0, 0, 1)
    for period in range(1, min(len(keys) // 3, _LONGEST_PERIOD) + 1):
        differs = codes[:-period] != codes[period:]
        breaks = np.flatnonzero(np.concatenate([[True], differs, [True]]))
        lengths = np.diff(breaks) - 1
        longest = int(lengths.argmax())
        length = int(lengths[longest]) + period
        if length >= 3 * period and length > best[1] - best[0]:
            best = (int(breaks[longest]), int(breaks[longest]) + length, period)
    return best


def _box(members: list[Tensor]) -> Box:
    node = members[-1]
    if node.op is None:
        return Box(node.name, "input", f"input {node.name}, {node.dtype}{list(node.shape)}")
    if len(members) > 1:
        where = node.scope or _lines(members)
        return Box(
            f"{where} · {len(members)} ops", "operation", f"{where}: {', '.join(n.op.name for n in members if n.op)}"
        )
    name = node.op.name
    label = f"result {node.static['index']}" if node.op is part else SYMBOLS.get(name, name)
    constants = [(i, x) for i, x in enumerate(node.inputs) if x.is_constant and x.shape == ()]
    if len(node.inputs) == 2 and len(constants) == 1:
        place, constant = constants[0]
        label = f"{label}{figure(constant.value)}" if place else f"{figure(constant.value)}{label}"
    kind = "several results" if isinstance(node.op, Packed) else f"{node.dtype}{list(node.shape)}"
    return Box(label, "operation", f"{name}, {kind}, made at {node.location}")


def _lines(members: list[Tensor]) -> str:
    """The line of these nodes, or the first and the last."""
    first, last = min(members, key=lambda n: n._line), max(members, key=lambda n: n._line)
    same_file, end = first._line[0] == last._line[0], f"–{last._line[1]}"
    return first.location + (end if same_file and first._line != last._line else "")
