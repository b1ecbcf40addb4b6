"""Batch normalisation: PyTorch's figures and gradients, any axes, and the running values in evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dtrain.errors import InputError, ShapeError, TraceError
from dtrain.graph import check_grads, step_context, value_and_grad
from dtrain.nn import batch_norm, group_norm, instance_norm, layer_norm, local_response_norm, running

RANDOM = np.random.default_rng(6)
LAYOUTS = [  # shape of x, axis, PyTorch's module, and the order of axes that it expects
    ((9, 5), None, torch.nn.BatchNorm1d, (0, 1)),
    ((9, 5), 0, torch.nn.BatchNorm1d, (0, 1)),
    ((4, 3, 2, 5), None, torch.nn.BatchNorm2d, (0, 3, 1, 2)),
    ((4, 5, 3, 2), (0, 2, 3), torch.nn.BatchNorm2d, (0, 1, 2, 3)),
    ((4, 5, 3), (0, -1), torch.nn.BatchNorm1d, (0, 1, 2)),
]


def arguments(shape: tuple[int, ...] = (9, 5), dtype: type = np.float64) -> list[np.ndarray]:
    """x far from mean 0, and γ, β, mean, variance of 5 features."""
    x = RANDOM.standard_normal(shape) * 2 + 3
    parts = [x, RANDOM.uniform(0.5, 2, 5), RANDOM.standard_normal(5), RANDOM.standard_normal(5)]
    return [a.astype(dtype) for a in [*parts, RANDOM.uniform(0.5, 2, 5)]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis", "module", "order"), LAYOUTS)
def test_outputs_gradients_and_reports_are_pytorchs(
    shape: tuple[int, ...], axis: Any, module: Any, order: tuple[int, ...], training: bool
) -> None:
    x, gamma, beta, mean, var = arguments(shape)
    seed = RANDOM.standard_normal(shape)
    reference = module(5, dtype=torch.float64).train(training)
    with torch.no_grad():
        for target, value in ((reference.weight, gamma), (reference.bias, beta)):
            target.copy_(torch.tensor(value))
        reference.running_mean.copy_(torch.tensor(mean))
        reference.running_var.copy_(torch.tensor(var))
    given = torch.tensor(x, requires_grad=True)
    expected = reference(given.permute(order)).permute(tuple(np.argsort(order)))
    (expected * torch.tensor(seed)).sum().backward()

    def loss(x: Any, gamma: Any, beta: Any) -> Any:
        return np.sum(seed * batch_norm(x, gamma, beta, mean, var, axis=axis))

    with step_context(training=training) as context:
        context.reports = []
        plain = batch_norm(x, gamma, beta, mean, var, axis=axis)
        reports = list(context.reports)
        _, gradients = value_and_grad(loss, argnums=(0, 1, 2))(x, gamma, beta)
    np.testing.assert_allclose(plain, expected.detach(), rtol=1e-12, atol=1e-12)
    found = (given.grad, reference.weight.grad, reference.bias.grad)
    for gradient, torchs in zip(gradients, found, strict=True):
        np.testing.assert_allclose(gradient, torchs, rtol=1e-10, atol=1e-10)
    assert len(reports) == 2 * training
    for each, leaf, after in zip(reports, (mean, var), (reference.running_mean, reference.running_var), strict=False):
        assert each.leaf is leaf
        np.testing.assert_allclose(0.9 * leaf + 0.1 * each.value, after, rtol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_differences(training: bool) -> None:
    x, gamma, beta, mean, var = arguments()
    seed = RANDOM.standard_normal(x.shape)

    def loss(x: Any, gamma: Any, beta: Any) -> Any:
        return np.sum(seed * batch_norm(x, gamma, beta, mean, var))

    with step_context(training=training):
        check_grads(loss, [x, gamma, beta])
        check_grads(loss, [x, gamma, beta], order=2, tolerance=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_float32_stays_float32(training: bool) -> None:
    values = arguments(dtype=np.float32)
    with step_context(training=training) as context:
        context.reports = []
        assert batch_norm(*values).dtype == np.float32
        gradients = value_and_grad(lambda *a: np.sum(batch_norm(*a) ** 2), argnums=(0, 1, 2))(*values)[1]
        assert {g.dtype for g in gradients} == {np.dtype(np.float32)}
        assert all(each.value.dtype == np.float32 for each in context.reports)
        assert bool(context.reports) == training


def test_a_large_mean_costs_no_accuracy_of_the_variance() -> None:
    """The variance is that of the centred values; the mean of squares less the square of the mean would be rubbish."""
    x = (RANDOM.standard_normal((64, 5)) + 3000).astype(np.float32)
    with step_context(training=True) as context:
        context.reports = []
        batch_norm(x, *arguments(dtype=np.float32)[1:])
    var = context.reports[1].value
    np.testing.assert_allclose(var, x.astype(np.float64).var(axis=0, ddof=1), rtol=1e-3)


def test_arithmetic_with_marked_arrays_gives_plain_ones() -> None:
    x, gamma, beta, mean, var = arguments()
    with step_context(training=False):
        marked = batch_norm(x, gamma, beta, running(mean), running(var))
        assert type(marked) is np.ndarray
        np.testing.assert_array_equal(marked, batch_norm(x, gamma, beta, mean, var))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("index", "name"), [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "var")])
def test_a_wrong_shape_is_told_with_the_users_line(index: int, name: str, training: bool) -> None:
    values = arguments()
    values[index] = values[index][:1]
    message = rf"batch_norm at \S*test_normalisation.py:\d+: expected {name} of shape \(5,\), .* got \(1,\)"
    with step_context(training=training), pytest.raises(ShapeError, match=message):
        batch_norm(*values)


def test_one_value_has_no_variance() -> None:
    values = arguments((1, 5))
    message = r"batch_norm at \S+:\d+: shard 2 of step 7 has one value for a variance; choose batch and shards"
    with step_context(step=7, shard=2, training=True), pytest.raises(InputError, match=message):
        batch_norm(*values)
    with step_context(training=False):
        assert batch_norm(*values).shape == (1, 5)
    with step_context(training=True):  # one sample of several places has a variance
        assert batch_norm(*arguments((1, 3, 5))).shape == (1, 3, 5)


def test_it_needs_a_context() -> None:
    with pytest.raises(TraceError, match="step_context"):
        batch_norm(*arguments())


def test_local_response_norm_has_the_papers_alpha_unless_told() -> None:
    x = np.arange(1.0, 8.0).reshape(1, 7, 1)
    paper = [0.59429158, 1.18787101, 1.78014039, 2.37041856, 2.95805523, 3.55085672, 4.14513794]
    divided = [0.59454113, 1.18893961, 1.78307520, 2.37681006, 2.97001116, 3.56425366, 4.15879437]
    np.testing.assert_allclose(local_response_norm(x).ravel(), paper, rtol=1e-8)
    np.testing.assert_allclose(local_response_norm(x, divide_by_size=True).ravel(), divided, rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, v: layer_norm(x, v, v), ShapeError, r"layer_norm at .*last axes of x, got \(2, 4, 3\), \(4,\)"),
        (lambda x, v: group_norm(x, 3, v, v), ShapeError, r"group_norm at .*groups=3, got \(2, 4, 3\), \(4,\), \(4,\)"),
        (lambda x, v: instance_norm(x, v[1:], v), ShapeError, r"instance_norm at .*, got \(2, 4, 3\), \(3,\), \(4,\)"),
        (lambda x, v: local_response_norm(v), ShapeError, r"local_response_norm at .*, got \(4,\)"),
        (
            lambda x, v: local_response_norm(x, 0),
            InputError,
            "local_response_norm at .* at least 1, got 0",
        ),
    ],
)
def test_mistakes_with_the_norms_of_a_sample_are_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message.replace(" at ", r" at \S*test_normalisation.py:\d+: ", 1)):
        call(np.ones((2, 4, 3)), np.ones(4))
