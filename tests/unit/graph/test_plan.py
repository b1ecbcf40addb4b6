"""The plan: what it leaves out, where it writes, and that its bits depend on nothing but the graph."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import InputError

RNG = np.random.default_rng(0)


def mlp(p, x, y):
    h = np.maximum(x @ p["w1"] + p["b1"], 0)
    s = np.tanh(h @ p["w2"] + p["b2"])
    s = s - np.max(s, axis=1, keepdims=True)
    return np.mean(np.log(np.sum(np.exp(s), axis=1)) - s[np.arange(len(s)), y])


PARAMETERS = {
    "w1": (RNG.standard_normal((32, 64)) * 0.1).astype(np.float32),
    "b1": np.zeros(64, np.float32),
    "w2": (RNG.standard_normal((64, 10)) * 0.1).astype(np.float32),
    "b2": np.zeros(10, np.float32),
}
X, Y = RNG.standard_normal((48, 32)).astype(np.float32), RNG.integers(0, 10, 48)


def planned():
    recorded = graph.trace(mlp, PARAMETERS, X, Y)
    gradients = graph.backward(recorded.outputs, None, recorded.inputs[:4])
    return graph.Plan(recorded.inputs, [*recorded.outputs, *gradients])


def arrays():
    return [PARAMETERS[k].copy() for k in sorted(PARAMETERS)] + [X.copy(), Y.copy()]


def plan_of(f, *args):
    recorded = graph.trace(f, *args)
    return graph.Plan(recorded.inputs, recorded.outputs)


def names(plan):
    return [step.op.name for step in plan.steps]


def test_a_step_allocates_nothing():
    # NumPy's iterator takes a buffer of at most 8192 elements for a moment when it broadcasts; an activation here is
    # far larger.
    x = np.tile(X, (40, 1))
    arguments = [*(PARAMETERS[k] for k in sorted(PARAMETERS)), x, np.tile(Y, 40)]
    recorded = graph.trace(mlp, PARAMETERS, x, arguments[-1])
    gradients = graph.backward(recorded.outputs, None, recorded.inputs[:4])
    bound = graph.Plan(recorded.inputs, [*recorded.outputs, *gradients]).bind(arguments)
    for _ in range(3):
        bound.run()
    tracemalloc.start()
    try:
        bound.run()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(20):
            bound.run()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 512
    assert peak - before < 200_000 < x.shape[0] * 64 * 4


@pytest.mark.parametrize("is_bound", [True, False])
def test_nothing_is_retained_over_a_hundred_steps(is_bound):
    """Neither by a bound plan nor by a compiled function whose results are dropped."""
    step = planned().bind(arrays()).run if is_bound else lambda: gradient(PARAMETERS, X, Y)
    gradient = graph.value_and_grad(mlp)
    for _ in range(3):
        step()
    tracemalloc.start()
    try:
        step()
        gc.collect()
        before = [tracemalloc.get_traced_memory()[0], len(gc.get_objects())]
        for _ in range(100):
            step()
        gc.collect()
        after = [tracemalloc.get_traced_memory()[0], len(gc.get_objects())]
    finally:
        tracemalloc.stop()
    assert after[0] - before[0] < 1024  # 10 bytes a step: less than any object
    assert after[1] - before[1] < 10


def test_bits_do_not_depend_on_where_and_how_often_it_is_bound():
    plan = planned()
    first = plan.bind(arrays())
    first.run()
    memory = np.zeros(64 + sum(o.size for o in first.outputs) + 16 * len(first.outputs), np.float32)
    places, at = [], 3
    for o in first.outputs:
        places.append(memory[at : at + o.size].reshape(o.shape))
        at += o.size + 5
    arena = graph.Arena(plan.arena_bytes + 4096)
    arena.memory[...] = 255
    second = plan.bind(arrays(), places, arena)
    for _ in range(3):
        second.run()
    again = planned().bind(arrays())
    again.run()
    for a, b, c in zip(first.outputs, second.outputs, again.outputs, strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()


def test_outputs_are_written_straight_into_the_given_arrays():
    plan = planned()
    places = [np.full(s.prototype.shape, np.nan, np.float32) for s in plan.output_slots]
    bound = plan.bind(arrays(), places)
    assert all(a is b for a, b in zip(bound.outputs, places, strict=True))
    bound.run()
    assert all(np.isfinite(p).all() for p in places)
    assert "copy" not in names(plan)
    products = [s for s in plan.steps if s.op.name == "matmul" and s.out.output >= 0]
    assert len(products) == 2  # both weights' gradients


def test_one_arena_serves_two_bounds():
    plan = planned()
    arena = graph.Arena(plan.arena_bytes)
    one, two = plan.bind(arrays(), arena=arena), plan.bind(arrays(), arena=arena)
    one.run()
    two.run()
    assert one.outputs[1].tobytes() == two.outputs[1].tobytes()
    with pytest.raises(InputError, match="the arena has 64 bytes, the plan needs"):
        plan.bind(arena=graph.Arena(64))


def test_memory_is_reused():
    plan = planned()
    assert plan.arena_bytes < 0.6 * plan.buffer_bytes
    deep = plan_of(lambda x: [x := np.tanh(x @ np.eye(8)) for _ in range(20)][-1], np.ones((4, 8)))
    assert deep.arena_bytes <= 2 * 4 * 8 * 8  # two buffers of 256 bytes, whatever the depth


def test_an_elementwise_chain_runs_in_place():
    plan = plan_of(lambda x: np.sum(np.exp(np.tanh(x * 2.0) + 1.0)), np.ones(100))
    assert plan.arena_bytes == 832  # one buffer: 800 bytes, rounded to 64


def test_in_place_does_not_destroy_another_view_of_the_same_memory():
    def f(x):
        y = np.exp(x)
        return np.sum((y + y.T) * y[::-1], axis=0)

    x = RNG.standard_normal((5, 5))
    bound = plan_of(f, x).bind([x])
    bound.run()
    np.testing.assert_allclose(bound.outputs[0], f(x), rtol=1e-15)


def test_dead_code_and_repeated_expressions_are_removed():
    def f(x):
        np.exp(x)  # dead
        return np.sin(x) * np.sin(x) + 1.0 * np.sin(x)

    assert names(plan_of(f, np.ones(3))) == ["sin", "multiply", "multiply", "add"]


def test_gradients_nobody_asked_for_are_not_computed():
    recorded = graph.trace(lambda x, w: np.sum(np.tanh(x @ w)), np.ones((3, 4)), np.ones((4, 2)))
    (g,) = graph.backward(recorded.outputs, None, recorded.inputs[1:])
    plan = graph.Plan(recorded.inputs, [g])
    assert names(plan).count("matmul") == 2  # forward and w's; not x's
    assert "sum" not in names(plan)  # the value itself was not asked for


def test_every_branch_is_an_explicit_sum():
    recorded = graph.trace(lambda x: np.sum(np.sin(x) + np.cos(x) + x), np.ones(3))
    graph.backward(recorded.outputs, None, recorded.inputs)
    (branch,) = [n for n in recorded.nodes if n.op is not None and n.op.name == "branch_sum"]
    assert len(branch.inputs) == 3


def test_the_sum_at_a_branch_runs_along():
    def f(w, x):
        h = x
        for _ in range(10):
            h = np.tanh(h @ w)
        return np.sum(h)

    w, x = 0.1 * RNG.standard_normal((64, 64)), RNG.standard_normal((2, 64))
    recorded = graph.trace(f, w, x)
    gradients = graph.backward(recorded.outputs, None, recorded.inputs[:1])
    plan = graph.Plan(recorded.inputs, gradients)
    assert names(plan).count("branch_sum") == 9
    # The ten terms of w's gradient are 32 KiB each; two of them are alive at a time.
    assert plan.arena_bytes < 3 * w.nbytes
    bound = plan.bind([w, x])
    bound.run()
    np.testing.assert_array_equal(bound.outputs[0], gradients[0].value)


def test_a_transposed_operand_reaches_blas_as_a_view():
    recorded = graph.trace(lambda x, w: np.sum(x @ w.T * (x @ w.T)), np.ones((3, 4)), np.ones((2, 4)))
    gradients = graph.backward(recorded.outputs, None, recorded.inputs)
    plan = graph.Plan(recorded.inputs, gradients)
    assert "copy" not in names(plan)  # neither w.T nor the gradient of w, which is the transpose of one of w.T


def test_a_product_that_is_used_turned_and_unturned_stays():
    def f(x, w):
        return (x @ w).T, (x @ w) + 1.0, (x @ w).T * 2.0

    x, w = RNG.standard_normal((3, 4)), RNG.standard_normal((4, 2))
    bound = plan_of(f, x, w).bind([x, w])
    bound.run()
    for ours, theirs in zip(bound.outputs, f(x, w), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_the_bias_gradient_is_one_sum_over_axis_0():
    steps = [s for s in planned().steps if s.op.name == "sum" and s.out.output >= 0]
    assert [s.static["axis"] for s in steps] == [(0,), (0,)]


def test_outputs_that_are_inputs_views_constants_or_named_twice():
    def f(x):
        y = np.exp(x)
        return x, y, y, y.T, y[1:], np.ones_like(x), np.reshape(y, 6), x.T

    x = RNG.standard_normal((2, 3))
    bound = plan_of(f, x).bind([x])
    bound.run()
    for ours, theirs in zip(bound.outputs, f(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for i, a in enumerate(bound.outputs):
        assert a.flags.c_contiguous
        assert not any(np.shares_memory(a, b) for b in [x, *bound.outputs[:i]])


def test_a_later_use_of_an_output_reads_it_whole():
    def f(x):
        y = np.exp(x)
        return y, np.tanh(y), np.sum(y)

    x = RNG.standard_normal(50)
    bound = plan_of(f, x).bind([x])
    bound.run()
    for ours, theirs in zip(bound.outputs, f(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-15)


def test_a_constant_is_kept_by_reference():
    data = np.ones(4)
    bound = plan_of(lambda w: np.sum(w * data), np.full(4, 2.0)).bind([np.full(4, 2.0)])
    bound.run()
    assert bound.outputs[0] == 8.0
    data[...] = 3.0
    bound.run()
    assert bound.outputs[0] == 24.0


def test_wrong_arrays_are_refused():
    plan = planned()
    wrong = arrays()
    wrong[4] = wrong[4][:5]
    with pytest.raises(InputError, match=r"input 4: expected shape \(48, 32\) of float32, got \(5, 32\) of float32"):
        plan.bind(wrong)
    wrong = arrays()
    wrong[4] = np.asfortranarray(X)
    with pytest.raises(InputError, match="input 4 must be C-contiguous and aligned"):
        plan.bind(wrong)
    with pytest.raises(InputError, match="the plan has 6 inputs, got 1"):
        plan.bind([None])
    recorded = graph.trace(lambda x, y: x + y, 1.0, 2.0)
    with pytest.raises(InputError, match="depend on the input '1', which the plan is not given"):
        graph.Plan(recorded.inputs[:1], recorded.outputs)


def test_the_place_of_the_first_nan_is_named():
    def f(x, w):
        h = x @ w
        return np.sum(np.log(h))  # the line to blame

    recorded = graph.trace(f, np.ones((2, 2)), np.ones((2, 2)))
    bound = graph.Plan(recorded.inputs, recorded.outputs).bind([np.ones((2, 2)), np.ones((2, 2))])
    assert bound.first_nonfinite() is None
    bound.inputs[1][...] = [[1, -3], [1, -3]]
    origin = bound.first_nonfinite()
    found = str(origin)
    line = f.__code__.co_firstlineno + 2
    assert found.startswith("log, made at ")
    assert f"test_plan.py:{line}: result" in found
    assert "inputs float64[2, 2] from -6 to 2" in found
    assert (origin.op, origin.line) == ("log", f"tests/unit/graph/test_plan.py:{line}")
    assert (origin.rows, origin.length) == ((0, 1), 2)
    bound.inputs[0][0, 0] = np.inf
    origin = bound.first_nonfinite()
    assert str(origin) == "input 0: float64[2, 2] from 1 to 1, 1 not finite"
    assert (origin.rows, origin.length) == ((0,), 2)


def test_the_listing_names_the_users_lines():
    text = str(graph.trace(lambda x: np.exp(x) * 2.0, np.ones(3)))
    assert "float64[3] = exp(%0)" in text
    assert "test_plan.py:" in text
    assert "arena" in str(planned())
