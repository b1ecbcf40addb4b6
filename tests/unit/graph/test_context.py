"""Randomness in a model is a function of (seed, step, shard, place) and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import TraceError

X = np.ones((40, 50), np.float32)


def model(x):
    return np.sum(graph.dropout(x, 0.25)) + 0 * np.sum(graph.dropout(x, 0.5))


def masks(seed, step, shard):
    with graph.step_context(seed, step, shard):
        return graph.keep_mask((7, 11), 0.5), graph.keep_mask((7, 11), 0.5)


def test_a_mask_is_raw_philox_words():
    first, second = masks(5, 3, 2)
    for place, mask in enumerate((first, second)):
        words = np.random.Philox(key=[5, place], counter=[0, 0, 3, 2]).random_raw(20)
        np.testing.assert_array_equal(mask, (words.view("<u2")[:77] < 32768).reshape(7, 11))
    assert not np.array_equal(first, second)
    for other in ((6, 3, 2), (5, 4, 2), (5, 3, 1)):
        assert not np.array_equal(first, masks(*other)[0])
    np.testing.assert_array_equal(first, masks(5, 3, 2)[0])


def test_one_plan_serves_every_step_and_shard():
    with graph.step_context(1, 2, 3):
        recorded = graph.trace(lambda x: graph.dropout(x, 0.25), X)
    assert recorded.key is not None
    bound = graph.Plan([*recorded.inputs, recorded.key], recorded.outputs).bind([X, None])
    for where in ((1, 2, 3), (1, 2, 4), (9, 0, 0)):
        bound.inputs[1][...] = graph.step_key(*where)
        bound.run()
        with graph.step_context(*where):
            expected = graph.dropout(X, 0.25)
        np.testing.assert_array_equal(bound.outputs[0], expected)


def test_compiled_functions_do_not_bake_the_key_in():
    calls = []

    def f(x):
        calls.append(1)
        return np.sum(graph.dropout(x, 0.25))

    g = graph.grad(f)
    found = []
    for step in (0, 1, 0):
        with graph.step_context(7, step, 0):
            found.append(g(X))
            np.testing.assert_array_equal(found[-1], graph.dropout(X, 0.25))
            np.testing.assert_array_equal(found[-1], graph.grad(f, compile=False)(X))
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert len(calls) == 1 + 3


def test_the_rate_is_kept_and_the_mean_preserved():
    with graph.step_context(0, 0, 0):
        x = graph.dropout(np.ones(200_000), 0.25)
    assert set(np.unique(x)) == {0.0, 4 / 3}
    assert abs(np.mean(x == 0) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 200_000)


def test_the_gradient_goes_where_the_mask_let_the_value_through():
    with graph.step_context(0, 0, 0):
        value, g = graph.value_and_grad(model)(X)
    assert g.dtype == np.float32
    assert value == pytest.approx(g.sum())
    assert set(np.unique(g)) == {np.float32(0), np.float32(1 / 0.75)}


def test_evaluation_is_the_identity_and_another_trace():
    with graph.step_context(0, 0, 0, training=False):
        assert graph.dropout(X, 0.5) is X
        np.testing.assert_array_equal(graph.grad(model)(X), X)
        assert not graph.is_training()
    with graph.step_context(0, 0, 0):
        assert graph.is_training()
        assert graph.grad(model)(X).min() == 0


def test_without_a_context():
    with pytest.raises(
        TraceError, match=r"dropout at .*test_context.py:\d+ needs to know the step.*step_context\(seed, step"
    ):
        graph.grad(model)(X)
    with pytest.raises(TraceError, match=r"a random number at .* needs to know the step"):
        graph.keep_mask(3, 0.5)
    assert graph.current_context() is None


def test_a_rate_out_of_range():
    with graph.step_context(), pytest.raises(ValueError, match=r"rate: expected 0 <= rate < 1, got 1\.0"):
        graph.keep_mask(3, 1.0)
