"""grad, value_and_grad, vjp and trace: trees, caching, nesting, threads."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from dtrain import graph

both = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "each call"])


@both
def test_value_and_gradient_of_a_tree(compiled):
    @dataclass
    class Layer:
        w: np.ndarray
        b: np.ndarray

    class Pair(NamedTuple):
        first: Layer
        rest: list

    def f(p, x):
        h = np.tanh(x @ p.first.w + p.first.b)
        return np.sum(h * p.rest[0]["scale"])

    p = Pair(Layer(np.eye(2), np.zeros(2)), [{"scale": np.array(2.0)}])
    value, g = graph.value_and_grad(f, compile=compiled)(p, np.ones((3, 2)))
    assert value == pytest.approx(12 * np.tanh(1.0))
    assert isinstance(g, Pair)
    assert isinstance(g.first, Layer)
    np.testing.assert_allclose(g.first.b, 6 * (1 - np.tanh(1.0) ** 2))
    assert g.rest[0]["scale"] == pytest.approx(6 * np.tanh(1.0))


@both
def test_argnums_and_aux(compiled):
    def f(x, y):
        return np.sum(x * y), {"double": 2 * x, "name": "n"}

    x, y = np.arange(3.0), np.ones(3)
    (value, aux), (gx, gy) = graph.value_and_grad(f, (0, 1), has_aux=True, compile=compiled)(x, y)
    assert value == 3.0
    np.testing.assert_array_equal(aux["double"], 2 * x)
    assert aux["name"] == "n"
    np.testing.assert_array_equal(gx, y)
    np.testing.assert_array_equal(gy, x)
    g, aux = graph.grad(f, -1, has_aux=True, compile=compiled)(x, y)
    np.testing.assert_array_equal(g, x)


@both
def test_second_and_third_derivatives(compiled):
    f = lambda x: x**4 + np.sin(x)  # noqa: E731
    d = lambda f: graph.grad(f, compile=compiled)  # noqa: E731
    assert d(f)(2.0) == pytest.approx(32 + np.cos(2.0))
    assert d(d(f))(2.0) == pytest.approx(48 - np.sin(2.0))
    assert d(d(d(f)))(2.0) == pytest.approx(48 - np.cos(2.0))


@both
def test_nested_derivatives_do_not_mix(compiled):
    d = lambda f: graph.grad(f, compile=compiled)  # noqa: E731
    # Siskind and Pearlmutter's perturbation confusion: d/dx (x · d/dy (x + y)) = 1.
    assert d(lambda x: x * d(lambda y: x + y)(1.0))(1.0) == 1.0
    assert d(lambda x: x * d(lambda y: x * y)(2.0))(3.0) == 6.0
    assert d(lambda x: d(lambda y: x * y * y)(x))(3.0) == pytest.approx(12.0)


def test_hessian_vector_product():
    a = np.array([[2.0, 1.0], [1.0, 3.0]])
    f = lambda x: 0.5 * x @ a @ x  # noqa: E731
    v = np.array([1.0, -1.0])
    product = graph.grad(lambda x: np.sum(graph.grad(f)(x) * v))
    np.testing.assert_allclose(product(np.array([0.3, 0.4])), a @ v)


def test_it_traces_once_for_each_signature_and_static_argument():
    calls = []

    def f(x, n, flag=True):
        calls.append(n)
        return np.sum(x**n)

    g = graph.grad(f)
    for _ in range(3):
        np.testing.assert_allclose(g(np.full(2, 3.0), 2), 6.0)
    assert calls == [2]
    g(np.full(3, 3.0), 2)
    g(np.full(2, 3.0, np.float32), 2)
    g(np.full(2, 3.0), 3)
    graph.grad(f)(np.full(2, 3.0), 2)  # another wrapper of the same function shares the cache
    assert calls == [2, 2, 2, 3]


def test_static_true_and_one_are_told_apart():
    f = lambda x, s: x * (10.0 if s is True else 1.0)  # noqa: E731
    assert graph.grad(f)(1.0, 1) == 1.0
    assert graph.grad(f)(1.0, True) == 10.0


def test_a_python_float_is_an_input_and_is_weak():
    calls = []

    def f(x, scale):
        calls.append(1)
        y = x * scale
        assert y.dtype == np.float32
        return np.sum(y)

    g = graph.value_and_grad(f, (0, 1))
    value, (gx, gs) = g(np.ones(3, np.float32), 0.5)
    assert gx.dtype == np.float32
    assert (value, gs, gs.dtype) == (1.5, 3.0, np.float64)
    assert g(np.ones(3, np.float32), 0.25)[0] == 0.75
    assert len(calls) == 1


@both
def test_results_are_fresh(compiled):
    g = graph.grad(lambda x: np.sum(x * x), compile=compiled)
    first = g(np.ones(3))
    kept = first.copy()
    second = g(np.full(3, 5.0))
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    first[...] = 0
    np.testing.assert_array_equal(g(np.full(3, 5.0)), second)


def test_a_closed_over_array_is_read_at_every_call():
    data = np.ones(3)
    f = graph.value_and_grad(lambda w: np.sum(w * data))
    assert f(np.ones(3))[0] == 3.0
    data[...] = 2.0
    value, g = f(np.ones(3))
    assert value == 6.0
    np.testing.assert_array_equal(g, data)
    assert not np.shares_memory(g, data)


def test_branching_each_call():
    def relu(x):
        return x if x > 0 else 0.0 * x

    g = graph.grad(relu, compile=False)
    assert (g(2.0), g(-2.0)) == (1.0, 0.0)


def test_values_are_real_while_tracing():
    seen = []

    def f(x):
        h = np.exp(x)
        seen.append(h.value.copy())
        assert "value=" in repr(h)
        return np.sum(h)

    graph.grad(f)(np.zeros(2))
    np.testing.assert_array_equal(seen[0], [1, 1])


def test_threads_share_one_compiled_function():
    g = graph.value_and_grad(lambda x: np.sum(np.exp(np.tanh(x) @ x.T)))
    inputs = [np.random.default_rng(i).standard_normal((20, 20)) for i in range(16)]
    expected = [g(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(g, inputs * 8))
    for i, (value, gradient) in enumerate(found):
        assert value == expected[i % 16][0]
        assert gradient.tobytes() == expected[i % 16][1].tobytes()


def test_a_dropped_function_frees_its_plans():
    big = np.ones(1000)

    def make():
        f = lambda x: np.sum(x * big)  # noqa: E731
        graph.grad(f)(np.ones(1000))
        return weakref.ref(f)

    reference = make()
    gc.collect()
    assert reference() is None


def test_vjp():
    x = np.arange(1.0, 4.0)
    out, pullback = graph.vjp(lambda x, k: {"square": x * x, "sum": np.sum(x)}, x, 3)
    np.testing.assert_array_equal(out["square"], x * x)
    g, none = pullback({"square": np.ones(3), "sum": np.array(10.0)})
    np.testing.assert_array_equal(g, 2 * x + 10)
    assert none is None
    g, _ = pullback({"square": np.zeros(3), "sum": np.array(1.0)})
    np.testing.assert_array_equal(g, np.ones(3))


@both
def test_an_output_without_dependence_has_zero_gradient(compiled):
    np.testing.assert_array_equal(graph.grad(lambda x: 3.0, compile=compiled)(np.ones(3)), np.zeros(3))
    _, gy = graph.grad(lambda x, y: np.sum(x), (0, 1), compile=compiled)(np.ones(3), np.ones(2))
    np.testing.assert_array_equal(gy, np.zeros(2))


@pytest.mark.parametrize("f", [lambda x: x, lambda x: np.positive(x), lambda x: +x, lambda x: x.reshape(())])
def test_the_identity(f):
    value, g = graph.value_and_grad(f)(2.0)
    assert (value, g) == (2.0, 1.0)


def test_conventions_at_kinks():
    assert graph.grad(lambda x: np.maximum(x, 0))(0.0) == 0.0
    assert graph.grad(lambda x: graph.relu(x))(0.0) == 0.0
    assert graph.grad(lambda x: np.abs(x))(0.0) == 0.0
    assert graph.grad(lambda x, y: np.maximum(x, y), (0, 1))(1.0, 1.0) == (0.5, 0.5)
    np.testing.assert_array_equal(graph.grad(lambda x: np.max(x))(np.array([1.0, 2.0, 2.0])), [0, 0.5, 0.5])


def test_in_place_rebinding_of_a_tensor():
    def f(x):
        y = x * 1.0
        y += x
        y *= 2.0
        return np.sum(y)

    np.testing.assert_array_equal(graph.grad(f)(np.ones(2)), [4.0, 4.0])


def test_scopes_and_lines_are_kept():
    def f(x):
        with graph.scope("layers"), graph.scope("0"):
            return np.exp(x)

    recorded = graph.trace(f, 1.0)
    (g,) = graph.backward(recorded.outputs, None, recorded.inputs)
    node = recorded.outputs[0]
    assert node.scope == "layers.0"
    assert node.location.endswith(f"test_api.py:{f.__code__.co_firstlineno + 2}")
    assert g.op.name == "multiply"
    assert (g.scope, g.location) == (node.scope, node.location)


@pytest.mark.parametrize("compiled", [True, False])
def test_keyword_arguments_are_passed_on_and_are_inputs(compiled):
    traces = []

    def f(x, y, *, scale, squared=False):
        traces.append(scale)
        return np.sum(scale * x * y**2) if squared else np.sum(scale * x * y)

    x, y = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    for scale in (np.array([2.0, 7.0]), np.array([0.5, 1.5])):
        for argnums, expected in (
            (0, scale * y**2),
            (-1, 2 * scale * x * y),
            ((0, -1), (scale * y**2, 2 * scale * x * y)),
        ):
            found = graph.grad(f, argnums, compile=compiled)(x, y, scale=scale, squared=True)
            np.testing.assert_allclose(found, expected, rtol=1e-15)
    np.testing.assert_allclose(graph.elementwise_grad(f, -1, compiled)(x, y, scale=3.0), 3 * x, rtol=1e-15)
    hessian = graph.hessian(f, -1, compiled)(x, y, scale=3.0, squared=True)
    np.testing.assert_allclose(hessian, np.diag(6 * x), rtol=1e-15)
    assert len(traces) == (5 if compiled else 8)
    with pytest.raises(TypeError, match="argnums names argument 2, but f was called with 2"):
        graph.grad(f, 2)(x, y, scale=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sclae'"):
        graph.grad(f)(x, y, sclae=1.0)


@pytest.mark.parametrize("compiled", [True, False])
def test_an_array_of_one_element_is_a_scalar(compiled):
    value, gradient = graph.value_and_grad(lambda x: np.sum(x**2, keepdims=True), compile=compiled)(np.arange(3.0))
    np.testing.assert_array_equal(value, [5.0])
    np.testing.assert_array_equal(gradient, [0.0, 2.0, 4.0])
