"""Each rule against PyTorch in float64, several steps on changing gradients and with a changing learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.optim import Rule, make_rule

STEPS = 25
SIZE = 101

Optimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

CASES: list[tuple[str, dict[str, Any], type[torch.optim.Optimizer], dict[str, Any]]] = [
    ("sgd", {}, torch.optim.SGD, {}),
    ("sgd", {"weight_decay": 0.1}, torch.optim.SGD, {"weight_decay": 0.1}),
    ("sgd", {"momentum": 0.5}, torch.optim.SGD, {"momentum": 0.5}),
    ("momentum", {}, torch.optim.SGD, {"momentum": 0.9}),
    ("momentum", {"weight_decay": 0.1}, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    ("nesterov", {}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ("nesterov", {"weight_decay": 0.1}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("adagrad", {}, torch.optim.Adagrad, {}),
    (
        "adagrad",
        {"lr_decay": 0.1, "initial_accumulator": 0.3, "eps": 1e-3, "weight_decay": 0.1},
        torch.optim.Adagrad,
        {"lr_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-3, "weight_decay": 0.1},
    ),
    ("adadelta", {}, torch.optim.Adadelta, {}),
    ("adadelta", {"rho": 0.95, "weight_decay": 0.1}, torch.optim.Adadelta, {"rho": 0.95, "weight_decay": 0.1}),
    ("rmsprop", {}, torch.optim.RMSprop, {}),
    ("rmsprop", {"rho": 0.9, "weight_decay": 0.1}, torch.optim.RMSprop, {"alpha": 0.9, "weight_decay": 0.1}),
    ("rmsprop", {"centered": True}, torch.optim.RMSprop, {"centered": True}),
    ("rmsprop", {"momentum": 0.9}, torch.optim.RMSprop, {"momentum": 0.9}),
    (
        "rmsprop",
        {"centered": True, "momentum": 0.8, "weight_decay": 0.01},
        torch.optim.RMSprop,
        {"centered": True, "momentum": 0.8, "weight_decay": 0.01},
    ),
    ("adam", {}, torch.optim.Adam, {}),
    (
        "adam",
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1},
        torch.optim.Adam,
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
    ),
    ("adamw", {}, torch.optim.AdamW, {}),
    ("adamw", {"weight_decay": 0.3, "eps": 1e-4}, torch.optim.AdamW, {"weight_decay": 0.3, "eps": 1e-4}),
]


def learning_rate(step: int) -> float:
    return 0.1 if step < 10 else 0.03


def ours(rule: Rule, start: np.ndarray, gradients: np.ndarray) -> list[np.ndarray]:
    parameter = start.copy()
    state = tuple(np.full_like(start, rule.state_init(name)) for name in rule.state_names)
    scratch = np.empty_like(start), np.empty_like(start)
    path = []
    for step, gradient in enumerate(gradients):
        rule.update(parameter, gradient.copy(), state, rule.coefficients(step, learning_rate(step)), scratch)
        path.append(parameter.copy())
    return path


def theirs(make: Optimizer, start: np.ndarray, gradients: np.ndarray) -> list[np.ndarray]:
    parameter = torch.tensor(start)
    optimizer = make([parameter])
    path = []
    for step, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        path.append(parameter.numpy().copy())
    return path


@pytest.mark.parametrize(
    ("name", "options", "cls", "torch_options"), CASES, ids=[f"{name}-{options}" for name, options, _, _ in CASES]
)
def test_rule_agrees_with_pytorch(
    name: str, options: dict[str, Any], cls: type[torch.optim.Optimizer], torch_options: dict[str, Any]
) -> None:
    random = np.random.default_rng(7)
    start, gradients = random.standard_normal(SIZE), random.standard_normal((STEPS, SIZE))
    path = ours(make_rule(name, **options), start, gradients)
    reference = theirs(lambda parameters: cls(parameters, lr=0.1, **torch_options), start, gradients)
    np.testing.assert_allclose(path, reference, rtol=1e-12, atol=1e-12)
    assert np.abs(path[-1] - start).max() > 1e-4
