"""Gradient rules of the user: `primitive` and `custom_vjp`."""

from __future__ import annotations

import pickle
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch

import dtrain
from dtrain import graph
from dtrain.errors import ShapeError, TraceError

RNG = np.random.default_rng(0)


def moving_average(x, *, width):
    return sum(np.roll(x, k) for k in range(-(width // 2), width // 2 + 1)) / width


@dtrain.primitive(moving_average, shape=lambda x, *, width: x.shape)
def smooth(g, out, x, *, width):
    """Moving average on a ring; its own transpose for an odd width."""
    return smooth(g, width=width)


def write_product(x, y, *, out):
    np.multiply(x, y, out=out)


@dtrain.primitive(write_product)
def product(g, out, x, y):
    """A product with broadcasting that writes where it is told."""
    return g * y, g * x


def count_above(x, *, limit):
    return np.array([np.count_nonzero(x > limit)])


@dtrain.primitive(count_above, shape=lambda x, *, limit: ((1,), np.int64))
def above(g, out, x, *, limit):
    """How many elements are above the limit; no gradient."""


# -- primitive --------------------------------------------------------------------------------------------------------


def test_it_computes_on_plain_arrays():
    np.testing.assert_array_equal(smooth(np.arange(4.0), width=1), np.arange(4.0))
    np.testing.assert_array_equal(product(np.arange(3.0), 2.0), [0.0, 2.0, 4.0])
    assert product(np.ones(3, np.float32), 0.5).dtype == np.float32
    assert smooth.__doc__.startswith("Moving average")


def test_it_is_recorded_differentiated_and_planned():
    def f(x, w):
        return np.sum(smooth(product(np.sin(x), w), width=3) ** 2)

    x, w = RNG.standard_normal((4, 6)), RNG.standard_normal(6)
    graph.check_grads(f, [x, w], order=2)
    recorded = graph.trace(f, x, w)
    gradients = graph.backward(recorded.outputs, None, recorded.inputs)
    plan = graph.Plan(recorded.inputs, [*recorded.outputs, *gradients])
    names = [s.op.name for s in plan.steps]
    assert (names.count("smooth"), names.count("product")) == (2, 1)
    bound = plan.bind([x, w])
    for _ in range(2):
        bound.run()
        assert bound.outputs[0] == pytest.approx(f(x, w))
    value, moved = graph.jvp(f, (x, w), (np.ones_like(x), np.zeros_like(w)))
    assert moved == pytest.approx(np.sum(bound.outputs[1]))
    assert value == pytest.approx(f(x, w))


def test_settings_shapes_and_dtypes():
    x = RNG.standard_normal(50)
    recorded = graph.trace(lambda x: (above(x, limit=0.0), above(x, limit=1.0)), x)
    bound = graph.Plan(recorded.inputs, recorded.outputs).bind([x])
    bound.run()
    assert [int(o[0]) for o in bound.outputs] == [np.sum(x > 0), np.sum(x > 1)]
    assert recorded.outputs[0].dtype == np.int64
    np.testing.assert_array_equal(graph.grad(lambda x: np.sum(x * above(x, limit=-9.0)))(x), np.full(50, 50.0))
    # Python numbers and weak arrays take the dtype of what is beside them.
    g = graph.grad(lambda x, s: np.sum(product(product(x, 0.5), s)))(np.ones(3, np.float32), 2.0)
    assert g.dtype == np.float32


def test_two_of_one_name_are_two():
    def make(factor):
        @dtrain.primitive(lambda x: x * factor)
        def scale(g, out, x):
            return g * factor

        return scale

    two, three = make(2.0), make(3.0)
    np.testing.assert_array_equal(graph.grad(lambda x: np.sum(two(x) + three(x)))(np.ones(2)), [5.0, 5.0])
    value, _ = graph.value_and_grad(lambda x: np.sum(two(x) + three(x)))(np.ones(2))
    assert value == 10.0
    assert "scale" not in graph.PRIMITIVES


def test_a_kernel_that_breaks_its_word_is_refused():
    @dtrain.primitive(lambda x: x[:-1])
    def shorter(g, out, x):
        return g

    message = (
        r"shorter: its shape rule says float64\[3\], its kernel returned float64\[2\]; called at .*test_custom\.py"
    )
    with pytest.raises(ShapeError, match=message):
        graph.grad(lambda x: np.sum(shorter(x)))(np.ones(3))
    with pytest.raises(TraceError, match="smooth: the keyword width is a list, which is not hashable"):
        graph.grad(lambda x: np.sum(smooth(x, width=[3])))(np.ones(3))
    with pytest.raises(ShapeError, match=r"product: expected what its kernel and its shape rule accept, got \(3,\), "):
        graph.grad(lambda x: np.sum(product(x, np.ones(2))))(np.ones(3))
    with pytest.raises(TypeError, match="primitive: expected the kernel, a function on arrays, got int"):
        dtrain.primitive(3)


def test_primitives_travel_between_processes():
    again = pickle.loads(cloudpickle.dumps(smooth))
    np.testing.assert_array_equal(again(np.arange(5.0), width=3), smooth(np.arange(5.0), width=3))
    of_table = graph.PRIMITIVES["tanh"]
    assert pickle.loads(pickle.dumps(of_table)) is of_table


# -- custom_vjp -------------------------------------------------------------------------------------------------------


def softplus_forward(x):
    y = softplus(x)
    return y, (x, y)


@dtrain.custom_vjp
def softplus(x):
    """log(1 + e^x), whose derivative is written with the result."""
    return np.log1p(np.exp(x))


softplus.defvjp(softplus_forward, lambda kept, g: (g * (1.0 - np.exp(-kept[1])),))


def test_the_derivative_is_the_one_given_to_any_order():
    x = np.array([-1.0, 0.0, 2.0])
    t = torch.tensor(x, requires_grad=True)
    first = torch.autograd.grad(torch.nn.functional.softplus(t).sum(), t, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), t, create_graph=True)[0]
    third = torch.autograd.grad(second.sum(), t)[0]
    d = graph.elementwise_grad
    np.testing.assert_allclose(softplus(x), torch.nn.functional.softplus(t).detach(), rtol=1e-14)
    np.testing.assert_allclose(d(softplus)(x), first.detach(), rtol=1e-13)
    np.testing.assert_allclose(d(d(softplus))(x), second.detach(), rtol=1e-13)
    np.testing.assert_allclose(d(d(d(softplus)))(x), third, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(graph.jvp(softplus, (x,), (np.ones(3),))[1], first.detach(), rtol=1e-13)
    assert softplus.__name__ == "softplus"


def test_a_derivative_that_is_not_the_functions_own_is_believed():
    @dtrain.custom_vjp
    def clipped(x):
        return x * 1.0

    clipped.defvjp(lambda x: (x * 1.0, None), lambda kept, g: (np.clip(g, -1.0, 1.0),))
    for compiled in (True, False):
        g = graph.grad(lambda x: np.sum(clipped(x) * np.array([0.5, 7.0])), compile=compiled)
        np.testing.assert_array_equal(g(np.ones(2)), [0.5, 1.0])


def test_trees_several_results_static_arguments_and_no_gradient():
    @dtrain.custom_vjp
    def f(p, n, x):
        return {"a": p["w"] * x**n, "b": np.sin(p["w"])}

    def forward(p, n, x):
        return f(p, n, x), (p["w"], n, x, "kept")

    def backward(kept, g):
        w, n, x, word = kept
        assert word == "kept"
        return {"w": g["a"] * x**n + g["b"] * np.cos(w)}, None, g["a"] * w * n * x ** (n - 1)

    f.defvjp(forward, backward)
    w, x = RNG.standard_normal(3), RNG.random(3) + 1.0
    for keys in (("a",), ("b",), ("a", "b")):
        loss = lambda f, keys, p, x: sum(np.sum(f(p, 3, x)[k] ** 2) for k in keys)  # noqa: E731
        ours = graph.grad(partial(loss, f, keys), (0, 1))({"w": w}, x)
        theirs = graph.grad(partial(loss, f.function, keys), (0, 1))({"w": w}, x)
        np.testing.assert_allclose(ours[0]["w"], theirs[0]["w"], rtol=1e-13)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-13)


def test_what_only_the_derivative_needs_is_left_out_of_a_forward_plan():
    @dtrain.custom_vjp
    def f(x):
        return np.sin(x)

    f.defvjp(lambda x: (np.sin(x), np.cos(x)), lambda c, g: (g * c,))
    recorded = graph.trace(f, np.ones(3))
    assert [s.op.name for s in graph.Plan(recorded.inputs, recorded.outputs).steps] == ["sin"]


def test_it_works_within_a_checkpoint():
    f = lambda x: np.sum(softplus(np.sin(x)) ** 2)  # noqa: E731
    x = RNG.standard_normal(4)
    np.testing.assert_array_equal(graph.grad(graph.checkpoint(f))(x), graph.grad(f)(x))
    np.testing.assert_allclose(graph.hvp(graph.checkpoint(f), x, x), graph.hvp(f, x, x), rtol=1e-13)


def test_errors_of_custom_vjp():
    @dtrain.custom_vjp
    def f(x):
        return x * 2.0

    with pytest.raises(TraceError, match=r"f has no derivative yet, used at .*; call f\.defvjp\(forward, backward\)"):
        graph.grad(f)(1.0)
    assert f(1.0) == 2.0

    def derivative(found, forward=lambda x: (x * 2.0, None)):
        f.defvjp(forward, lambda kept, g: found)
        return graph.grad(lambda x: np.sum(f(x)))(np.ones(3))

    with pytest.raises(TraceError, match="the forward function of f must return \\(result, residuals\\)"):
        derivative((), lambda x: x * 2.0)
    with pytest.raises(TraceError, match="gradient for each of the 1 arguments, as a tuple; got 2"):
        derivative((1.0, 2.0))
    with pytest.raises(ShapeError, match=r"expected shape \(3,\) for the gradient of argument 0, got \(2,\)"):
        derivative((np.ones(2),))
    with pytest.raises(TraceError, match="the gradient of argument 0 is no tree like it"):
        derivative(([np.ones(3)],))
    f.defvjp(lambda x: (x * 2.0, None), lambda kept, g: g * 5.0)  # one gradient needs no tuple
    np.testing.assert_array_equal(graph.grad(lambda x: np.sum(f(x)))(np.ones(3)), np.full(3, 5.0))

    def closes_over(w):
        inner = dtrain.custom_vjp(lambda x: x * w)
        inner.defvjp(lambda x: (x * w, None), lambda kept, g: (g,))
        return np.sum(inner(np.ones(3)))

    with pytest.raises(TraceError, match=r"closes over the traced array made at .*test_custom\.py:\d+, which would"):
        graph.grad(closes_over)(np.ones(3))
