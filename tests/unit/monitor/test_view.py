"""What records and events come to: curves of bounded size, speed, workers; and what is wrong, by its thresholds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dtrain.monitor.alerts import NAMES, alerts
from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.view import Course, RunView

NOW = 1_800_000_000.0


def record(step: int, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "step": step,
        "epoch": 0,
        "loss": 1.0,
        "gradient_norm": 2.0,
        "clip_scale": 1.0,
        "learning_rate": 0.1,
        "samples": 8,
        "seconds": 0.25,
    }
    return StepRecord(**{**values, **changes})


def running(workers: int = 2, **changes: Any) -> RunView:
    """A run of 100 steps that has made one a moment ago."""
    view = RunView(shards=8)
    view.take_event({"event": "started", "steps": 100, "step": 0, "steps_per_epoch": 10}, NOW)
    for worker in range(workers):
        view.take_event(
            {"event": "worker_joined", "worker": worker, "host": f"node-{worker}", "pid": 100 + worker}, NOW
        )
    view.take_event({"event": "generation", "generation": 1, "members": list(range(workers)), "restarts": 0}, NOW)
    view.take(record(0))
    view.stepped_at = NOW
    for name, value in changes.items():
        setattr(view, name, value)
    return view


def busy(view: RunView, *compute: float) -> None:
    """Let each worker spend so much of a second on computation, and wait for the rest."""
    view.take(record(view.step, phases={w: {"forward": c, "wait": 1 - c} for w, c in enumerate(compute)}))


def names(view: RunView, now: float = NOW) -> list[str]:
    return [alert.name for alert in alerts(view, now)]


# --- curves ----------------------------------------------------------------------------------------------------------


def test_a_short_history_is_kept_as_it_is() -> None:
    history = Course()
    for value in (3.0, 1.0, 2.0):
        history.add(value)
    assert history.points(10) == history.points(3) == [3.0, 1.0, 2.0]
    assert history.points(1) == [2.0]
    assert history.points(0) == []


def test_a_long_history_becomes_means_of_the_whole_run() -> None:
    history = Course()
    for value in range(100_000):
        history.add(float(value))
    assert len(history._points) < 512
    points = history.points(10)
    assert len(points) == 10
    assert points[0] == pytest.approx(5_000, rel=0.03)
    assert points[-1] == pytest.approx(95_000, rel=0.01)
    assert points == sorted(points)


def test_a_value_that_is_not_finite_stays_seen() -> None:
    history = Course()
    for value in range(5000):
        history.add(math.inf if value == 2500 else 1.0)
    points = history.points(20)
    (place,) = (i for i, point in enumerate(points) if math.isnan(point))
    assert place in (9, 10)


# --- the run ---------------------------------------------------------------------------------------------------------


def test_speed_and_the_time_that_is_left() -> None:
    view = running()
    for step in range(1, 50):
        view.take(record(step))
    assert view.speed == (4.0, 32.0)
    assert view.seconds_left == 12.5
    view.measured = 10.0, 80.0
    assert view.seconds_left == 5.0
    view.status = "stopped"
    assert view.seconds_left is None


def test_workers_by_rank_with_host_phases_and_what_their_rank_has_lost() -> None:
    view = running()
    view.take(record(1, phases={0: {"data": 0.5, "forward": 1.5}, 1: {"data": 0.1, "forward": 0.1}}))
    view.take_event({"event": "worker_lost", "worker": 1}, NOW)
    view.take_event({"event": "worker_joined", "worker": 2, "host": "node-9", "pid": 7}, NOW)
    view.take_event({"event": "generation", "generation": 3, "members": [0, 2], "restarts": 1}, NOW)
    first, second = view.plain(NOW)["workers"]
    assert first.pop("phase_seconds") == pytest.approx({"data": 0.0625, "forward": 0.1875})
    assert first == {
        "worker": 0,
        "rank": 0,
        "host": "node-0",
        "pid": 100,
        "shards": 4,
        "restarts": 0,
    }
    assert (second["worker"], second["host"], second["phase_seconds"], second["restarts"]) == (2, "node-9", {}, 1)


def test_plain_values() -> None:
    view = running()
    view.take(EvalRecord(1, 0, 0.5, {"accuracy": 0.75}))
    view.take_event({"event": "checkpoint", "step": 1}, NOW)
    plain = view.plain(NOW + 3)
    assert (plain["status"], plain["step"], plain["steps"], plain["loss"]) == ("running", 1, 100, 1.0)
    assert plain["eval"] == {"loss": 0.5, "accuracy": 0.75}
    assert (plain["seconds_since_step"], plain["checkpoint_step"], plain["generation"]) == (3.0, 1, 1)
    assert RunView().plain(NOW)["loss"] is None


def test_a_resumed_run_begins_anew() -> None:
    view = running()
    for worker in (0, 1):
        view.take_event({"event": "worker_lost", "worker": worker}, NOW)
    view.take_event({"event": "checkpoint", "step": 1}, NOW)
    view.take_event({"event": "started", "steps": 100, "step": 50}, NOW)
    assert (view.step, view.members, view.workers, view.losses_by_rank) == (50, (), {}, {})
    assert (view.checkpoint_step, view.stepped_at, list(view.lost_at)) == (None, None, [])
    assert view.steps_per_epoch == 10


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_all_is_well() -> None:
    view = running(checkpoint_seconds=30.0)
    busy(view, 0.5, 0.6)
    assert names(view) == []


@pytest.mark.parametrize(
    ("seconds", "step_seconds", "is_stalled"),
    [(10.0, 0.1, False), (10.1, 0.1, True), (29.0, 3.0, False), (31, 3, True)],
)
def test_stalled(seconds: float, step_seconds: float, is_stalled: bool) -> None:
    view = running()
    for step in range(1, 60):
        view.take(record(step, seconds=step_seconds))
    assert names(view, NOW + seconds) == ["stalled"] * is_stalled
    view.status = "failed"
    assert names(view, NOW + seconds) == []


def test_before_the_first_step_nothing_is_stalled() -> None:
    view = running(stepped_at=None)
    assert names(view, NOW + 100) == []


def test_not_finite() -> None:
    view = running()
    view.take(record(1, loss=math.nan))
    assert names(view) == ["nonfinite"]
    view.take_event({"event": "nonfinite", "step": 1, "text": "in log"}, NOW)
    assert [(a.name, a.text) for a in alerts(view, NOW)] == [("nonfinite", "in log")]
    view.take(record(2))
    assert names(view) == ["nonfinite"]
    view.take(record(101))
    assert names(view) == []


def test_a_spike_is_shown_for_a_while() -> None:
    view = running()
    view.take_event({"event": "spike", "step": 1, "text": "far beyond"}, NOW)
    view.take(record(100))
    assert [(a.name, a.text) for a in alerts(view, NOW)] == [("spike", "far beyond")]
    view.take(record(101))
    assert names(view) == []


def test_skipped_steps() -> None:
    view = running()
    view.take(record(1, is_skipped=True))
    assert [(a.name, a.text) for a in alerts(view, NOW)] == [
        ("skipped", "1 of the last steps were skipped: not finite")
    ]
    for step in range(2, 52):
        view.take(record(step))
    assert names(view) == []


@pytest.mark.parametrize(
    ("compute", "slow"),
    [((0.5, 0.74), None), ((0.5, 0.76), 1), ((0.9, 0.2), 0), ((0.2, 0.2, 0.8), 2), ((0.5,), None)],
)
def test_stragglers(compute: tuple[float, ...], slow: int | None) -> None:
    view = running(len(compute))
    view.shards = 12
    busy(view, *compute)
    found = alerts(view, NOW)
    assert [a.name for a in found] == ["straggler"] * (slow is not None)
    assert all(a.text.startswith(f"worker {slow} takes ") for a in found)


def test_a_worker_with_more_shards_is_no_straggler() -> None:
    view = running(3)  # 2, 3 and 3 of 8 shards
    busy(view, 0.2, 0.3, 0.3)
    view.shards = 5  # 1, 2 and 2
    busy(view, 0.2, 0.4, 0.4)
    assert names(view) == []


def test_a_checkpoint_that_is_too_old() -> None:
    view = running(checkpoint_seconds=2.0)
    assert names(view, NOW + 6) == []
    assert names(view, NOW + 6.1) == ["checkpoint_stale"]
    view.take_event({"event": "checkpoint", "step": 1}, NOW + 6)
    assert names(view, NOW + 6.1) == []
    view = running(checkpoint_steps=10)
    view.take_event({"event": "checkpoint", "step": 10}, NOW)
    view.take(record(39))
    assert names(view) == []
    view.take(record(40))
    assert names(view) == ["checkpoint_stale"]


def test_many_workers_lost() -> None:
    view = running()
    for _ in range(3):
        assert names(view) == []
        view.take_event({"event": "worker_lost", "worker": 9}, NOW - 10)
    assert names(view) == ["workers_lost"]
    assert "workers_lost" not in names(view, NOW + 300)


def test_every_alert_has_a_test_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in source for name in NAMES)
