"""What is wrong with a run, from its records and events alone, by thresholds that are stated here."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from dtrain.monitor.view import RunView

NAMES = ("stalled", "nonfinite", "skipped", "spike", "straggler", "checkpoint_stale", "workers_lost")

STALLED_SECONDS, STALLED_STEPS = 10.0, 10
"""No step for so long, and for so many times the mean of the last 50 steps."""
STRAGGLER = 1.5
"""A worker's time for a shard's data, forward and backward is more than so many times the median of the workers."""
_OF_A_SHARD = ("data", "forward", "backward")
STALE = 3
"""The newest checkpoint is older than so many times `checkpoint.every`."""
LOST, LOST_SECONDS = 3, 300.0
"""So many workers lost in so many seconds."""
TOLD_STEPS = 100
"""A spike, or a value that is not finite, is shown for so many steps."""


@dataclass(frozen=True)
class Alert:
    """``name`` is one of ``NAMES``."""

    name: str
    text: str


def alerts(view: RunView, now: float) -> list[Alert]:
    """Return what is wrong at ``now``, in seconds since the epoch; of a run that has ended only what its steps say."""
    found = _of_steps(view)
    return [*_of_time(view, now), *found] if view.is_running else found


def _of_time(view: RunView, now: float) -> list[Alert]:
    found = []
    if view.stepped_at is not None:
        quiet = now - view.stepped_at
        if quiet > max(STALLED_SECONDS, STALLED_STEPS * (view.step_seconds or 0.0)):
            found.append(Alert("stalled", f"no step for {quiet:.0f} s"))
    since = view.checkpoint_at or view.started_at
    if view.checkpoint_seconds and since is not None and now - since > STALE * view.checkpoint_seconds:
        found.append(Alert("checkpoint_stale", f"the newest checkpoint is {now - since:.0f} s old"))
    behind = view.step - (view.checkpoint_step or 0)
    if view.checkpoint_steps and behind > STALE * view.checkpoint_steps:
        found.append(Alert("checkpoint_stale", f"the newest checkpoint is {behind} steps old"))
    lost = sum(1 for at in view.lost_at if now - at <= LOST_SECONDS)
    if lost >= LOST:
        found.append(Alert("workers_lost", f"{lost} workers were lost in {LOST_SECONDS / 60:.0f} minutes"))
    if (slow := _straggler(view)) is not None:
        found.append(Alert("straggler", f"worker {slow[0]} takes {slow[1]:.1f} times as long for a shard as others"))
    return found


def _of_steps(view: RunView) -> list[Alert]:
    recent = (event for event in view.events if view.step - int(event.values.get("step") or 0) <= TOLD_STEPS)
    newest = {event.kind: event for event in recent}
    found = [Alert(kind, newest[kind].text) for kind in ("nonfinite", "spike") if kind in newest]
    record = view.record
    if record is not None and not math.isfinite(record.loss) and "nonfinite" not in newest:
        found.append(Alert("nonfinite", f"the loss of step {record.step} is {record.loss}"))
    if view.skipped:
        found.append(Alert("skipped", f"{view.skipped} of the last steps were skipped: not finite"))
    return found


def _straggler(view: RunView) -> tuple[int, float] | None:
    """The worker that is slowest for a shard, and how many times as slow as the median, if that is too much."""
    costs = {}
    for rank, worker in enumerate(view.members):
        known, shards = view.workers.get(worker), view.shards_of(rank)
        if known is not None and known.shares and shards:
            costs[worker] = sum(known.shares.get(phase, 0.0) for phase in _OF_A_SHARD) / shards
    if len(costs) < 2:
        return None
    slowest = max(costs, key=costs.__getitem__)
    median = statistics.median_low(costs.values())
    times = costs[slowest] / median if median > 0 else 0.0
    return (slowest, times) if times > STRAGGLER else None
