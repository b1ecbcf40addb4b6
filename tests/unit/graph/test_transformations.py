"""jvp, jacobian, hessian, hvp and elementwise_grad against PyTorch in float64 and against their own identities."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pytest
import torch

import dtrain
from dtrain import graph
from dtrain.errors import TraceError
from tests.ops_table import SAMPLES

RNG = np.random.default_rng(0)
both = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "each call"])


@dataclass
class Layer:
    w: np.ndarray
    b: np.ndarray


def network(p, x):
    h = np.tanh(x @ p["first"].w + p["first"].b)
    return np.tanh(h @ p["rest"][0] + p["rest"][1])


def loss(p, x):
    return np.sum(network(p, x) ** 2) / 3.0


def normal(*shape):
    return RNG.standard_normal(shape)


def tree():
    return {"first": Layer(normal(4, 5), normal(5)), "rest": [normal(5, 2), normal(2)]}


def torch_loss(b, w, w2, b2, x):
    return (torch.tanh(torch.tanh(x @ w + b) @ w2 + b2) ** 2).sum() / 3.0


def leaves(t):
    return [t["first"].b, t["first"].w, t["rest"][0], t["rest"][1]]


def assert_trees(ours, theirs):
    for a, b in zip(leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def assert_dual(f, inputs, compiled):
    """⟨u, Jv⟩ = ⟨Jᵀu, v⟩ for random u and v."""
    tangents = [normal(*a.shape) for a in inputs]
    out, moved = graph.jvp(f, inputs, tangents, compile=compiled)
    np.testing.assert_allclose(out, f(*inputs), rtol=1e-13, atol=1e-14)
    if moved is None:
        assert out.dtype.kind != "f"
        return
    u = normal(*np.shape(out))
    _, pullback = graph.vjp(f, *inputs)
    there = np.sum(u * moved)
    back = sum(np.sum(g * v) for g, v in zip(pullback(u), tangents, strict=True))
    np.testing.assert_allclose(there, back, rtol=1e-6, atol=1e-6)  # some operations pass through single precision


def is_real(sample):
    """The inner product above is that of real arrays."""
    return all(np.asarray(a).dtype.kind != "c" for a in (*sample.inputs, sample.function(*sample.inputs)))


@pytest.mark.parametrize("sample", [s for s in SAMPLES if is_real(s)], ids=lambda s: s.name)
def test_forward_and_reverse_mode_are_transposes_for_every_operation(sample):
    assert_dual(sample.function, [np.asarray(a) for a in sample.inputs], compiled=True)


@both
def test_jvp_over_a_tree_is_pytorchs(compiled):
    p, v, x, vx = tree(), tree(), normal(6, 4), normal(6, 4)
    value, moved = graph.jvp(loss, (p, x), (v, vx), compile=compiled)
    want, want_moved = torch.func.jvp(
        torch_loss,
        tuple(torch.tensor(a) for a in (*leaves(p), x)),
        tuple(torch.tensor(a) for a in (*leaves(v), vx)),
    )
    assert value == pytest.approx(want.item(), rel=1e-13)
    assert moved == pytest.approx(want_moved.item(), rel=1e-12)


@both
def test_jvp_of_several_results_static_leaves_and_what_does_not_depend(compiled):
    def f(x, n, y):
        return {"power": x**n, "constant": np.ones(2), "mask": x > 0, "other": y * 2.0, "name": "n"}

    x, y = np.array([1.0, -2.0]), np.array([3.0])
    value, moved = graph.jvp(f, (x, 3, y), (np.array([1.0, 10.0]), None, None), compile=compiled)
    np.testing.assert_array_equal(value["power"], [1.0, -8.0])
    np.testing.assert_array_equal(moved["power"], [3.0, 120.0])
    np.testing.assert_array_equal(moved["constant"], [0.0, 0.0])
    np.testing.assert_array_equal(moved["other"], [0.0])
    assert moved["mask"] is None
    assert moved["name"] is None


@both
def test_jvp_nests_and_does_not_mix_levels(compiled):
    d = lambda f: lambda x: graph.jvp(f, (x,), (1.0,), compile=compiled)[1]  # noqa: E731
    assert d(lambda x: x * d(lambda y: x + y)(1.0))(1.0) == 1.0
    assert d(d(d(lambda x: x**4)))(2.0) == pytest.approx(48.0)
    assert graph.grad(d(np.sin), compile=compiled)(0.5) == pytest.approx(-np.sin(0.5))
    assert d(graph.grad(lambda x: np.exp(2.0 * x)))(0.5) == pytest.approx(4 * np.exp(1.0))


def test_forward_mode_computes_nothing_twice():
    recorded = graph.trace(lambda x, v: graph.jvp(np.sin, (x,), (v,)), np.ones(3), np.ones(3))
    steps = [s.op.name for s in graph.Plan(recorded.inputs, recorded.outputs).steps]
    assert sorted(steps) == ["cos", "multiply", "sin"]


def test_errors_of_jvp():
    with pytest.raises(TypeError, match=r"as tuples: jvp\(f, \(x,\), \(v,\)\)"):
        graph.jvp(np.sin, np.ones(2), np.ones(2))
    with pytest.raises(TraceError, match="jvp of sin: 1 arguments and 2 tangents"):
        graph.jvp(np.sin, (1.0,), (1.0, 2.0))
    with pytest.raises(TraceError, match=r"the tangent of argument 0 must have shape \(2,\), got \(3,\)"):
        graph.jvp(np.sin, (np.ones(2),), (np.ones(3),))
    with pytest.raises(TraceError, match="argument 0 and its tangent differ in structure"):
        graph.jvp(lambda p: p["a"], ({"a": 1.0},), (1.0,))
    with pytest.raises(TraceError, match=r"the tangent of argument 0 \(a\) must have shape \(\), got str"):
        graph.jvp(lambda p: p["a"], ({"a": 1.0},), ({"a": "b"},))


@both
def test_hessian_vector_products_are_pytorchs(compiled):
    p, v, x = tree(), tree(), normal(6, 4)
    ours = graph.hvp(loss, p, v, x, compile=compiled)
    _, theirs = torch.autograd.functional.hvp(
        lambda *t: torch_loss(*t, torch.tensor(x)),
        tuple(torch.tensor(a) for a in leaves(p)),
        tuple(torch.tensor(a) for a in leaves(v)),
    )
    assert_trees(ours, theirs)


def test_hvp_refuses_what_is_not_like_x():
    with pytest.raises(TraceError, match="x and v must have one structure and the same shapes"):
        graph.hvp(lambda x: np.sum(x**2), np.ones(2), np.ones(3))
    with pytest.raises(TraceError, match="argument 0 of type int64 does not exist"):
        graph.hvp(lambda x: np.sum(x**2), np.ones(2, int), np.ones(2))
    with pytest.raises(TraceError, match=r"must return a scalar to be differentiated, got shape \(2,\)"):
        graph.hvp(lambda x: x**2, np.ones(2), np.ones(2))


@both
def test_the_jacobian_of_a_tree_by_rows_is_pytorchs(compiled):
    p, x = tree(), normal(2, 4)
    ours = graph.jacobian(lambda p: {"y": network(p, x)}, compile=compiled)(p)["y"]
    theirs = torch.autograd.functional.jacobian(
        lambda b, w, w2, b2: torch.tanh(torch.tanh(torch.tensor(x) @ w + b) @ w2 + b2),
        tuple(torch.tensor(a) for a in leaves(p)),
    )
    assert ours["first"].w.shape == (2, 2, 4, 5)
    assert_trees(ours, theirs)


@both
def test_the_jacobian_by_columns_is_pytorchs(compiled):
    a, x, s = normal(6, 3), normal(3), 0.5

    def f(x, s):
        return np.sin(a @ x) * s, np.outer(x, x), 7.0

    (g1, h1), (g2, h2), (g3, h3) = graph.jacobian(f, (0, 1), compile=compiled)(x, s)
    rows, outer = torch.autograd.functional.jacobian(
        lambda x, s: (torch.sin(torch.tensor(a) @ x) * s, torch.outer(x, x)),
        (torch.tensor(x), torch.tensor(s, dtype=torch.float64)),
    )
    for ours, theirs in ((g1, rows[0]), (h1, rows[1]), (g2, outer[0]), (h2, outer[1])):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(g3, np.zeros(3))
    assert h3 == 0.0


def test_the_graph_of_a_jacobian_does_not_grow_with_its_size():
    def nodes(n):
        return len(graph.trace(graph.jacobian(np.tanh), np.ones(n)).nodes)

    assert nodes(5) == nodes(500)


@both
def test_hessians_are_pytorchs(compiled):
    p, x = tree(), normal(6, 4)
    ours = graph.hessian(loss, compile=compiled)(p, x)
    theirs = torch.autograd.functional.hessian(
        lambda *t: torch_loss(*t, torch.tensor(x)), tuple(torch.tensor(a) for a in leaves(p))
    )
    for row, want in zip(leaves(ours), theirs, strict=True):
        assert_trees(row, want)


def test_hessians_for_several_arguments_and_derivatives_of_them():
    f = lambda x, y: np.sum(x**3) * y  # noqa: E731
    x = np.array([1.0, 2.0])
    (xx, xy), (yx, yy) = graph.hessian(f, (0, 1))(x, 2.0)
    np.testing.assert_allclose(xx, np.diag(12.0 * x))
    np.testing.assert_allclose(xy, 3 * x**2)
    np.testing.assert_allclose(yx, 3 * x**2)
    assert yy == 0.0
    third = graph.jacobian(graph.hessian(lambda x: np.sum(x**4)))(x)
    want = np.zeros((2, 2, 2))
    want[[0, 1], [0, 1], [0, 1]] = 24 * x
    np.testing.assert_allclose(third, want)
    trace_of = graph.grad(lambda x: np.trace(graph.hessian(lambda x: np.sum(np.sin(x) * x))(x)))
    np.testing.assert_allclose(trace_of(x), -3 * np.sin(x) - x * np.cos(x))
    v = np.array([0.3, -0.7])
    g = lambda x: np.sin(x[0] * x[1]) * x[0]  # noqa: E731
    np.testing.assert_allclose(graph.hvp(g, x, v), graph.hessian(g)(x) @ v, rtol=1e-13)
    np.testing.assert_allclose(graph.jvp(graph.grad(g), (x,), (v,))[1], graph.hessian(g)(x) @ v, rtol=1e-13)


@both
def test_jacobians_of_empty_arrays_and_of_what_is_no_float(compiled):
    assert graph.jacobian(np.sin, compile=compiled)(np.ones(0)).shape == (0, 0)
    assert graph.jacobian(lambda x: x[:0], compile=compiled)(np.ones(3)).shape == (0, 3)
    with pytest.raises(TraceError, match=r"jacobian of <lambda>: its result \(a\) of type bool has no derivative"):
        graph.jacobian(lambda x: {"a": x > 0}, compile=compiled)(np.ones(3))
    with pytest.raises(TraceError, match="argument 0 of type int64 does not exist"):
        graph.jacobian(np.sin, compile=compiled)(np.ones(3, int))
    with pytest.raises(TypeError, match="argnums names argument 2, but sin was called with 1"):
        graph.hessian(np.sin, 2, compile=compiled)(np.ones(3))


@both
def test_elementwise_derivatives(compiled):
    x = normal(3, 4)
    d = lambda f: graph.elementwise_grad(f, compile=compiled)  # noqa: E731
    np.testing.assert_allclose(d(np.tanh)(x), 1 - np.tanh(x) ** 2, rtol=1e-14)
    np.testing.assert_allclose(d(d(d(np.sin)))(x), -np.cos(x), rtol=1e-14)
    gx, gy = graph.elementwise_grad(lambda x, y: x * np.exp(y), (0, 1), compile=compiled)(x, x)
    np.testing.assert_allclose(gx, np.exp(x), rtol=1e-15)
    np.testing.assert_allclose(gy, x * np.exp(x), rtol=1e-15)
    with pytest.raises(TraceError, match="must return one array, got dict"):
        graph.elementwise_grad(lambda x: {"a": x})(x)


def test_transformations_are_cached_by_function_and_signature():
    calls = []

    def f(x):
        calls.append(1)
        return np.sum(x**3)

    x = np.ones(3)
    for _ in range(3):
        graph.jvp(f, (x,), (x,))
        graph.hvp(f, x, x)
        graph.hessian(f)(x)
        graph.jacobian(f)(x)
        graph.elementwise_grad(f)(x)
    assert len(calls) == 5


def test_transformed_functions_travel_between_processes():
    d = graph.grad(lambda x: np.sum(x**3))
    again = pickle.loads(cloudpickle.dumps(d))
    np.testing.assert_array_equal(again(np.full(2, 2.0)), [12.0, 12.0])


def test_the_package_root_has_them():
    for name in set(dtrain.__all__) - {"__version__", "fit"}:
        assert getattr(dtrain, name) is getattr(graph, name)
