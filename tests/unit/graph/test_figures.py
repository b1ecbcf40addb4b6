"""The kept picture of a graph has the figures of the arrays, and names where something not finite begins."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

import dtrain
from dtrain.graph.drawing.figures import described, drawn

SVG = "{http://www.w3.org/2000/svg}"


def model(x, w):
    h = np.tanh(x @ w)
    return np.sum(h * h)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 3)), rng.standard_normal((3, 2))


def edges_from(found, label):
    boxes = [box["label"] for box in found["graph"]["boxes"]]
    pairs = found["graph"]["edges"]
    return [figures for (source, _), figures in zip(pairs, found["edges"], strict=True) if boxes[source] == label]


def test_edges_have_the_norms_of_value_and_gradient(arrays):
    found = described(dtrain.trace(model, *arrays))
    (edge,) = edges_from(found, "1")
    assert edge["shape"] == [3, 2]
    np.testing.assert_allclose(edge["value"]["norm"], np.linalg.norm(arrays[1]), rtol=1e-12)
    gradient = dtrain.grad(lambda w: model(arrays[0], w))(arrays[1])
    np.testing.assert_allclose(edge["gradient"]["norm"], np.linalg.norm(gradient), rtol=1e-12)
    assert sum(edge["gradient"]["counts"]) == 6
    assert found["origins"] == []


def test_a_branch_has_the_part_of_each_use(arrays):
    found = described(dtrain.trace(lambda x: np.sum(x * 3.0) + np.sum(x * 4.0), arrays[0]))
    parts = [edge["gradient"]["norm"] for edge in edges_from(found, "0")]
    np.testing.assert_allclose(sorted(parts), [3.0 * 12**0.5, 4.0 * 12**0.5], rtol=1e-12)


def test_a_collapsed_graph_is_small(arrays):
    def deep(x):
        for _ in range(40):
            x = np.tanh(x) * 0.5
        return np.sum(x)

    found = described(dtrain.trace(deep, arrays[0]), 10)
    assert len(found["graph"]["boxes"]) <= 12


def test_the_operation_that_makes_a_value_not_finite_is_named():
    with np.errstate(all="ignore"):
        found = described(dtrain.trace(lambda x: np.sum(np.exp(np.sqrt(x))), np.array([1.0, -1.0])))
    (origin,) = found["origins"]
    assert (origin["what"], origin["op"]) == ("value", "sqrt")
    assert "test_figures.py:" in origin["line"]
    assert found["graph"]["boxes"][origin["box"]]["label"] == "√"


def test_the_operation_that_makes_a_gradient_not_finite_is_named():
    with np.errstate(all="ignore"):
        found = described(dtrain.trace(lambda x: np.sum(np.sqrt(x * 2.0)), np.array([1.0, 0.0])))
    assert [(o["what"], o["op"]) for o in found["origins"]] == [("gradient", "sqrt")]


def test_an_input_that_is_not_finite_is_the_origin_itself():
    found = described(dtrain.trace(lambda x: np.sum(x * 2.0), np.array([1.0, np.nan])))
    assert [(o["what"], o["op"]) for o in found["origins"]] == [("value", "0")]


def test_the_drawing_tells_the_norms_and_marks_the_origin():
    with np.errstate(all="ignore"):
        found = described(dtrain.trace(lambda x: np.sum(np.sqrt(x)), np.array([4.0, -1.0, 2.0])))
    root = ET.fromstring(drawn(found, "a < b"))
    texts = {text.text: text.get("class") for text in root.iter(f"{SVG}text")}
    assert texts["‖4.58‖"] == "value"
    assert texts["1 not finite"] in ("value not-finite", "gradient not-finite")
    assert [g.get("data-box") for g in root.iter(f"{SVG}g") if "origin" in g.get("class")] == ["1"]
    assert root.find(f"{SVG}style") is None


def test_boxes_stay_where_they_are_whatever_the_figures_are(arrays):
    small, large = (described(dtrain.trace(model, arrays[0] * factor, arrays[1])) for factor in (1.0, 1e-9))
    assert small["graph"] == large["graph"]
    places = [
        [g.find(f"{SVG}rect").get("x") for g in ET.fromstring(drawn(f, "t")).iter(f"{SVG}g")] for f in (small, large)
    ]
    assert places[0] == places[1]
