"""Learning-rate schedules: lr as a pure function of the step.

Plain Python floats; the coordinator evaluates a schedule once per step and sends the value, because ``math.cos`` may
differ in the last bit between machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from dtrain.errors import InputError
from dtrain.options import Options, build, checked, number, unknown_name


class Schedule(Protocol):
    """What the coordinator asks: the learning rate of committed step ``step``, counted from 0."""

    def lr(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant(Options):
    """The same learning rate at every step."""

    section: ClassVar[str] = "optimizer.schedule"

    base: float = number(at_least=0)

    def lr(self, step: int) -> float:
        return self.base


@dataclass(frozen=True)
class Step(Options):
    """base·factor^k, where k counts the whole periods of ``every`` steps, or the ``milestones`` reached, so far.

    As StepLR and MultiStepLR of PyTorch: the factor acts from step ``every``, or from the milestone, on.
    """

    section: ClassVar[str] = "optimizer.schedule"

    base: float = number(at_least=0)
    factor: float = number(0.1, above=0)
    every: int | None = number(None, at_least=1)
    milestones: tuple[int, ...] = number((), at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.every is None) == (not self.milestones):
            raise InputError(
                "optimizer.schedule.every: a step schedule needs either every or milestones; give one of the two"
            )

    def lr(self, step: int) -> float:
        drops = step // self.every if self.every else sum(step >= milestone for milestone in self.milestones)
        return self.base * self.factor**drops


@dataclass(frozen=True)
class Cosine(Options):
    """From ``base`` at step 0 along half a cosine to ``floor`` at step ``steps``, and ``floor`` from there on.

    SGDR's annealing (Loshchilov and Hutter, arXiv:1608.03983, equation 5) without restarts.
    """

    section: ClassVar[str] = "optimizer.schedule"

    base: float = number(at_least=0)
    steps: int = number(at_least=1)
    floor: float = number(0.0, at_least=0)

    def lr(self, step: int) -> float:
        progress = min(step / self.steps, 1.0)
        return self.floor + (self.base - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmUp:
    """A linear rise over ``steps`` steps, then the schedule ``then``, which counts its own steps from 0.

    Step i gives (i + 1)/(steps + 1) of ``then.lr(0)``, so no step is lost at lr 0 and step ``steps`` is the first at
    the full rate.
    """

    steps: int
    then: Schedule

    def lr(self, step: int) -> float:
        if step < self.steps:
            return self.then.lr(0) * ((step + 1) / (self.steps + 1))
        return self.then.lr(step - self.steps)


SCHEDULES: dict[str, type[Constant] | type[Step] | type[Cosine]] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
}


def make_schedule(
    name: str = "constant", *, lr: float, warmup_steps: int = 0, total_steps: int | None = None, **options: Any
) -> Schedule:
    """The schedule of that name with base rate ``lr``, after ``warmup_steps`` steps of linear rise.

    A cosine without ``steps`` ends with the job: it takes ``total_steps`` (of the job) minus ``warmup_steps``. Raises
    ``InputError`` for a name, an option or a value that does not exist or fit.
    """
    if name not in SCHEDULES:
        raise unknown_name("optimizer.schedule.name", "schedule", name, SCHEDULES)
    warmup = checked("optimizer.schedule.warmup_steps", int, warmup_steps, {"at least": 0})
    lr = checked("optimizer.lr", float, lr, {"at least": 0})
    if name == "cosine" and options.get("steps") is None and total_steps is not None:
        if total_steps <= warmup:
            raise InputError(
                f"optimizer.schedule.warmup_steps: expected less than the job's {total_steps} steps, got {warmup}; "
                "lower it"
            )
        options["steps"] = total_steps - warmup
    schedule: Schedule = build(SCHEDULES[name], name, options, base=lr)
    return WarmUp(warmup, schedule) if warmup else schedule
