"""The lecture's forms of the rules, and the effects of different update formulas on three functions of two numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dtrain.optim import Rule, make_rule

Gradient = Callable[[float, float], tuple[float, float]]


def beale_gradient(x: float, y: float) -> tuple[float, float]:
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return (
        2 * a * (y - 1) + 2 * b * (y**2 - 1) + 2 * c * (y**3 - 1),
        2 * a * x + 4 * b * x * y + 6 * c * x * y**2,
    )


def saddle_gradient(x: float, y: float) -> tuple[float, float]:
    return 2 * x, -2 * y


def valley_gradient(x: float, y: float) -> tuple[float, float]:
    return 10 * x, 0.01 * (y - 3)


def walk(rule: Rule, lr: float, start: tuple[float, float], gradient: Gradient, steps: int) -> list[np.ndarray]:
    """Positions after 0, 1, … ``steps`` updates."""
    position = np.array(start)
    state = tuple(np.full(2, rule.state_init(name)) for name in rule.state_names)
    scratch = np.empty(2), np.empty(2)
    path = [position.copy()]
    for step in range(steps):
        slope = np.array(gradient(position[0], position[1]))
        rule.update(position, slope, state, rule.coefficients(step, lr), scratch)
        path.append(position.copy())
    return path


OPTIONS: dict[str, dict[str, Any]] = {"rmsprop": {"rho": 0.9}, "adadelta": {"rho": 0.95}}
NAMES = ["sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam"]


def lecture_rule(name: str) -> Rule:
    return make_rule(name, **OPTIONS.get(name, {}))


def test_beale_starts_where_the_lecture_says() -> None:
    assert beale_gradient(1.0, 1.5) == (34.5, 92.5)


@pytest.mark.parametrize(
    ("name", "lr", "expected"),
    [
        ("sgd", 0.01, (2.6981, 0.4139)),
        ("momentum", 0.002, (2.9137, 0.4776)),
        ("nesterov", 0.002, (2.8998, 0.4739)),
        ("adagrad", 0.5, (2.7146, 0.4175)),
        ("rmsprop", 0.01, (1.9721, 0.1506)),
        ("adam", 0.1, (2.8351, 0.4552)),
        ("adadelta", 1.0, (0.6493, 0.9942)),
    ],
)
def test_position_on_beale_after_200_steps(name: str, lr: float, expected: tuple[float, float]) -> None:
    final = walk(lecture_rule(name), lr, (1.0, 1.5), beale_gradient, 200)[-1]
    np.testing.assert_allclose(final, expected, rtol=0, atol=5.1e-5)


@pytest.mark.parametrize(
    ("name", "lr", "steps"),
    list(zip(NAMES, [0.002, 0.002, 0.002, 0.5, 10, 0.02, 0.1], [2414, 185, 205, 454, 289, 199, 253], strict=True)),
)
def test_first_step_near_the_minimum_of_beale(name: str, lr: float, steps: int) -> None:
    path = walk(lecture_rule(name), lr, (1.0, 1.5), beale_gradient, steps)
    reached = [bool(np.hypot(x - 3, y - 0.5) < 0.1) for x, y in path]
    assert reached.index(True) == steps


@pytest.mark.parametrize(
    ("name", "lr", "steps"),
    list(zip(NAMES, [0.01, 0.01, 0.01, 0.1, 1, 0.01, 0.01], [349, 72, 67, 17, 27, 72, 77], strict=True)),
)
def test_first_step_that_leaves_the_saddle(name: str, lr: float, steps: int) -> None:
    path = walk(lecture_rule(name), lr, (0.5, 1e-3), saddle_gradient, steps)
    assert [bool(x**2 - y**2 < -1) for x, y in path].index(True) == steps


def valley_below(path: list[np.ndarray]) -> list[bool]:
    return [bool(5 * x**2 + 0.005 * (y - 3) ** 2 < 1e-3) for x, y in path]


@pytest.mark.parametrize(
    ("name", "lr", "steps"),
    [
        ("sgd", 0.01, 25964),
        ("momentum", 0.01, 2581),
        ("nesterov", 0.01, 2583),
        ("adagrad", 0.5, 96),
        ("rmsprop", 0.05, 127),
        ("adam", 0.1, 81),
    ],
)
def test_first_step_at_the_end_of_the_valley(name: str, lr: float, steps: int) -> None:
    path = walk(lecture_rule(name), lr, (1.0, -3.0), valley_gradient, steps)
    assert valley_below(path).index(True) == steps


def test_adadelta_does_not_reach_the_end_of_the_valley() -> None:
    path = walk(lecture_rule("adadelta"), 1.0, (1.0, -3.0), valley_gradient, 30_000)
    assert not any(valley_below(path))


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_a_large_rate_overflows_on_beale_within_ten_steps(name: str) -> None:
    with np.errstate(all="ignore"):
        path = walk(lecture_rule(name), 0.01, (1.0, 1.5), beale_gradient, 10)
        gradients = [beale_gradient(x, y) for x, y in path]
    assert np.isfinite(gradients[:4]).all()
    assert not np.isfinite(gradients[10]).any()


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_lr_in_velocity_is_the_lectures_update(nesterov: bool) -> None:
    random = np.random.default_rng(3)
    mu, w, v = 0.9, random.standard_normal(5), np.zeros(5)
    rule = make_rule("sgd", momentum=mu, nesterov=nesterov, lr_in_velocity=True)
    position, velocity, scratch = w.copy(), np.zeros(5), (np.empty(5), np.empty(5))
    for step in range(8):
        lr, gradient = 0.1 / (1 + step), random.standard_normal(5)
        v_before = v
        v = mu * v - lr * gradient
        w = w + (-mu * v_before + (1 + mu) * v if nesterov else v)
        rule.update(position, gradient.copy(), (velocity,), rule.coefficients(step, lr), scratch)
        np.testing.assert_allclose(position, w, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(velocity, -v, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_both_forms_of_momentum_walk_one_path_at_a_constant_rate(name: str) -> None:
    default = walk(make_rule(name), 0.002, (1.0, 1.5), beale_gradient, 50)
    lecture = walk(make_rule(name, lr_in_velocity=True), 0.002, (1.0, 1.5), beale_gradient, 50)
    np.testing.assert_allclose(default, lecture, rtol=1e-10)


def test_alexnets_update() -> None:
    """Momentum 0.9, weight decay 5e-4 and lr 0.01 from w = 1, v = 0 with a gradient of 0.5 (the paper's section 5)."""
    rule = make_rule("momentum", weight_decay=5e-4, lr_in_velocity=True)
    path = walk(rule, 0.01, (1.0, 1.0), lambda x, y: (0.5, 0.5), 3)
    expected = [0.994995, 0.985485525025, 0.9719220701198749]
    np.testing.assert_allclose(np.array(path)[1:, 0], expected, rtol=1e-15)


@pytest.mark.parametrize("lr_in_velocity", [False, True])
def test_rmsprop_has_graves_form(lr_in_velocity: bool) -> None:
    """Equations 38 to 41 of arXiv:1308.0850: n and g averaged at 0.95, momentum 0.9, 1e-4 in the root."""
    random = np.random.default_rng(5)
    rule = make_rule(
        "rmsprop",
        rho=0.95,
        momentum=0.9,
        eps=1e-4,
        centered=True,
        eps_inside_root=True,
        lr_in_velocity=lr_in_velocity,
    )
    w, n, mean, delta = random.standard_normal(5), np.zeros(5), np.zeros(5), np.zeros(5)
    position, state = w.copy(), (np.zeros(5), np.zeros(5), np.zeros(5))
    assert rule.state_names == ("square_average", "gradient_average", "velocity")
    for step in range(10):
        gradient = random.standard_normal(5)
        n = 0.95 * n + 0.05 * gradient**2
        mean = 0.95 * mean + 0.05 * gradient
        delta = 0.9 * delta - 1e-4 * gradient / np.sqrt(n - mean**2 + 1e-4)
        w = w + delta
        rule.update(position, gradient.copy(), state, rule.coefficients(step, 1e-4), (np.empty(5), np.empty(5)))
        np.testing.assert_allclose(position, w, rtol=1e-13)


def test_centred_rmsprop_stays_finite_under_a_gradient_that_never_changes() -> None:
    rule = make_rule("rmsprop", rho=0.9, centered=True)
    block, scratch = np.zeros(7, np.float32), (np.empty(7, np.float32), np.empty(7, np.float32))
    state = np.zeros(7, np.float32), np.zeros(7, np.float32)
    for step in range(400):
        rule.update(block, np.full(7, 0.3, np.float32), state, rule.coefficients(step, 1e-9), scratch)
    assert np.isfinite(block).all()


def test_adam_without_bias_correction_is_the_lectures_first_form() -> None:
    rule = make_rule("adam", bias_correction=False)
    block, state, gradient = np.ones(1), (np.zeros(1), np.zeros(1)), 0.5
    rule.update(block, np.array([gradient]), state, rule.coefficients(0, 0.01), (np.empty(1), np.empty(1)))
    first, second = 0.1 * gradient, 0.001 * gradient**2
    np.testing.assert_allclose(block, 1 - 0.01 * first / (np.sqrt(second) + 1e-8), rtol=1e-14)
