"""The gradient check finds wrong rules, names kinks, and accepts right ones."""

from __future__ import annotations

import numpy as np
import pytest

import dtrain
from dtrain import graph
from dtrain.errors import InputError
from dtrain.graph.check import ArgumentCheck


@pytest.fixture
def wrong_square():
    @graph.primitive(np.square, name="wrong_square")
    def wrong_square(g, out, x):
        """A square whose gradient is 1 % off."""
        return g * x * 2.02

    return wrong_square


def test_a_right_gradient_passes_by_complex_step():
    report = graph.check_grads(lambda p, x: np.tanh(x @ p["w"]), [{"w": np.eye(3)}, np.ones((2, 3))], order=2)
    assert [a.name for a in report.arguments[:2]] == ["argument 0 (w)", "argument 1"]
    assert report.arguments[0].method == "complex step"
    assert report.arguments[0].relative_error < 1e-13
    assert report.relative_error < 1e-7
    assert "(right)" in str(report)


def test_a_wrong_gradient_is_refused_with_the_figure(wrong_square):
    with pytest.raises(
        graph.GradientCheckError, match=r"argument 0: gradient .* relative error 9\.9.e-03 \(probably wrong\)"
    ):
        graph.check_grads(lambda x: np.sum(wrong_square(x)), [np.array([1.0, 2.0])])
    with pytest.raises(AssertionError):
        graph.check_grads(lambda x: np.sum(wrong_square(x)), [np.array([1.0, 2.0])])


def test_a_kink_between_the_points_is_named():
    report = graph.check_grads(lambda x: np.sum(np.maximum(x, 0.0)), [np.array([1e-8, 1.0])])
    (found,) = report.arguments
    assert found.kinks[0].startswith("relu at ")
    assert "test_check.py" in found.kinks[0]
    assert "kinks crossed: relu at" in str(report)


def test_integers_are_left_out_and_float32_is_checked_in_double():
    report = graph.check_grads(
        lambda x, i: np.sum(np.square(x[i])), [np.ones(3, np.float32), np.array([0, 0, 2])], order=2
    )
    assert {a.name for a in report.arguments} == {"argument 0"}
    assert report.relative_error < 1e-7


def test_forward_and_reverse_are_checked_to_the_second_order(wrong_square):
    args = [{"w": np.eye(3), "n": 2}, np.ones((2, 3))]
    report = dtrain.check_grads(lambda p, x: np.tanh(x @ p["w"]) * p["n"], args, modes=("fwd", "rev"), order=2)
    first = ["argument 0 (w)", "argument 0 (w), forward", "argument 1", "argument 1, forward"]
    assert [a.name for a in report.arguments] == first * 2
    assert report.relative_error < 1e-7
    with pytest.raises(graph.GradientCheckError, match=r"argument 0, forward: .* relative error 9\.9.e-03"):
        dtrain.check_grads(lambda x: np.sum(wrong_square(x)), [np.array([1.0, 2.0])], modes=("fwd",))
    with pytest.raises(InputError, match="expected some of fwd and rev, got both"):
        dtrain.check_grads(np.tanh, [1.0], modes=("both",))


def test_entries_are_checked_alone():
    report = dtrain.check_grads(lambda w: np.sum(np.sin(w)), [np.ones((2, 3))], entries=9)
    assert sorted(a.name for a in report.arguments[1:]) == [f"argument 0[{i}, {j}]" for i in (0, 1) for j in (0, 1, 2)]
    assert len({a.analytic for a in report.arguments[1:]}) == 1  # cos(1), times the weight of the output


def test_rounding_is_no_error_of_a_gradient_that_is_zero():
    def f(b, y):
        h = y + b - np.mean(y + b)  # does not depend on b
        return np.sum(h * np.abs(h) + 3 * h * h * np.abs(h))

    report = dtrain.check_grads(f, [np.array(0.3), np.linspace(0.1, 3.0, 51) ** 2])
    assert report.arguments[0].method == "central difference"
    assert report.relative_error < 1e-6


@pytest.mark.parametrize(("error", "word"), [(1e-9, "right"), (1e-5, "doubtful"), (1e-3, "probably"), (0.5, "wrong")])
def test_bands(error, word):
    assert word in ArgumentCheck("x", 1.0, 1.0, "central difference", error).band
