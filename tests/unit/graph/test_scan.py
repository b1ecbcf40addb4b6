"""scan: a loop as one node, equal to the Python loop in values and in derivatives of every order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import ShapeError, TraceError

RNG = np.random.default_rng(0)
P = {"w": RNG.standard_normal((3, 4)), "u": 0.5 * RNG.standard_normal((4, 4)), "b": RNG.standard_normal(4)}
ZEROS = np.zeros(4)
XS = RNG.standard_normal((7, 3))
both = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "each call"])
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def unrolled(f, init, xs=None, length=None, reverse=False):
    """The same loop with every step in the graph."""
    leaves, structure = graph.flatten(xs)
    length = len(leaves[0]) if length is None else length
    carry, rows = init, [None] * length
    for t in range(length - 1, -1, -1) if reverse else range(length):
        carry, rows[t] = f(carry, graph.unflatten(structure, [None if a is None else a[t] for a in leaves]))
    columns = zip(*[graph.flatten(row)[0] for row in rows], strict=True)
    made = graph.flatten(rows[0])[1]
    return carry, graph.unflatten(made, [None if c[0] is None else np.stack(c) for c in columns])


def recurrent(loop, reverse=False):
    def loss(p, xs, h=ZEROS):
        def step(h, x):
            h = np.tanh(x @ p["w"] + h @ p["u"].T)
            return h, h * p["b"]

        last, ys = loop(step, h, xs, reverse=reverse)
        return np.sum(last**2) + np.sum(ys * np.arange(len(ys))[:, None])

    return loss


def assert_trees(ours, theirs, tolerance=1e-12):
    for a, b in zip(graph.flatten(ours)[0], graph.flatten(theirs)[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def normal_like(tree):
    return graph.map_leaves(lambda a: RNG.standard_normal(np.shape(a)), tree)


@directions
@both
def test_values_and_gradients_are_those_of_the_unrolled_loop(reverse, compiled):
    h = RNG.standard_normal(4)
    value, ours = graph.value_and_grad(recurrent(graph.scan, reverse), (0, 1, 2), compile=compiled)(P, XS, h)
    want, theirs = graph.value_and_grad(recurrent(unrolled, reverse), (0, 1, 2))(P, XS, h)
    assert value == pytest.approx(want, rel=1e-14)
    assert value == pytest.approx(recurrent(graph.scan, reverse)(P, XS, h), rel=1e-14)  # plain NumPy
    assert_trees(ours, theirs)


@directions
def test_second_and_third_derivatives_and_forward_mode(reverse):
    ours, theirs = recurrent(graph.scan, reverse), recurrent(unrolled, reverse)
    v, vx = normal_like(P), normal_like(XS)
    assert_trees(graph.hvp(ours, P, v, XS), graph.hvp(theirs, P, v, XS), 1e-11)
    assert_trees(graph.jvp(ours, (P, XS), (v, vx)), graph.jvp(theirs, (P, XS), (v, vx)))
    assert_trees(graph.hessian(ours, 1)(P, XS), graph.hessian(theirs, 1)(P, XS), 1e-11)

    def third(f):
        first = lambda p: np.sum(graph.grad(f)(p, XS)["w"] ** 2)  # noqa: E731
        return graph.grad(lambda p: np.sum(graph.grad(first)(p)["u"] ** 3))(P)

    for a, b in zip(graph.flatten(third(ours))[0], graph.flatten(third(theirs))[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    graph.check_grads(lambda p, xs: ours(p, xs), [P, XS], order=2, tolerance=1e-5)


def test_the_graph_does_not_grow_with_the_number_of_steps():
    def planned(xs):
        recorded = graph.trace(recurrent(graph.scan), P, xs)
        gradients = graph.backward(recorded.outputs, None, recorded.inputs)
        return recorded, graph.Plan(recorded.inputs, [*recorded.outputs, *gradients])

    xs = RNG.standard_normal((10_000, 3))
    recorded, plan = planned(xs)
    short, few = planned(XS)
    assert (len(recorded.nodes), len(plan.steps)) == (len(short.nodes), len(few.steps))
    # Kept: the carries, ys, the gradient of ys and that of the tanh's argument, each 10,000 by 4; no more of a step.
    assert plan.arena_bytes < 5 * 10_000 * 4 * 8
    bound = plan.bind([P["b"], P["u"], P["w"], xs])
    bound.run()
    assert bound.outputs[0] == pytest.approx(recurrent(graph.scan)(P, xs), rel=1e-12)  # a Python loop
    assert all(np.isfinite(o).all() for o in bound.outputs)


def test_a_plan_without_gradient_keeps_no_carries():
    def f(x):
        last, _ = graph.scan(lambda h, x: (np.sin(h) + x, np.exp(h)), np.zeros(100), x)
        return last

    x = RNG.standard_normal((200, 100))
    recorded = graph.trace(f, x)
    plan = graph.Plan(recorded.inputs, recorded.outputs)
    assert plan.arena_bytes < 10 * 100 * 8
    bound = plan.bind([x])
    bound.run()
    np.testing.assert_array_equal(bound.outputs[0], f(x))


def test_a_gradient_that_needs_no_carry_keeps_none():
    def f(x):
        return graph.scan(lambda h, x: (h + 2.0 * x, None), np.zeros(100), x)[0]

    x = RNG.standard_normal((200, 100))
    recorded = graph.trace(lambda x: np.sum(f(x)), x)
    gradients = graph.backward(recorded.outputs, None, recorded.inputs)
    plan = graph.Plan(recorded.inputs, gradients)
    bound = plan.bind([x])
    bound.run()
    np.testing.assert_array_equal(bound.outputs[0], np.full(x.shape, 2.0))
    assert [s.op.name for s in plan.steps].count("scan") == 1


def test_nothing_is_left_of_a_run_before():
    recorded = graph.trace(recurrent(graph.scan), P, XS)
    gradients = graph.backward(recorded.outputs, None, recorded.inputs)
    bound = graph.Plan(recorded.inputs, [*recorded.outputs, *gradients]).bind([P["b"], P["u"], P["w"], XS])
    bound.run()
    first = [o.tobytes() for o in bound.outputs]
    bound.arena.memory[...] = 255
    bound.run()
    assert [o.tobytes() for o in bound.outputs] == first
    for node, out in zip([*recorded.outputs, *gradients], bound.outputs, strict=True):
        np.testing.assert_allclose(node.value, out, rtol=1e-13)


class State(NamedTuple):
    h: np.ndarray
    count: np.ndarray
    nothing: None
    pair: dict


def test_carries_are_trees_with_integers_and_none():
    def f(loop):
        def step(s, x):
            a, (b, _) = x["a"], x["b"]
            h = np.where(s.count % 2 == 0, s.h * a, s.h + b)
            return State(h, s.count + 1, None, {"l": [s.h]}), {"h": h, "n": s.count, "k": 2.0}

        def run(h, a, b):
            init = State(h, 0, None, {"l": [h]})
            last, ys = loop(step, init, {"a": a, "b": (b, None)})
            return (
                np.sum(last.h) + np.sum(last.pair["l"][0] ** 2) + np.sum(ys["h"] * ys["n"][:, None] * ys["k"][:, None])
            )

        return run

    arguments = RNG.standard_normal(3), RNG.standard_normal((5, 3)), RNG.standard_normal(5)
    value, ours = graph.value_and_grad(f(graph.scan), (0, 1, 2))(*arguments)
    want, theirs = graph.value_and_grad(f(unrolled), (0, 1, 2))(*arguments)
    assert value == pytest.approx(want)
    assert f(graph.scan)(*arguments) == pytest.approx(want)
    assert_trees(ours, theirs)


def test_numbers_take_the_dtype_of_what_they_meet():
    def f(x):
        last, ys = graph.scan(lambda c, x: (c * 0.5 + x, 0), 0.0, x)
        assert ys.dtype == np.int64
        return last

    value, g = graph.value_and_grad(f)(np.ones(3, np.float32))
    assert (value.dtype, g.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(g, [0.25, 0.5, 1.0])
    value, _ = graph.value_and_grad(lambda x: graph.scan(lambda c, _: (c * x, None), 1.0, length=4)[0])(2.0)
    assert value == 16.0


@both
def test_no_steps(compiled):
    def f(x, xs):
        last, ys = graph.scan(lambda c, x: (c * x, c[None]), x, xs)
        assert ys.shape == (0, 1, 2)
        return np.sum(last) + np.sum(ys)

    x, xs = np.array([1.0, 2.0]), np.ones((0, 2))
    gx, gxs = graph.grad(f, (0, 1), compile=compiled)(x, xs)
    np.testing.assert_array_equal(gx, [1.0, 1.0])
    assert gxs.shape == (0, 2)
    assert f(x, xs) == 3.0


def test_loops_in_loops_and_what_they_close_over():
    def f(loop):
        def run(w, xs):
            scale = np.tanh(w)  # of the outermost function

            def outer(c, x):
                shift = np.sin(c) * w  # of the outer body

                def inner(d, k):
                    return np.tanh(d * scale + shift * x + k), d

                last, ds = loop(inner, c, np.arange(3.0))
                return last, np.sum(ds, axis=0) * w[::-1]

            last, ys = loop(outer, np.ones(2), xs)
            return np.sum(last) + np.sum(ys**2)

        return run

    w, xs = RNG.standard_normal(2), RNG.standard_normal((4, 2))
    value, ours = graph.value_and_grad(f(graph.scan), (0, 1))(w, xs)
    want, theirs = graph.value_and_grad(f(unrolled), (0, 1))(w, xs)
    assert value == pytest.approx(want, rel=1e-14)
    assert_trees(ours, theirs)
    assert_trees(graph.hvp(f(graph.scan), w, w, xs), graph.hvp(f(unrolled), w, w, xs), 1e-11)


def test_derivatives_checkpoints_and_custom_rules_within_a_step():
    @graph.custom_vjp
    def third(x):
        return x**3

    third.defvjp(lambda x: (third(x), (x, third(x))), lambda kept, g: (3.0 * kept[1] / kept[0] * g,))

    def f(loop, wrap=lambda f: f):
        def run(w, xs):
            def step(c, x):
                slope = graph.grad(lambda c, w: np.sum(np.sin(c * w) * x), (0, 1))(c, w)
                inner = wrap(lambda c: third(np.cosh(c)) * w)
                return slope[0] * 0.1 + slope[1] * 0.2, inner(c)

            last, ys = loop(step, np.full(2, 0.3), xs)
            return np.sum(last) + np.sum(ys)

        return run

    w, xs = RNG.standard_normal(2), RNG.standard_normal((4, 2))
    want = graph.grad(f(unrolled), (0, 1))(w, xs)
    for loop in (f(graph.scan), f(graph.scan, graph.checkpoint), graph.checkpoint(f(graph.scan))):
        assert_trees(graph.grad(loop, (0, 1))(w, xs), want)
        assert_trees(graph.hvp(loop, w, w, xs), graph.hvp(f(unrolled), w, w, xs), 1e-10)


def test_jacobians_through_a_loop():
    def f(loop):
        return lambda x: loop(lambda c, k: (np.sin(c) * k + c[::-1] * x, c), x, np.arange(1.0, 4.0))

    x = RNG.standard_normal(3)
    assert_trees(graph.jacobian(f(graph.scan))(x), graph.jacobian(f(unrolled))(x))


def test_every_step_draws_its_own_random_numbers_and_the_gradient_the_same():
    def f(x):
        def outer(_, row):
            _, ys = graph.scan(lambda _, a: (None, graph.dropout(a, 0.5)), None, row)
            return None, graph.dropout(ys, 0.5)

        _, ys = graph.scan(outer, None, x)
        return np.sum(ys), ys

    x = np.ones((3, 4, 32))
    run = graph.grad(f, has_aux=True)
    with graph.step_context(seed=1, step=2, shard=3):
        g, ys = run(x)
        again = run(x)[1]
    with graph.step_context(seed=1, step=3, shard=3):
        other = run(x)[1]
    np.testing.assert_array_equal(g, ys)
    np.testing.assert_array_equal(again, ys)
    assert not np.array_equal(other, ys)
    rows = {row.tobytes() for row in ys.reshape(12, 32)}
    assert len(rows) == 12
    assert 0.15 < np.mean(ys > 0) < 0.35


def test_arrays_are_kept_by_reference():
    data = np.ones(3)
    run = graph.grad(lambda x: np.sum(graph.scan(lambda c, _: (c * data, None), x, length=2)[0]))
    np.testing.assert_array_equal(run(np.ones(3)), np.ones(3))
    data[...] = 3.0
    np.testing.assert_array_equal(run(np.ones(3)), np.full(3, 9.0))


def test_the_loop_in_which_nan_appears_is_named():
    recorded = graph.trace(lambda x: graph.scan(lambda c, x: (np.log(x), c), np.zeros(()), x), np.ones(3))
    bound = graph.Plan(recorded.inputs, recorded.outputs).bind([np.array([1.0, -1.0, 1.0])])
    assert str(bound.first_nonfinite()).startswith("scan, made at ")


def test_errors():
    x = np.ones((3, 2))

    def run(f, init=ZEROS[:2]):
        return graph.grad(lambda x: np.sum(graph.scan(f, init, x)[0]))(x)

    with pytest.raises(
        ShapeError, match=r"must keep its shape and dtype: it began as float64\[2\], and f returned float"
    ):
        run(lambda c, x: (np.concatenate([c, x]), None))
    with pytest.raises(ShapeError, match=r"as float32\[2\], and f returned float64\[2\].*called at .*test_scan"):
        run(lambda c, x: (c + x, None), np.zeros(2, np.float32))
    with pytest.raises(TraceError, match=r"keep its structure: it began with \(a\), and f returned \(a, b\)"):
        run(lambda c, x: ({"a": c["a"], "b": x}, None), {"a": np.zeros(2)})
    with pytest.raises(TraceError, match="None became an array, or an array None"):
        run(lambda c, x: (None, None))
    with pytest.raises(TraceError, match=r"f must return \(carry, y\), got Tensor"):
        run(lambda c, x: c)
    with pytest.raises(TraceError, match="the carry holds a str, which is no array of numbers"):
        run(lambda c, x: (c, None), "a")
    with pytest.raises(TraceError, match=r"the truth value of .* may differ in the next step of the loop"):
        run(lambda c, x: (c if x[0] > 0 else x, None))
    for xs, length in ((None, None), ((np.ones(2), np.ones(3)), None), (np.ones(2), 3), (np.ones(()), None)):
        with pytest.raises(ShapeError, match="xs must have a common leading axis"):
            graph.scan(lambda c, x: (c, x), 0.0, xs, length)
    leaked = []
    with pytest.raises(TraceError, match=r"an array from within a loop was used after it.*return it from the body"):
        graph.grad(lambda x: np.sum(graph.scan(lambda c, x: (leaked.append(x) or c, None), x[0], x)[0] + leaked[0]))(x)


def products(f, *args):
    """How many matrix products each step of the backward loop makes and how many are made beside it; the gradients."""
    recorded = graph.trace(f, *args)
    gradients = graph.backward(recorded.outputs, None, recorded.inputs)
    plan = graph.Plan(recorded.inputs, gradients)
    loop = [s for s in plan.steps if s.op.name == "scan"][-1]
    counts = [[s.op.name for s in steps].count("matmul") for steps in (loop.static["body"].plan.steps, plan.steps)]
    return *counts, [g.value for g in gradients]


@pytest.mark.parametrize("samples", [(), (2,)], ids=["vectors", "matrices"])
def test_the_gradient_of_a_weight_is_one_product_over_all_steps(samples):
    args = tuple(0.3 * RNG.standard_normal(shape) for shape in ((3, 4), (4, 4), (5, 4)))
    xs = RNG.standard_normal((6, *samples, 3))

    def made(loop):
        def f(w, u, v):
            def step(h, x):
                return np.sin(x @ w + h @ u + np.cos(h) @ u) @ v.T @ v, None

            return np.sum(loop(step, np.ones((*samples, 4)), xs)[0])

        return f

    within, after, gradients = products(made(graph.scan), *args)
    assert within == 7  # x @ w, h @ u, cos h @ u, sine @ vᵀ; g @ vᵀ and of it @ v and @ uᵀ
    assert after == 5  # one of w, two of u, two of v
    assert_trees(gradients, graph.grad(made(unrolled), (0, 1, 2))(*args), 1e-11)
    tangents = normal_like(args)
    second = lambda loop: graph.jvp(graph.grad(made(loop), (0, 1, 2)), args, tangents)  # noqa: E731
    assert_trees(second(graph.scan), second(unrolled), 1e-10)


def test_a_product_that_would_leave_more_behind_than_it_saves_is_added_step_by_step():
    xs, w = RNG.standard_normal((6, 50, 3)), RNG.standard_normal((3, 2))

    def made(loop):
        return lambda w: loop(lambda h, x: (h + np.sum(np.sin(np.exp(x) @ w)), 0.0), 0.0, xs)[0]

    within, after, (gradient,) = products(made(graph.scan), w)
    assert (within, after) == (2, 0)
    np.testing.assert_allclose(gradient, graph.grad(made(unrolled))(w), rtol=1e-12)
