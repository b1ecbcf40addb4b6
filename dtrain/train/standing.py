"""What the coordinator knows of one worker."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
