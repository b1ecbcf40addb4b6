"""Where boxes and edges lie: layers by the longest path, the order in each by barycentres (Sugiyama's method).

A picture that would be too wide goes on in further rows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from dtrain.graph.drawing.picture import Picture

_ROW = 80.0
_CHARACTER = 7.4
_SWEEPS = 12
_WIDTH = 1500.0
_LANE = 14.0  # between the edges that go from the end of a row to the begin of the next


Point = tuple[float, float]


@dataclass
class Layout:
    """Centres and widths of the boxes in pixels, and the points that each edge goes through, box centres included."""

    centres: list[Point]
    widths: list[float]
    paths: list[list[Point]]
    width: float
    height: float


def arrange(picture: Picture) -> Layout:
    """Lay the picture out from left to right."""
    count = len(picture.boxes)
    layer = _layers(picture)
    after: dict[int, list[int]] = {}
    before: dict[int, list[int]] = {}
    chains: list[list[int]] = []
    for edge in picture.edges:  # an edge over several layers goes through a point in each
        chain = [edge.source]
        for between in range(layer[edge.source] + 1, layer[edge.target]):
            layer.append(between)
            chain.append(len(layer) - 1)
        chain.append(edge.target)
        chains.append(chain)
        for a, b in itertools.pairwise(chain):
            after.setdefault(a, []).append(b)
            before.setdefault(b, []).append(a)
    columns: list[list[int]] = [[] for _ in range(max(layer, default=0) + 1)]
    for node, where in enumerate(layer):
        columns[where].append(node)
    y = _rows(columns, before, after)
    widths = [max(38.0, len(box.label) * _CHARACTER + 18) for box in picture.boxes]
    x, halves = _columns(picture, columns, layer, widths)
    points = [(x[layer[node]], y[node]) for node in range(len(layer))]
    paths = [[points[node] for node in chain] for chain in chains]
    if x[-1] + halves[-1] > _WIDTH:
        points, paths = _wrapped(columns, layer, points, halves, chains)
    width = max((px + w / 2 for (px, _), w in zip(points, widths, strict=False)), default=0.0)
    ends = [point for path in paths for point in path]
    width, height = (
        max([width, *(px for px, _ in ends)]),
        max([0.0, *(py for _, py in points), *(py for _, py in ends)]),
    )
    return Layout(points[:count], widths, paths, width + 24, height + 60)


def _wrapped(
    columns: list[list[int]],
    layer: list[int],
    points: list[Point],
    halves: list[float],
    chains: list[list[int]],
) -> tuple[list[Point], list[list[Point]]]:
    """Break the picture into rows, where few edges are cut; those go around the end of the row, each in a lane."""
    x = [points[column[0]][0] if column else 0.0 for column in columns]
    crossing = [0] * len(columns)
    for chain in chains:
        for node in chain[:-1]:
            crossing[layer[node]] += 1
    starts = [0]
    while x[-1] + halves[-1] - (x[starts[-1]] - halves[starts[-1]]) > _WIDTH:
        left = x[starts[-1]] - halves[starts[-1]]
        fitting = [c for c in range(starts[-1], len(x) - 1) if x[c] + halves[c] - left <= _WIDTH]
        late = [c for c in fitting if x[c] + halves[c] - left > 0.6 * _WIDTH] or fitting[-1:] or [starts[-1]]
        starts.append(min(late, key=lambda c: (crossing[c], -c)) + 1)
    row_of = [sum(c >= start for start in starts) - 1 for c in range(len(columns))]
    cut = [crossing[start - 1] for start in starts[1:]]  # of each row but the last
    margin = 24.0 + 12.0 * (max(cut) + 1)
    top, moved = 84.0, list(points)
    lanes = []  # of each row: the height of its first lane
    for row in range(len(starts)):
        nodes = [n for c, column in enumerate(columns) for n in column if row_of[c] == row]
        first = starts[row]
        dx = (margin if row else 24.0) - (x[first] - halves[first])
        dy = top - min(points[n][1] for n in nodes)
        for n in nodes:
            moved[n] = (points[n][0] + dx, points[n][1] + dy)
        bottom = max(moved[n][1] for n in nodes)
        lanes.append(bottom + 48.0)
        top = bottom + 48.0 + _LANE * (cut[row] if row < len(cut) else 0) + 28.0
    end = max(moved[column[0]][0] + half for column, half in zip(columns, halves, strict=True) if column) + 12.0
    paths, used = [], [0] * len(starts)
    for chain in chains:
        path = [moved[chain[0]]]
        for a, b in itertools.pairwise(chain):
            row = row_of[layer[a]]
            if row_of[layer[b]] != row:
                number, used[row] = used[row], used[row] + 1
                right, lane, left = end + 12.0 * number, lanes[row] + _LANE * number, margin - 12.0 * (number + 1)
                path += [(right, moved[a][1]), (right, lane), (left, lane), (left, moved[b][1])]
            path.append(moved[b])
        paths.append(path)
    return moved, paths


def _layers(picture: Picture) -> list[int]:
    layer = [0] * len(picture.boxes)
    for _ in picture.boxes:
        is_done = True
        for edge in picture.edges:
            if layer[edge.target] <= layer[edge.source]:
                layer[edge.target] = layer[edge.source] + 1
                is_done = False
        if is_done:
            break
    for number, box in enumerate(picture.boxes):  # an input stands just before its first use
        targets = [layer[e.target] for e in picture.edges if e.source == number]
        if box.kind == "input" and targets:
            layer[number] = min(targets) - 1
    return layer


def _rows(columns: list[list[int]], before: dict[int, list[int]], after: dict[int, list[int]]) -> list[float]:
    """Order each column by the mean height of the neighbours, then draw each node towards that height."""
    y = [0.0] * sum(map(len, columns))
    for column in columns:
        for row, node in enumerate(column):
            y[node] = row * _ROW

    def mean(node: int, beside: dict[int, list[int]]) -> float:
        found = [y[n] for n in beside.get(node, ())]
        return sum(found) / len(found) if found else y[node]

    for sweep in range(_SWEEPS):
        beside, order = (before, columns) if sweep % 2 == 0 else (after, columns[::-1])
        for column in order:
            wanted = {node: mean(node, beside) for node in column}
            column.sort(key=lambda node: (wanted[node], node))
            _spread(column, wanted, y)
    for column in columns:
        wanted = {node: (mean(node, before) + mean(node, after)) / 2 for node in column}
        _spread(column, wanted, y)
    top = min(y, default=0.0)
    return [value - top + 84 for value in y]


def _spread(column: list[int], wanted: dict[int, float], y: list[float]) -> None:
    """Place the nodes in this order, a row apart, around where they want to be."""
    blocks: list[list[float]] = []  # [sum of (wanted - offset), number of nodes]: nodes that touch move as one
    for node in column:
        blocks.append([wanted[node], 1])
        while len(blocks) > 1:
            (a, n), (b, m) = blocks[-2], blocks[-1]
            if a / n + n * _ROW <= b / m:
                break
            blocks[-2:] = [[a + b - m * n * _ROW, n + m]]
    nodes = iter(column)
    for total, size in blocks:
        for row in range(int(size)):
            y[next(nodes)] = total / size + row * _ROW


def _columns(
    picture: Picture, columns: list[list[int]], layer: list[int], widths: list[float]
) -> tuple[list[float], list[float]]:
    """The centre and half the width of each column; the gaps have room for the texts of the edges that begin there."""
    x, halves, right = [], [], 0.0
    for number, column in enumerate(columns):
        half = max((widths[n] for n in column if n < len(widths)), default=20.0) / 2
        texts = [len(t) for e in picture.edges if layer[e.source] == number - 1 for t in (e.value, e.gradient)]
        gap = max(texts, default=0) * 6.8 + 44 if number else 24.0
        x.append(right + gap + half)
        halves.append(half)
        right += gap + 2 * half
    return x, halves
