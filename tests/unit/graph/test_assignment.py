"""Item assignment on a traced array."""

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import ShapeError, TraceError

X = np.array([0.3, -1.2, 0.7, 2.0])


def test_assignment_is_recorded_as_a_new_value():
    def f(x):
        u = np.zeros_like(x)
        u[0] = x[0]
        for i in range(1, 4):
            u[i] = u[i - 1] * 0.9 + np.sin(x[i])
        u[np.array([1, 1])] = x[:2] * 2
        u[u < 0] = 0.5
        return u * u

    assert np.array_equal(graph.vjp(f, X)[0], f(X))
    graph.check_grads(f, [X], order=2)


def test_an_older_view_is_refused():
    def f(x):
        u = x.copy()
        view = u[:2]
        u[0] = 3.0
        return np.sum(view)

    with pytest.raises(TraceError, match="older than an assignment"):
        graph.grad(f)(X)


@pytest.mark.parametrize("compiled", [True, False])
def test_assignment_to_what_a_nested_vjp_took_or_gave(compiled):
    def result(x):
        y, pullback = graph.vjp(np.square, x)
        y[0] = 7.0
        return np.sum(y * pullback(y)[0])  # y is the new value, the pullback is that of the old one

    def argument(x):
        y = x.copy()
        _, pullback = graph.vjp(lambda y: y**3, y)
        y[0] = 2.0
        return np.sum(y * pullback(np.ones(4))[0])

    value, gradient = graph.value_and_grad(result, compile=compiled)(X)
    assert value == pytest.approx(7**2 * 2 * X[0] + np.sum(2 * X[1:] ** 5), rel=1e-14)
    np.testing.assert_allclose(gradient, [98, *10 * X[1:] ** 4], rtol=1e-14)
    value, gradient = graph.value_and_grad(argument, compile=compiled)(X)
    assert value == pytest.approx(6 * X[0] ** 2 + np.sum(3 * X[1:] ** 3), rel=1e-14)
    np.testing.assert_allclose(gradient, [12 * X[0], *9 * X[1:] ** 2], rtol=1e-14)


def test_floats_with_a_gradient_are_not_put_into_integers():
    def f(x):
        u = np.zeros_like(x, dtype=int)
        u[0] = x[0]
        return np.sum(u * x)

    for compiled in (True, False):
        with pytest.raises(
            TraceError, match=r"of float64 to an array of int64 at .*lose the gradient.*x\.astype\(int\)"
        ):
            graph.grad(f, compile=compiled)(X)

    def rounded(x):
        u = np.zeros_like(x, dtype=int)
        u[:2] = x[:2].astype(int)
        u[3] = 1.7
        return np.sum(u * x)

    np.testing.assert_array_equal(graph.grad(rounded)(X), [0, -1, 0, 1])


@pytest.mark.parametrize("compiled", [True, False])
def test_in_place_operators_change_every_name_of_an_array(compiled):
    def f(x):
        u = x * 2.0
        other, square = u, u * u
        u += x
        u[1:3] *= 3.0
        u[0] -= x[3]
        u[[0, 0, 3]] /= 2.0
        u **= 2
        row = u[2:]
        row += 1.0
        number = x[0]
        same = number
        number += 5.0
        return np.sum(other * u) + np.sum(square) + same * number

    value, gradient = graph.value_and_grad(f, compile=compiled)(X)
    assert value == pytest.approx(f(X.copy()), rel=1e-14)
    for i, step in enumerate(np.eye(4) * 1e-6):
        assert gradient[i] == pytest.approx((f(X + step) - f(X - step)) / 2e-6, rel=1e-6)


def test_in_place_operators_say_where_they_cannot_be_right():
    for use, words in (
        (lambda u, x: u.reshape(2, 2).__iadd__(1.0), r"in-place operation on a view .*write x = x \+ y"),
        (lambda u, x: x[1:].__iadd__(1.0), "argument.* at .*use x = x.copy"),
        (lambda u, x: u[0:1].__iadd__(x), r"\(4,\) does not fit into \(1,\)"),
        (lambda u, x: np.argsort(x).__iadd__(x), "float64 does not fit into int64"),
    ):
        with pytest.raises((TraceError, ShapeError), match=words):
            graph.grad(lambda x, use=use: np.sum(use(x.copy(), x)))(X)

    x = X.copy()
    assert graph.grad(lambda x: np.sum(x.__iadd__(1.0) * x))(x).tolist() == [2 * v + 1 for v in X]
    assert np.array_equal(x, X)
