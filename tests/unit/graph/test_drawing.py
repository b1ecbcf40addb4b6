"""The picture of a graph: its figures are those of the run, its texts and boxes do not overlap."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import dtrain
from dtrain.graph.drawing.layout import arrange
from dtrain.graph.drawing.picture import figure, picture_of

SVG = "{http://www.w3.org/2000/svg}"


def neuron(w0, x0, w1, x1, w2):
    return 1.0 / (1.0 + np.exp(-(w0 * x0 + w1 * x1 + w2)))


def edges(svg):
    """(value, gradient) of each edge, in the order of the drawing."""
    found = {}
    for text in ET.fromstring(svg).iter(f"{SVG}text"):
        if text.get("data-edge"):
            found.setdefault(text.get("data-edge"), {})[text.get("class")] = text.text
    return [(texts["value"], texts.get("gradient")) for texts in found.values()]


def test_the_circuit_of_the_lecture():
    svg = dtrain.draw(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0)
    assert sorted(edges(svg)) == sorted([("-2", "-4"), ("5", "-4"), ("3", "-4"), ("-4", "3"), ("-12", "1")])


def test_the_figures_are_those_of_the_run():
    at = (2.0, -1.0, -3.0, -2.0, -3.0)
    value, gradients = dtrain.value_and_grad(neuron, tuple(range(5)))(*at)
    drawn = edges(dtrain.draw(neuron, *at))
    assert [p for p in zip(map(figure, at), map(figure, gradients), strict=True) if p not in drawn] == []
    assert (figure(value), "1") in drawn
    assert len(drawn) == 13


def test_the_parts_of_a_branch_add_up():
    drawn = edges(dtrain.draw(lambda x: x * 3.0 + np.square(x), 5.0))
    parts = [float(g) for value, g in drawn if value == "5"]
    assert parts == [3.0, 10.0]
    assert sum(parts) == dtrain.grad(lambda x: x * 3.0 + np.square(x))(5.0)


def test_an_array_is_shown_by_shape_and_norm():
    w = np.arange(6.0).reshape(2, 3)
    drawn = edges(dtrain.draw(lambda w: np.sum(w * w), w))
    assert len(drawn) == 4
    assert drawn.count((f"2×3 ‖{np.linalg.norm(w):.3g}‖",) * 2) == 2


def test_the_results_of_a_scan_are_shown_each_with_its_figures():
    def f(w, xs):
        last, squares = dtrain.scan(lambda c, x: (c * w + x, c * c), np.zeros(()), xs)
        return last + np.sum(squares)

    svg = dtrain.draw(f, 0.5, np.array([1.0, 2.0]))  # c = 0, 1, 2.5
    assert {">result 0<", ">result 1<"} <= set(re.findall(">result .<", svg))
    assert ("2.5", "1") in edges(svg)
    assert (figure(np.array([0.0, 1.0])), figure(np.ones(2))) in edges(svg)
    assert "uint8" not in svg


def loop(h, w):
    for _ in range(10):
        a = h @ w
        h = np.tanh(a)
    return np.sum(h)


def test_a_large_graph_is_collapsed_and_has_no_cycle():
    args = (np.ones((2, 3)), np.eye(3))
    picture = picture_of(dtrain.trace(loop, *args), "loop", 10)
    assert all(edge.source < edge.target for edge in picture.edges)
    with_scope = dtrain.trace(lambda h, w: scoped(h, w), *args)
    collapsed = picture_of(with_scope, "scoped", 10)
    assert [box.label for box in collapsed.boxes if "·" in box.label] == ["cell.0 · 20 ops", "cell.1 · 20 ops"]
    assert len(picture_of(with_scope, "scoped", 100).boxes) == 44


def one_line(x):
    for _ in range(100):
        x = x - 0.1 * np.sin(x)
    return x * x


@pytest.mark.parametrize(("function", "turns"), [(loop, 2), (one_line, 20)])
def test_a_loop_is_cut_between_its_turns(function, turns):
    args = (np.ones((2, 3)), np.eye(3)) if function is loop else (1.0,)
    picture = picture_of(dtrain.trace(function, *args), "loop", 10)
    boxes = [box for box in picture.boxes if "·" in box.label]
    assert len(boxes) == 5
    assert {box.detail.count("tanh" if function is loop else "sin") for box in boxes} == {turns}
    assert len([edge for edge in picture.edges if edge.gradient]) >= len(boxes)


def test_a_wide_picture_goes_on_in_further_rows():
    picture = picture_of(dtrain.trace(loop, np.ones((2, 3)), np.eye(3)), "loop", 60)
    layout = arrange(picture)
    assert layout.width < 1700
    boxes = [(x - w / 2, y - 17, x + w / 2, y + 17) for (x, y), w in zip(layout.centres, layout.widths, strict=True)]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert not [o for o in boxes[i + 1 :] if left < o[2] and right > o[0] and top < o[3] and bottom > o[1]]
    points = [point for path in layout.paths for point in path]
    assert all(0 < x < layout.width and 0 < y < layout.height for x, y in points)
    for edge, path in zip(picture.edges, layout.paths, strict=True):
        assert (path[0], path[-1]) == (layout.centres[edge.source], layout.centres[edge.target])


def test_uses_by_one_collapsed_box_are_one_edge_with_the_whole_gradient():
    args = (np.ones((2, 3)), np.eye(3))
    picture = picture_of(dtrain.trace(scoped, *args), "scoped", 10)
    pairs = [(edge.source, edge.target) for edge in picture.edges]
    assert len(pairs) == len(set(pairs))
    last = np.asarray(dtrain.grad(lambda w: np.sum(cells(cells(args[0], args[1]), w)))(args[1]))
    assert figure(last) in [edge.gradient for edge in picture.edges]


def test_equal_gradients_of_two_uses_are_both_counted():
    picture = picture_of(dtrain.trace(lambda x: np.tanh(x + x) * 2.0, 0.0), "double", 1)
    assert picture.edges[0].gradient == "4"


def cells(h, w):
    for _ in range(10):
        h = np.tanh(h @ w)
    return h


def scoped(h, w):
    for i in range(2):
        with dtrain.graph.scope(f"cell.{i}"):
            for _ in range(10):
                h = np.tanh(h @ w)
    return np.sum(h)


@pytest.mark.parametrize("args", [(2.0, -1.0, -3.0, -2.0, -3.0)])
def test_boxes_and_texts_do_not_overlap(args):
    picture = picture_of(dtrain.trace(neuron, *args), "neuron", 60)
    layout = arrange(picture)
    boxes = [(x - w / 2, y - 17, x + w / 2, y + 17) for (x, y), w in zip(layout.centres, layout.widths, strict=True)]
    svg = dtrain.draw(neuron, *args)
    for text in ET.fromstring(svg).iter(f"{SVG}text"):
        if text.get("class") == "value":
            x, y = float(text.get("x")), float(text.get("y"))
            boxes.append((x - 14, y - 10, x + 14, y + 20))
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert not [o for o in boxes[i + 1 :] if left < o[2] and right > o[0] and top < o[3] and bottom > o[1]]


def test_the_file_stands_alone_and_says_what_it_is():
    svg = dtrain.draw(neuron, 2.0, -1.0, -3.0, -2.0, -3.0, title="a < b")
    root = ET.fromstring(svg)
    assert root.find(f"{SVG}title").text == "a < b"
    assert "13 edges" in root.find(f"{SVG}desc").text
    assert "prefers-color-scheme: dark" in svg
    assert re.findall(r"(?:href|src|url\()\W*(\w+:)", svg) == []
    assert "<script" not in svg
