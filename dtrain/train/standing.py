"""What the coordinator knows of one worker."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dtrain.comm.memory import GRADIENTS, SUMMED


class Status(Enum):
    STARTING = "starting"
    READY = "ready"  # joined, in no generation
    ACTIVE = "active"
    HALTING = "halting"
    KILLED = "killed"  # told to die, not yet gone


@dataclass
class Worker:
    status: Status
    since: float
    host: int = 0
    is_waiting: bool = False
    arrival: tuple[int, int] = (-1, -1)
    has_stepped: bool = False
    evaluating: bool = False
    reason: str = ""

    @property
    def phase(self) -> str:
        """What it is doing, as far as it has told: start, evaluation, gradients, sum or update."""
        if self.status is Status.STARTING:
            return "start"
        if self.evaluating:
            return "evaluation"
        return {GRADIENTS: "sum", SUMMED: "update"}.get(self.arrival[0] % 4, "gradients")
