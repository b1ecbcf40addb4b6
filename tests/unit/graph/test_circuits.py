"""The worked circuits and losses of the lecture, to the digits that it gives."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain import graph

both = pytest.mark.parametrize("compiled", [True, False], ids=["planned", "eager"])


def gradients(f, *args, compiled=True):
    value, found = graph.value_and_grad(f, tuple(range(len(args))), compile=compiled)(*map(float, args))
    return float(value), [float(g) for g in found]


def edges(f, *args):
    """Return {operation: (value, gradient)} of every node of the forward circuit."""
    recorded = graph.trace(f, *map(float, args))
    nodes = [n for n in recorded.nodes if not n.is_constant]
    found = graph.backward(recorded.outputs, None, nodes)
    return [(n.op.name if n.op else n.name, float(n.value), float(g.value)) for n, g in zip(nodes, found, strict=True)]


@both
def test_sum_times_z(compiled):
    assert gradients(lambda x, y, z: (x + y) * z, -2, 5, -4, compiled=compiled) == (-12.0, [-4.0, -4.0, 3.0])


def test_the_inner_edge_of_sum_times_z():
    assert ("add", 3.0, -4.0) in edges(lambda x, y, z: (x + y) * z, -2, 5, -4)


@both
def test_single_gates(compiled):
    assert gradients(lambda x, y: x * y, 4, -3, compiled=compiled) == (-12.0, [-3.0, 4.0])
    assert gradients(np.maximum, 4, 2, compiled=compiled) == (4.0, [1.0, 0.0])
    assert gradients(lambda x, y: x + y, 4, 2, compiled=compiled) == (6.0, [1.0, 1.0])


def test_sigmoid_neuron_edge_by_edge():
    def neuron(w0, x0, w1, x1, w2):
        return 1.0 / (1.0 + np.exp(-(w0 * x0 + w1 * x1 + w2)))

    found = edges(neuron, 2, -1, -3, -2, -3)
    expected = [
        ("0", 2, -0.19661193324148188),
        ("1", -1, 0.39322386648296376),
        ("2", -3, -0.39322386648296376),
        ("3", -2, -0.58983579972444565),
        ("4", -3, 0.19661193324148188),
        ("multiply", -2, 0.19661193324148188),
        ("multiply", 6, 0.19661193324148188),
        ("add", 4, 0.19661193324148188),
        ("add", 1, 0.19661193324148188),
        ("negative", -1, -0.19661193324148188),
        ("exp", 0.36787944117144233, -0.534446645388523),
        ("add", 1.3678794411714423, -0.534446645388523),
        ("divide", 0.7310585786300049, 1),
    ]
    assert [name for name, _, _ in found] == [name for name, _, _ in expected]
    np.testing.assert_allclose([e[1:] for e in found], [e[1:] for e in expected], rtol=0, atol=1e-15)


@both
def test_the_fused_sigmoid_gives_the_same(compiled):
    value, found = gradients(
        lambda w0, x0, w1, x1, w2: graph.sigmoid(w0 * x0 + w1 * x1 + w2), 2, -1, -3, -2, -3, compiled=compiled
    )
    assert value == pytest.approx(0.7310585786300049, abs=1e-15)
    exact = 0.19661193324148188
    np.testing.assert_allclose(found, [-exact, 2 * exact, -2 * exact, -3 * exact, exact], rtol=0, atol=1e-15)


@both
def test_patterns(compiled):
    value, found = gradients(lambda x, y, z, w: 2 * (x * y + np.maximum(z, w)), 3, -4, 2, -1, compiled=compiled)
    assert (value, found) == (-20.0, [-8.0, 6.0, 2.0, 0.0])


@both
def test_fork(compiled):
    def f(x, y):
        return (x + graph.sigmoid(y)) / (graph.sigmoid(x) + (x + y) ** 2)

    value, found = gradients(f, 3, -4, compiled=compiled)
    assert value == pytest.approx(1.5456448841066441, abs=1e-15)
    assert found == pytest.approx([2.0595697955721652, 1.5922327514838093], abs=1e-14)


@both
def test_the_second_example_of_micrograd(compiled):
    def f(a, b):
        c = a + b
        d = a * b + b**3
        c = c + c + 1
        c = c + 1 + c + -a
        d = d + d * 2 + np.maximum(b + a, 0)
        d = d + 3 * d + np.maximum(b - a, 0)
        f = (c - d) ** 2
        return f / 2.0 + 10.0 / f

    value, found = gradients(f, -4, 2, compiled=compiled)
    assert value == pytest.approx(24.70408163265306, abs=1e-13)
    assert found == pytest.approx([138.83381924198252, 645.5772594752186], abs=1e-11)


@both
def test_tanh_neuron(compiled):
    def neuron(x1, x2, w1, w2):
        return np.tanh(x1 * w1 + x2 * w2 + 6.8813735870195432)

    value, found = gradients(neuron, 2, 0, -3, 1, compiled=compiled)
    assert value == pytest.approx(0.7071067811865476, abs=1e-15)
    assert found == pytest.approx([-1.5, 0.5, 1.0, 0.0], abs=1e-14)


SCORES = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
LABELS = np.arange(3)


def hinge(s, y, power=1):
    margin = np.maximum(0, s - np.take_along_axis(s, y[:, None], 1) + 1.0)
    return np.sum(np.where(np.arange(s.shape[1]) == y[:, None], 0.0, margin**power), axis=1)


def cross_entropy(s, y):
    return graph.logsumexp(s, axis=1) - s[np.arange(len(y)), y]


def traced(f, *args):
    return np.asarray(graph.trace(f, *args).outputs[0].value)


def test_the_losses_of_three_images():
    np.testing.assert_allclose(traced(lambda s: hinge(s, LABELS), SCORES), [2.9, 0, 12.9], atol=1e-14)
    np.testing.assert_allclose(traced(lambda s: hinge(s, LABELS, 2), SCORES), [8.41, 0, 83.25], atol=1e-13)
    value, g = graph.value_and_grad(lambda s: np.sum(hinge(s, LABELS)))(SCORES)
    assert value / 3 == pytest.approx(5.2666667, abs=5e-8)
    np.testing.assert_array_equal(g, [[-1, 1, 0], [0, 0, 0], [1, 1, -2]])
    losses = traced(lambda s: cross_entropy(s, LABELS), SCORES)
    np.testing.assert_allclose(losses, [2.0403551528, 0.0791317783, 6.1564772017], atol=5e-11)
    assert losses.mean() == pytest.approx(2.7586547109, abs=5e-11)
    g = graph.grad(lambda s: np.sum(cross_entropy(s, LABELS)))(SCORES)
    np.testing.assert_allclose(g[0] + [1, 0, 0], [0.12998254, 0.86904954, 0.00096793], atol=5e-9)


def test_the_losses_of_ten_classes():
    scores = np.array(
        [
            [-3.45, -8.87, 0.09, 2.9, 4.48, 8.02, 3.78, 1.06, -0.36, -0.72],
            [-0.51, 6.04, 5.31, -4.22, -4.19, 3.58, 4.49, -4.37, -2.09, -2.93],
            [3.42, 4.64, 2.65, 5.1, 2.64, 5.55, -4.34, -1.5, -4.79, 6.14],
        ]
    )
    labels = np.array([3, 1, 6])
    np.testing.assert_allclose(traced(lambda s: hinge(s, labels), scores), [10.58, 0.27, 71.91], atol=1e-13)
    losses = traced(lambda s: cross_entropy(s, labels), scores)
    np.testing.assert_allclose(losses, [5.1698427276, 0.5774809508, 11.2944847672], atol=5e-11)
    assert losses.mean() == pytest.approx(5.6806028152, abs=5e-11)


def test_svm_beside_softmax():
    w = np.array([[0.01, -0.05, 0.1, 0.05], [0.7, 0.2, 0.05, 0.16], [0, -0.45, -0.2, 0.03]])
    x, b, y = np.array([-15.0, 22, -44, 56]), np.array([0, 0.2, -0.3]), np.array([2])
    scores = traced(lambda w, b: w @ x + b, w, b)
    np.testing.assert_allclose(scores, [-2.85, 0.86, 0.28], atol=1e-14)
    assert traced(lambda s: hinge(s[None], y), scores)[0] == pytest.approx(1.58, abs=1e-14)
    assert traced(lambda s: cross_entropy(s[None], y), scores)[0] == pytest.approx(1.0401905694, abs=5e-11)
    g = graph.grad(lambda s: cross_entropy(s[None], y)[0])(scores)
    np.testing.assert_allclose(g + np.array([0, 0, 1]), [0.0154493, 0.6311634, 0.3533873], atol=5e-8)


def test_extremes():
    g = graph.grad(lambda s: cross_entropy(s[None], np.array([0]))[0])(np.array([123.0, 456, 789]))
    np.testing.assert_allclose(g, [-1, 0, 1], atol=1e-15)
    zeros = np.zeros((1, 10))
    assert traced(lambda s: cross_entropy(s, np.array([4])), zeros)[0] == pytest.approx(2.302585, abs=5e-7)
    assert traced(lambda s: hinge(s, np.array([4])), zeros)[0] == 9.0
