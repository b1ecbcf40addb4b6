"""Schedules against their definitions and PyTorch's schedulers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dtrain.errors import InputError
from dtrain.optim import make_schedule


def torch_rates(scheduler: type, steps: int, lr: float, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    schedule = scheduler(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def rates(count: int, name: str, **options: Any) -> list[float]:
    schedule = make_schedule(name, **options)
    return [schedule.lr(step) for step in range(count)]


def test_constant() -> None:
    assert rates(3, "constant", lr=0.2) == [0.2, 0.2, 0.2]


def test_step_every() -> None:
    expected = torch_rates(torch.optim.lr_scheduler.StepLR, 40, 0.5, step_size=7, gamma=0.3)
    assert rates(40, "step", lr=0.5, every=7, factor=0.3) == pytest.approx(expected, rel=1e-14)


def test_step_milestones() -> None:
    expected = torch_rates(torch.optim.lr_scheduler.MultiStepLR, 40, 0.5, milestones=[3, 20, 21], gamma=0.1)
    assert rates(40, "step", lr=0.5, milestones=[3, 20, 21]) == pytest.approx(expected, rel=1e-14)


def test_cosine() -> None:
    expected = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, 31, 0.5, T_max=30, eta_min=0.01)
    assert rates(31, "cosine", lr=0.5, steps=30, floor=0.01) == pytest.approx(expected, rel=1e-12)


def test_cosine_stays_at_its_floor() -> None:
    assert rates(200, "cosine", lr=0.5, steps=30, floor=0.01)[30:] == [0.01] * 170


def test_warm_up_rises_in_equal_parts_and_then_starts_the_schedule() -> None:
    warmed = rates(40, "step", lr=1.0, every=10, factor=0.5, warmup_steps=4)
    assert warmed[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert warmed[4:] == rates(36, "step", lr=1.0, every=10, factor=0.5)


def test_a_cosine_without_steps_ends_with_the_job() -> None:
    schedule = make_schedule("cosine", lr=1.0, warmup_steps=10, total_steps=110)
    assert schedule.lr(10) == 1.0
    assert schedule.lr(60) == pytest.approx(0.5)
    assert schedule.lr(110) == 0.0


def test_rates_are_python_floats() -> None:
    assert all(type(rate) is float for rate in rates(5, "cosine", lr=1, steps=3, warmup_steps=2))


def test_numbers_written_as_text_are_taken() -> None:
    assert make_schedule("constant", lr="1e-3").lr(0) == 1e-3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin", "lr": 1.0}, "optimizer.schedule.name: there is no schedule 'cosin'; did you mean 'cosine'?"),
        ({"name": "constant", "lr": -1.0}, "optimizer.lr: expected a number at least 0, got -1.0"),
        ({"name": "constant", "lr": math.inf}, "optimizer.lr: expected a number, got inf"),
        (
            {"name": "constant", "lr": 1.0, "base": 2.0},
            "optimizer.schedule.base: schedule 'constant' has no option 'base'",
        ),
        (
            {"name": "constant", "lr": 1.0, "warmup_steps": 1.5},
            "optimizer.schedule.warmup_steps: expected a whole number, got 1.5",
        ),
        ({"name": "step", "lr": 1.0}, "optimizer.schedule.every: a step schedule needs either every or milestones"),
        ({"name": "step", "lr": 1.0, "every": 3, "milestones": [2]}, "give one of the two"),
        ({"name": "cosine", "lr": 1.0}, "optimizer.schedule.steps: schedule 'cosine' needs it"),
        (
            {"name": "cosine", "lr": 1.0, "warmup_steps": 9, "total_steps": 9},
            "optimizer.schedule.warmup_steps: expected less than the job's 9",
        ),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_schedule(**options)
