"""A race of the seven update rules over one function: the lecture's "effects of different update formulas".

``COURSES`` are the functions that ship: Beale's, a saddle, a long valley, and logistic regression on noisy moons. A
course is a function of a position in float64; ``run`` lets each rule walk over it from the same start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.graph import value_and_grad
from dtrain.optim.rule import Rule
from dtrain.optim.rules import make_rule

Array = NDArray[np.float64]
RULES = ("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam")
OPTIONS: dict[str, dict[str, Any]] = {"rmsprop": {"rho": 0.9}, "adadelta": {"rho": 0.95}}
"""The lecture's ρ; everything else is the rule's default."""

RATES = dict(zip(RULES, (0.01, 0.01, 0.01, 0.1, 1.0, 0.01, 0.05), strict=True))
"""Learning rates for a function of which nothing is known."""


@dataclass(frozen=True)
class Course:
    """A function to walk over: ``loss(position, *data)``, of a position (d,), and where the walk begins.

    ``rates`` are the learning rates by rule. ``goal`` says whether a position has arrived, ``goal_text`` what that
    means. ``window`` (x_low, x_high, y_low, y_high) is what a picture of two coordinates shows. ``batch(step)`` is the
    data of a step, where the gradient is that of a sample of the loss, and ``batch(None)`` all data.
    """

    name: str
    loss: Callable[..., Any]
    start: tuple[float, ...]
    rates: Mapping[str, float] = field(default_factory=lambda: dict(RATES))
    goal: Callable[[Array], bool] | None = None
    goal_text: str = ""
    window: tuple[float, float, float, float] | None = None
    batch: Callable[[int | None], tuple[Any, ...]] | None = None
    steps: int = 300


@dataclass(frozen=True)
class Walk:
    """What one rule did: positions (steps + 1, d), the loss at each, and the first step at the goal, or None.

    A walk ends early where the loss or the gradient is not finite; then ``is_lost``.
    """

    rule: str
    lr: float
    positions: Array
    losses: Array
    arrived: int | None
    is_lost: bool


def run(course: Course, steps: int | None = None, rates: Mapping[str, float] | None = None) -> list[Walk]:
    """Let each rule that ``rates`` names, all seven unless given, take so many steps, and return their walks."""
    rates = course.rates if rates is None else rates
    return [_walk(course, name, lr, course.steps if steps is None else steps) for name, lr in rates.items()]


def _walk(course: Course, name: str, lr: float, steps: int) -> Walk:
    rule: Rule = make_rule(name, **OPTIONS.get(name, {}))
    slope = value_and_grad(course.loss)
    whole = () if course.batch is None else course.batch(None)
    position = np.array(course.start, np.float64)
    state = tuple(np.full(position.shape, rule.state_init(each)) for each in rule.state_names)
    scratch = np.empty_like(position), np.empty_like(position)
    positions, losses, arrived, is_lost = [position.copy()], [], None, False
    with np.errstate(all="ignore"):
        for step in range(steps + 1):
            loss, gradient = slope(position, *whole)
            if not (np.isfinite(loss) and np.isfinite(gradient).all()):
                is_lost = True
                positions.pop()
                break
            losses.append(float(loss))
            if arrived is None and course.goal is not None and course.goal(position):
                arrived = step
            if step == steps:
                break
            if course.batch is not None:
                _, gradient = slope(position, *course.batch(step))
            rule.update(position, np.array(gradient), state, rule.coefficients(step, lr), scratch)
            positions.append(position.copy())
    return Walk(name, lr, np.array(positions), np.array(losses), arrived, is_lost)


def _beale(p: Any) -> Any:
    x, y = p[0], p[1]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y * y) ** 2 + (2.625 - x + x * y * y * y) ** 2


def _saddle(p: Any) -> Any:
    return p[0] * p[0] - p[1] * p[1]


def _valley(p: Any) -> Any:
    return 5.0 * p[0] * p[0] + 0.005 * (p[1] - 3.0) ** 2


def _logistic(p: Any, x: Any, y: Any) -> Any:
    scores = x @ p[:2] + p[2]
    return np.mean(np.logaddexp(0.0, scores) - scores * y)


def _moons(step: int | None) -> tuple[Array, Array]:
    """Two half circles with noise, 200 points each (NumPy's generator, seed 0); of a step a sample of 16 points."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0.0, np.pi, 200)
    upper, lower = (np.cos(angle), np.sin(angle)), (1.0 - np.cos(angle), 0.5 - np.sin(angle))
    x = np.concatenate([np.stack(upper, axis=1), np.stack(lower, axis=1)]) + 0.3 * rng.standard_normal((400, 2))
    y = np.repeat([0.0, 1.0], 200)
    if step is None:
        return x, y
    chosen = np.random.default_rng([1, step]).integers(0, 400, 16)
    return x[chosen], y[chosen]


def _rates(*values: float) -> dict[str, float]:
    return dict(zip(RULES, values, strict=True))


COURSES: dict[str, Course] = {
    "beale": Course(
        "beale",
        _beale,
        (1.0, 1.5),
        _rates(0.002, 0.002, 0.002, 0.5, 10.0, 0.02, 0.1),
        lambda p: bool(np.hypot(p[0] - 3.0, p[1] - 0.5) < 0.1),
        "within 0.1 of the minimum at (3, 0.5)",
        (-0.5, 4.0, -1.5, 2.0),
        steps=500,
    ),
    "saddle": Course(
        "saddle",
        _saddle,
        (0.5, 1e-3),
        _rates(0.01, 0.01, 0.01, 0.1, 1.0, 0.01, 0.01),
        lambda p: bool(p[0] ** 2 - p[1] ** 2 < -1.0),
        "below −1",
        (-0.8, 0.8, -1.3, 1.3),
        steps=120,
    ),
    "valley": Course(
        "valley",
        _valley,
        (1.0, -3.0),
        _rates(0.01, 0.01, 0.01, 0.5, 1.0, 0.05, 0.1),
        lambda p: bool(5.0 * p[0] ** 2 + 0.005 * (p[1] - 3.0) ** 2 < 1e-3),
        "below 0.001",
        (-1.3, 1.3, -3.6, 3.6),
        steps=200,
    ),
    "noisy-moons": Course(
        "noisy-moons",
        _logistic,
        (-1.0, 1.0, 0.0),
        _rates(0.1, 0.05, 0.05, 0.3, 10.0, 0.05, 0.1),
        batch=_moons,
        steps=150,
    ),
}
"""The courses by name, with the learning rates at which each rule does well."""
