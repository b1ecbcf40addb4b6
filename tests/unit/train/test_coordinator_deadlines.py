"""What the coordinator makes of words that come late, and whom it takes for dead."""

from __future__ import annotations

from typing import Any

import pytest

from dtrain.train.coordinator import (
    Begin,
    Evaluate,
    Evaluated,
    Finish,
    Grant,
    Halt,
    Joined,
    Kill,
    Lost,
    Mode,
    Progress,
    Recover,
    Recovered,
    Snapshot,
    Spawn,
    Started,
    WorkerHalted,
)
from tests.unit.train.test_coordinator import CLASS, arrive, arrive_members, coordinator, killed, running

# --- what comes late -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "late",
    [
        WorkerHalted(1, 1),
        Evaluated(1, 1, 2),
        Joined(1, CLASS),
        Lost(1, "it died"),
        Progress({1: (3, 9), 0: (-1, 0)}),
        WorkerHalted(99, 1),
        Joined(99, CLASS),
    ],
    ids=str,
)
def test_a_late_word_of_a_dead_worker_changes_nothing(late: Any) -> None:
    state = running(3)
    state.handle(Lost(1, "it died"), 1)
    assert state.handle(late, 1) == []
    assert state.mode is Mode.HALTING
    assert 1 not in state.workers
    assert state.handle(WorkerHalted(0, 1), 1) == []
    assert state.handle(WorkerHalted(2, 1), 1) == [Recover(1)]


def test_a_dead_worker_of_another_numerics_class_is_no_reason_to_fail() -> None:
    state = coordinator(1)
    state.handle(Started(), 0)
    assert state.handle(Lost(0, "it died"), 1) == [Spawn(1)]
    assert state.handle(Joined(0, {}), 1) == []
    assert state.handle(Joined(1, CLASS), 1)[0] == Begin(1, 0, (1,), ((0, 1, 2, 3),), ((0, 4),))


def test_halted_of_an_old_generation_is_refused() -> None:
    state = running(2)
    state.handle(Lost(0, "it died"), 1)
    state.handle(WorkerHalted(1, 1), 1)
    state.handle(Recovered(0, {}), 1)
    state.handle(Joined(2, CLASS), 1)
    assert arrive_members(state, {1: 2}, 1)[0] == Begin(3, 2, (1, 2), ((0, 1), (2, 3)), ((0, 2), (2, 4)))
    state.handle(Lost(2, "it died"), 2)
    assert state.mode is Mode.HALTING
    assert state.handle(WorkerHalted(1, 2), 2) == []  # it left generation 2 at the boundary, and is in 3 since
    assert state.handle(WorkerHalted(1, 3), 2) == [Recover(3)]


def test_evaluated_of_another_step_is_refused() -> None:
    state = running(1, eval_every=2)
    assert arrive(state, 2, now=1) == [Evaluate(1, 2, (0,))]
    assert state.handle(Evaluated(0, 1, 0), 1) == []
    assert state.mode is Mode.EVALUATING


def test_a_worker_told_to_die_is_waited_for_until_it_is_gone() -> None:
    """Until then it may still write into the run's memory, whatever it says."""
    state = running(2, timeout_seconds=5, ahead_seconds=1e9)
    arrive(state, 1, 1, now=1)
    state.handle(Progress({0: (5, 2), 1: (3, 1)}), 2)
    assert [worker for worker, _ in killed(state.handle(Progress({0: (5, 2), 1: (3, 1)}), 8))] == [1]
    assert state.handle(WorkerHalted(1, 1), 8) == []
    assert state.handle(Lost(1, "it died"), 9) == [Spawn(2), Halt(1)]
    assert state.handle(WorkerHalted(0, 1), 9) == [Recover(1)]


def test_a_halting_worker_told_to_die_is_waited_for_until_it_is_gone() -> None:
    state = running(3, timeout_seconds=5)
    arrive(state, 1, 1, 1, now=1)
    state.handle(Lost(0, "it died"), 2)
    state.handle(WorkerHalted(1, 1), 3)
    assert [worker for worker, _ in killed(arrive(state, 1, 1, 1, now=9))] == [2]
    assert state.handle(WorkerHalted(2, 1), 9) == []
    assert state.mode is Mode.HALTING
    assert state.handle(Lost(2, "it died"), 10)[-1] == Recover(1)


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_only_the_slowest_is_killed_and_the_reason_names_worker_seconds_and_setting() -> None:
    state = running(3, timeout_seconds=5, ahead_seconds=1e9)
    arrive(state, 1, 1, 1, now=1)  # a step takes a second
    waiting = {0: (5, 1), 1: (3, 1), 2: (6, 1)}
    assert state.handle(Progress(waiting), 2) == []
    assert state.handle(Progress(waiting), 7) == []  # 5 s and a step
    assert killed(state.handle(Progress(waiting), 7.5)) == [
        (
            1,
            "worker 1 (rank 1) was silent for 6.5 s at step 1, in the phase gradients; it is replaced. "
            "If it was only slow, raise timeout_seconds (now 5)",
        )
    ]
    assert state.handle(Progress(waiting), 20) == []  # once


@pytest.mark.parametrize(
    ("arrival", "phase"), [(3, "gradients"), (4, "gradients"), (5, "sum"), (6, "update"), (7, "gradients")]
)
def test_who_is_killed_is_told_with_rank_step_phase_and_seconds(arrival: int, phase: str) -> None:
    state = running(2, timeout_seconds=5, ahead_seconds=1e9)
    arrive(state, 1, 1, now=1)
    arrivals = {0: (9, 1), 1: (arrival, 2)}
    state.handle(Progress(arrivals), 2)
    (kill,) = (i for i in state.handle(Progress(arrivals), 9) if isinstance(i, Kill))
    assert (kill.worker, kill.rank, kill.step, kill.phase, kill.seconds) == (1, 1, 1 + (arrival == 7), phase, 7.0)
    assert f"at step {kill.step}, in the phase {phase}; it is replaced" in kill.reason


def test_who_is_silent_in_an_evaluation_or_at_its_start() -> None:
    state = running(2, timeout_seconds=5, eval_every=2)
    arrive(state, 2, 2, now=1)
    (first, second) = (i for i in arrive(state, 2, 2, now=10) if isinstance(i, Kill))
    assert (first.phase, second.phase) == ("evaluation", "evaluation")
    state = coordinator(1, startup_timeout_seconds=2)
    state.handle(Started(), 0)
    (kill,) = (i for i in state.handle(Progress({}), 3) if isinstance(i, Kill))
    assert (kill.rank, kill.phase, kill.seconds) == (None, "start", 3.0)


def test_who_cannot_be_replaced_is_ended() -> None:
    state = running(2, timeout_seconds=5, can_replace=False)
    arrive(state, 1, 1, now=1)
    assert "; it is ended. If it was" in killed(arrive(state, 1, 1, now=9))[0][1]


def test_who_still_finishes_pieces_of_work_is_not_silent() -> None:
    state = running(1, timeout_seconds=5)
    arrive(state, 1, now=1)
    for beat in range(2, 30):
        assert state.handle(Progress({0: (3, beat)}), 4.0 * beat) == []


def test_all_who_are_equally_slow_are_killed() -> None:
    state = running(2, timeout_seconds=5)
    arrive(state, 1, 1, now=1)
    assert [worker for worker, _ in killed(arrive(state, 1, 1, now=9))] == [0, 1]


def test_a_long_step_is_part_of_the_deadline() -> None:
    state = running(1, timeout_seconds=5)
    arrive(state, 1, now=50)
    assert arrive(state, 1, now=50 + 54) == []
    assert killed(arrive(state, 1, now=50 + 56)) != []


def test_the_first_step_of_a_worker_has_the_time_of_a_start() -> None:
    state = running(1, timeout_seconds=5, startup_timeout_seconds=60)
    assert state.handle(Progress({0: (-1, 0)}), 1) == []
    assert state.handle(Progress({0: (-1, 0)}), 61) == []
    ((worker, reason),) = killed(state.handle(Progress({0: (-1, 0)}), 61.5))
    assert worker == 0
    assert "startup_timeout_seconds (now 60)" in reason


def test_a_worker_that_does_not_start_is_killed() -> None:
    state = coordinator(2, startup_timeout_seconds=60)
    state.handle(Started(), 0)
    state.handle(Joined(0, CLASS), 50)
    assert state.handle(Progress({}), 60) == []
    assert killed(state.handle(Progress({}), 60.5)) == [
        (
            1,
            "worker 1 was silent for 60.5 s while it started; it is replaced. "
            "If it was only slow, raise startup_timeout_seconds (now 60)",
        )
    ]
    # It is too late for worker 1, which is being killed; the run begins without it.
    assert state.handle(Joined(1, CLASS), 61) == [Begin(1, 0, (0,), ((0, 1, 2, 3),), ((0, 4),)), Grant(2)]
    assert state.handle(Lost(1, "it died"), 61) == [Spawn(2)]


def test_idle_members_are_not_silent() -> None:
    state = running(1, steps=50, checkpoint_every=2, timeout_seconds=5)
    assert arrive(state, 2, now=1) == [Snapshot(2), Grant(4)]
    assert arrive(state, 2, now=6) == []


def test_a_member_that_has_evaluated_is_not_waited_for() -> None:
    state = running(2, eval_every=2, timeout_seconds=5)
    arrive(state, 2, 2, now=2)
    state.handle(Evaluated(0, 1, 2), 3)
    assert [worker for worker, _ in killed(arrive(state, 2, 2, now=10))] == [1]


def test_the_reason_of_a_kill_is_told_when_too_many_die() -> None:
    state = coordinator(1, startup_timeout_seconds=1)
    state.handle(Started(), 0)
    now, instructions = 0.0, []
    for worker in range(5):
        now += 2
        assert [w for w, _ in killed(state.handle(Progress({}), now))] == [worker]
        instructions = state.handle(Lost(worker, "it died"), now)
    assert isinstance(instructions[-1], Finish)
    assert "worker 4 was silent for 2.0 s while it started" in str(instructions[-1].error)
