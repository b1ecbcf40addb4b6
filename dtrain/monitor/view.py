"""A run as it stands: what its records and events come to, for whoever shows it. Its size is bounded."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dtrain.comm.layout import split_evenly
from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.timeline import described, unix_time

_POINTS = 512
_RECENT = 50
_EVENTS = 100
STEADY = ("checkpoint", "first_step", "generation", "worker_joined")
"""Events of a run without trouble."""
NOTED = ("worker_lost", "worker_silent", "worker_stack", "checkpoint_failed", "handout_failed", "spike")
"""Events that ``dtrain run`` leaves on the terminal."""


def is_noted(event: Mapping[str, Any]) -> bool:
    """Whether ``dtrain run`` leaves an event on the terminal. What ends the run is in its last words instead."""
    return event["event"] in NOTED or (event["event"] == "nonfinite" and event["is_skipped"])


class Course:
    """The course of a figure over the whole run in a bounded number of points: means of equally many steps each."""

    def __init__(self) -> None:
        self._points: list[float] = []
        self._stride = 1
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """Take the value of the next step; one that is not finite makes its point nan."""
        self._sum += value if math.isfinite(value) else math.nan
        self._count += 1
        if self._count == self._stride:
            self._points.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
            if len(self._points) == _POINTS:
                halves = zip(self._points[::2], self._points[1::2], strict=True)
                self._points = [(a + b) / 2 for a, b in halves]
                self._stride *= 2

    def points(self, count: int) -> list[float]:
        """Return at most ``count`` points, means of what lies together; nan where a value was not finite."""
        points = self._points + ([self._sum / self._count] if self._count else [])
        if count <= 0 or len(points) <= count:
            return points[:] if count > 0 else []
        bounds = [len(points) * i // count for i in range(count + 1)]
        return [sum(points[lo:hi]) / (hi - lo) for lo, hi in pairwise(bounds)]


@dataclass
class WorkerView:
    """One worker: where it is, and in ``shares`` the part of its time that each phase takes, which add up to 1."""

    worker: int
    host: str = ""
    pid: int | None = None
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One line of ``events.jsonl``; ``at`` is its time in seconds since the epoch."""

    at: float
    kind: str
    values: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What happened, in one line."""
        return str(self.values.get("text") or described(self.values))


class RunView:
    """Takes records and events as they come. What is not known is None."""

    def __init__(self, steps: int | None = None, steps_per_epoch: int | None = None, shards: int | None = None) -> None:
        """A run of so many ``steps``; each mini-batch is cut into ``shards``."""
        self.steps, self.steps_per_epoch, self.shards = steps, steps_per_epoch, shards
        self.name, self.status = "", "running"
        self.checkpoint_seconds: float | None = None  # between two checkpoints, as the job has it
        self.checkpoint_steps: int | None = None
        self.step = 0
        self.record: StepRecord | None = None
        self.eval: EvalRecord | None = None
        self.loss, self.gradient_norm = Course(), Course()
        self.stepped_at: float | None = None  # seconds since the epoch
        self.started_at: float | None = None
        self.checkpoint_at: float | None = None
        self.checkpoint_step: int | None = None
        self.generation = self.restarts = 0
        self.members: tuple[int, ...] = ()
        self.workers: dict[int, WorkerView] = {}
        self.losses_by_rank: dict[int, int] = {}
        self.lost_at: deque[float] = deque(maxlen=_EVENTS)
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.result: Mapping[str, Any] | None = None
        # Steps and samples a second, by the clock of who shows it.
        self.measured: tuple[float | None, float] | None = None
        self._recent: deque[tuple[float, int, bool]] = deque(maxlen=_RECENT)  # seconds, samples, skipped

    # --- taking in ---------------------------------------------------------------------------------------------------

    def take(self, record: StepRecord | EvalRecord) -> None:
        """Take the next record of ``metrics.jsonl``."""
        if isinstance(record, EvalRecord):
            self.eval = record
            return
        self.record, self.step = record, record.step + 1
        self.loss.add(record.loss)
        self.gradient_norm.add(record.gradient_norm)
        self._recent.append((record.seconds, record.samples, record.is_skipped))
        for worker, seconds in (record.phases or {}).items():
            total = sum(seconds.values())
            if total > 0:
                shares = {phase: value / total for phase, value in seconds.items()}
                known = self.workers.setdefault(worker, WorkerView(worker))
                before = known.shares or shares
                known.shares = {phase: 0.8 * before.get(phase, 0.0) + 0.2 * share for phase, share in shares.items()}

    def take_event(self, values: Mapping[str, Any], now: float) -> None:
        """Take the next line of ``events.jsonl``; of one without a time it is ``now``."""
        event = Event(unix_time(values.get("time"), now), str(values.get("event")), values)
        self.events.append(event)
        match event.kind:
            case "started":
                self.steps, self.step = int(values["steps"]), int(values["step"])
                self.steps_per_epoch = values.get("steps_per_epoch", self.steps_per_epoch)
                self.started_at, self.restarts = event.at, 0
                self.members, self.workers, self.losses_by_rank = (), {}, {}
                self.lost_at.clear()
                self.checkpoint_at = self.checkpoint_step = self.stepped_at = None
            case "worker_joined":
                worker = int(values["worker"])
                self.workers[worker] = WorkerView(worker, str(values.get("host", "")), values.get("pid"))
            case "generation":
                self.generation, self.restarts = int(values["generation"]), int(values["restarts"])
                self.members = tuple(values["members"])
            case "worker_lost":
                self.lost_at.append(event.at)
                if values["worker"] in self.members:
                    rank = self.members.index(values["worker"])
                    self.losses_by_rank[rank] = self.losses_by_rank.get(rank, 0) + 1
            case "checkpoint":
                self.checkpoint_at, self.checkpoint_step = event.at, int(values["step"])
            case "first_step":
                self.stepped_at = event.at

    # --- what it comes to --------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds of the last 50 steps."""
        return sum(s for s, _, _ in self._recent) / len(self._recent) if self._recent else None

    @property
    def speed(self) -> tuple[float | None, float] | None:
        """Steps and samples a second."""
        seconds = sum(s for s, _, _ in self._recent)
        if self.measured is not None or seconds <= 0:
            return self.measured
        return len(self._recent) / seconds, sum(n for _, n, _ in self._recent) / seconds

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the speed of now."""
        speed = self.speed[0] if self.speed is not None else None
        if self.steps is None or not speed or not self.is_running or self.step >= self.steps:
            return None
        return (self.steps - self.step) / speed

    @property
    def skipped(self) -> int:
        """How many of the last 50 steps were skipped."""
        return sum(is_skipped for _, _, is_skipped in self._recent)

    @property
    def epochs(self) -> int | None:
        """How many passes over the data the run has."""
        if self.steps is None or not self.steps_per_epoch:
            return None
        return -(-self.steps // self.steps_per_epoch)

    def shards_of(self, rank: int) -> int | None:
        """How many shards a rank of the generation runs."""
        if self.shards is None or not self.members:
            return None
        lo, hi = split_evenly(self.shards, len(self.members))[rank]
        return hi - lo

    def last_events(self, count: int, without: Sequence[str]) -> list[Event]:
        """The last events but for some kinds, the newest last."""
        return [event for event in self.events if event.kind not in without][-count:] if count > 0 else []

    def plain(self, now: float) -> dict[str, Any]:
        """Everything as plain values, for machines."""
        record, speed = self.record, self.speed
        return {
            "run": self.name,
            "status": self.status,
            "step": self.step,
            "steps": self.steps,
            "epoch": None if record is None else record.epoch,
            "loss": None if record is None else record.loss,
            "gradient_norm": None if record is None else record.gradient_norm,
            "learning_rate": None if record is None else record.learning_rate,
            "eval": None if self.eval is None else {"loss": self.eval.loss, **self.eval.metrics},
            "steps_per_second": None if speed is None else speed[0],
            "samples_per_second": None if speed is None else speed[1],
            "seconds_left": self.seconds_left,
            "seconds_since_step": None if self.stepped_at is None else max(0.0, now - self.stepped_at),
            "checkpoint_step": self.checkpoint_step,
            "generation": self.generation,
            "restarts": self.restarts,
            "workers": [self._plain_worker(rank, worker) for rank, worker in enumerate(self.members)],
        }

    def _plain_worker(self, rank: int, worker: int) -> dict[str, Any]:
        known = self.workers.get(worker, WorkerView(worker))
        return {
            "worker": worker,
            "rank": rank,
            "host": known.host or None,
            "pid": known.pid,
            "shards": self.shards_of(rank),
            "phase_seconds": {p: share * (self.step_seconds or 0.0) for p, share in known.shares.items()},
            "restarts": self.losses_by_rank.get(rank, 0),
        }
