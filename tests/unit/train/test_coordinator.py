"""The coordinator's answers, event by event. Times are seconds of a clock that stands still unless told otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from dtrain.errors import InputError, NumericsError, WorkerError
from dtrain.train.coordinator import (
    Begin,
    Coordinator,
    Evaluate,
    Evaluated,
    Failed,
    Finish,
    Grant,
    Halt,
    Instruction,
    Introspect,
    Joined,
    Kill,
    Lost,
    Mode,
    Policy,
    Progress,
    Recover,
    Recovered,
    Snapshot,
    Spawn,
    Started,
    StopRequested,
    WorkerHalted,
)

CLASS = {"numpy": "2.4.0", "simd": "AVX2"}
NONE: frozenset[int] = frozenset()


def coordinator(world_size: int = 2, **changes: Any) -> Coordinator:
    values = {"steps": 100, "shards": 4, "world_size": world_size, "numerics": CLASS}
    return Coordinator(Policy(**{**values, **changes}))


def running(world_size: int = 2, **changes: Any) -> Coordinator:
    """A coordinator whose workers 0, 1, … have joined at time 0."""
    state = coordinator(world_size, **changes)
    state.handle(Started(), 0)
    for worker in range(world_size):
        state.handle(Joined(worker, CLASS), 0)
    assert state.generation == 1
    return state


def at(*steps: int, phase: int = 0) -> dict[int, tuple[int, int]]:
    """The progress of workers 0, 1, …: each has committed that many steps, and is ``phase`` barriers further."""
    return {worker: (4 * step - 1 + phase, step) for worker, step in enumerate(steps)}


def arrive(state: Coordinator, *steps: int, now: float = 0.0) -> list[Instruction]:
    return state.handle(Progress(at(*steps)), now)


def arrive_members(state: Coordinator, steps: dict[int, int], now: float) -> list[Instruction]:
    return state.handle(Progress({worker: (4 * step - 1, step) for worker, step in steps.items()}), now)


def killed(instructions: list[Instruction]) -> list[tuple[int, str]]:
    return [(i.worker, i.reason) for i in instructions if isinstance(i, Kill)]


# --- start -----------------------------------------------------------------------------------------------------------


def test_the_start_spawns_the_workers() -> None:
    assert coordinator(3).handle(Started(), 0) == [Spawn(0), Spawn(1), Spawn(2)]


def test_the_first_generation_begins_when_all_have_joined() -> None:
    state = coordinator(3)
    state.handle(Started(), 0)
    assert state.handle(Joined(2, CLASS), 1) == []
    assert state.handle(Joined(0, CLASS), 2) == []
    assert state.handle(Joined(1, CLASS), 3) == [
        Begin(1, 0, (0, 1, 2), first=((0,), (1,), (2, 3)), runs=((0, 1), (1, 2), (2, 4))),
        Grant(2),
    ]


def test_more_workers_than_shards_leaves_some_without() -> None:
    state = coordinator(3, shards=2)
    state.handle(Started(), 0)
    for worker in range(2):
        state.handle(Joined(worker, CLASS), 0)
    assert state.handle(Joined(2, CLASS), 0)[0] == Begin(
        1, 0, (0, 1, 2), first=((), (0,), (1,)), runs=((0, 0), (0, 1), (1, 2))
    )


def test_a_resumed_run_begins_at_its_step() -> None:
    state = coordinator(1, first_step=40)
    state.handle(Started(), 0)
    assert state.handle(Joined(0, CLASS), 0) == [Begin(1, 40, (0,), ((0, 1, 2, 3),), ((0, 4),)), Grant(42)]


def test_a_worker_that_dies_before_the_start_is_replaced() -> None:
    state = coordinator(2)
    state.handle(Started(), 0)
    state.handle(Joined(0, CLASS), 0)
    assert state.handle(Lost(1, "it died"), 0) == [Spawn(2)]
    assert state.handle(Joined(2, CLASS), 0)[0] == Begin(1, 0, (0, 2), ((0, 1), (2, 3)), ((0, 2), (2, 4)))


def test_a_joined_worker_that_dies_before_the_start_is_replaced() -> None:
    state = coordinator(2)
    state.handle(Started(), 0)
    state.handle(Joined(0, CLASS), 0)
    assert state.handle(Lost(0, "it died"), 0) == [Spawn(2)]
    assert state.handle(Joined(1, CLASS), 0) == []
    assert state.handle(Joined(2, CLASS), 0)[0] == Begin(1, 0, (1, 2), ((0, 1), (2, 3)), ((0, 2), (2, 4)))


@pytest.mark.parametrize(
    ("numerics", "name"),
    [({"numpy": "2.4.0", "simd": "AVX512"}, "simd"), ({"numpy": "2.4.0"}, "simd"), ({**CLASS, "x": "1"}, "x")],
)
def test_a_worker_of_another_numerics_class_is_refused(numerics: dict[str, str], name: str) -> None:
    state = coordinator(1)
    state.handle(Started(), 0)
    (finish,) = state.handle(Joined(0, numerics), 0)
    assert isinstance(finish, Finish)
    assert finish.status == "failed"
    assert isinstance(finish.error, NumericsError)
    assert finish.error.exit_code == 4
    assert f"worker 0 computes in another numerics class: {name} is {numerics.get(name)!r}" in str(finish.error)
    assert f"the job's is {CLASS.get(name)!r}" in str(finish.error)


def test_a_replacement_of_another_numerics_class_is_refused() -> None:
    state = running()
    state.handle(Lost(1, "it died"), 1)
    (finish,) = state.handle(Joined(2, {**CLASS, "numpy": "2.3.0"}), 2)
    assert isinstance(finish, Finish)
    assert isinstance(finish.error, NumericsError)


# --- grants ----------------------------------------------------------------------------------------------------------


def test_steps_are_granted_ahead_of_the_slowest() -> None:
    state = running(ahead_seconds=10, max_ahead=8)
    assert arrive(state, 1, 2, now=1.0) == [Grant(9)]
    assert (state.committed, state.granted) == (1, 9)
    assert arrive(state, 3, 3, now=2.0) == [Grant(11)]


def test_the_pace_limits_how_far_ahead() -> None:
    state = running(ahead_seconds=1.0)
    assert arrive(state, 1, 1, now=0.25) == [Grant(5)]  # four steps a second
    slow = running(ahead_seconds=1.0)
    assert arrive(slow, 1, 1, now=100.0) == [Grant(3)]  # never fewer than two


def test_a_step_is_committed_when_every_member_has_updated() -> None:
    state = running()
    state.handle(Progress({0: (3, 0), 1: (2, 0)}), 1)
    assert state.committed == 0
    state.handle(Progress({0: (3, 0), 1: (3, 0)}), 1)
    assert state.committed == 1


@pytest.mark.parametrize(
    ("policy", "last"), [({"eval_every": 7}, 7), ({"checkpoint_every": 5}, 5), ({"steps": 6}, 6), ({}, 10)]
)
def test_no_grant_beyond_a_boundary(policy: dict[str, int], last: int) -> None:
    state = running(ahead_seconds=1e9, max_ahead=9, **policy)
    assert arrive(state, 1, 1, now=1.0) == [Grant(last)]


def test_boundaries_count_from_step_zero_in_a_resumed_run() -> None:
    state = running(first_step=8, checkpoint_every=5, ahead_seconds=1e9, max_ahead=20)
    assert arrive(state, 9, 9, now=1.0) == []
    assert arrive(state, 10, 10, now=2.0) == [Snapshot(10), Grant(15)]


def test_no_grant_when_nothing_was_committed() -> None:
    state = running()
    assert arrive(state, 0, 0, now=1.0) == []


# --- evaluation, checkpoints, end ------------------------------------------------------------------------------------


def test_an_evaluation_at_its_boundary() -> None:
    state = running(eval_every=2)
    assert arrive(state, 2, 1, now=1) == []
    assert arrive(state, 2, 2, now=2) == [Evaluate(1, 2, (0, 1))]
    assert state.handle(Evaluated(1, 1, 2), 3) == []
    assert state.handle(Evaluated(0, 1, 2), 4) == [Grant(4)]


def test_a_copy_of_the_state_every_so_many_steps_and_one_at_the_start() -> None:
    state = running(introspect_every=2)
    assert state._introspected == 0
    assert arrive(state, 2, 1, now=1) == []
    assert arrive(state, 2, 2, now=2) == [Introspect(2), Grant(4)]


def test_a_snapshot_every_so_many_steps() -> None:
    state = running(checkpoint_every=2)
    assert arrive(state, 2, 2, now=1) == [Snapshot(2), Grant(4)]


def test_evaluation_before_snapshot_at_a_common_boundary() -> None:
    state = running(1, checkpoint_every=2, eval_every=2)
    assert arrive(state, 2, now=1) == [Evaluate(1, 2, (0,))]
    assert state.handle(Evaluated(0, 1, 2), 2) == [Snapshot(2), Grant(4)]


def test_a_snapshot_when_its_seconds_are_over() -> None:
    state = running(1, checkpoint_seconds=10, ahead_seconds=1e9, max_ahead=4)
    assert arrive(state, 1, now=5) == [Grant(5)]
    assert arrive(state, 3, now=11) == []  # no more grants, so that the members come to rest
    assert arrive(state, 5, now=12) == [Snapshot(5), Grant(9)]
    assert arrive(state, 6, now=21) == [Grant(10)]
    assert arrive(state, 10, now=22) == [Snapshot(10), Grant(14)]


def test_a_start_longer_than_the_seconds_between_checkpoints_is_no_obstacle() -> None:
    state = coordinator(1, checkpoint_seconds=30)
    state.handle(Started(), 0)
    assert state.handle(Joined(0, CLASS), 45) == [Begin(1, 0, (0,), ((0, 1, 2, 3),), ((0, 4),)), Grant(2)]
    assert arrive(state, 2, now=46) == [Snapshot(2), Grant(4)]
    assert arrive(state, 4, now=47)[-1] == Grant(6)


def test_a_recovery_longer_than_the_seconds_between_checkpoints_is_no_obstacle() -> None:
    state = running(1, checkpoint_seconds=10, ahead_seconds=8)
    assert arrive(state, 2, now=4) == [Grant(6)]
    state.handle(Lost(0, "it died"), 5)
    state.handle(Recovered(2, {}), 5)
    assert state.handle(Joined(1, CLASS), 40) == [Begin(2, 2, (1,), ((0, 1, 2, 3),), ((0, 4),))]
    assert arrive_members(state, {1: 6}, now=42) == [Snapshot(6), Grant(10)]


def test_the_end_evaluates_keeps_the_state_and_says_so() -> None:
    state = running(1, steps=2, eval_every=50)
    assert arrive(state, 2, now=1) == [Evaluate(1, 2, (0,))]
    assert state.handle(Evaluated(0, 1, 2), 2) == [Snapshot(2), Finish("succeeded", 2)]
    assert state.handle(Lost(0, "it died"), 3) == []
    assert state.mode is Mode.FINISHED


def test_a_run_resumed_after_its_last_step_still_evaluates() -> None:
    state = coordinator(1, steps=5, first_step=5, eval_every=5)
    state.handle(Started(), 0)
    begin, evaluate = state.handle(Joined(0, CLASS), 0)
    assert isinstance(begin, Begin)
    assert evaluate == Evaluate(1, 5, (0,))
    assert state.handle(Evaluated(0, 1, 5), 0)[-1] == Finish("succeeded", 5)


def test_a_stop_ends_at_the_end_of_the_granted_steps() -> None:
    state = running(ahead_seconds=1e9, max_ahead=3)
    arrive(state, 1, 1, now=1)
    assert state.handle(StopRequested(), 2) == []
    assert arrive(state, 3, 2, now=3) == []
    assert arrive(state, 4, 4, now=4) == [Snapshot(4), Finish("stopped", 4)]


def test_a_stop_waits_for_a_recovery() -> None:
    state = running(1)
    state.handle(StopRequested(), 1)
    assert state.handle(Lost(0, "it died"), 2) == [Spawn(1), Halt(1), Recover(1)]
    assert state.handle(Recovered(1, {}), 2) == []
    begin, *rest = state.handle(Joined(1, CLASS), 3)
    assert isinstance(begin, Begin)
    assert rest == []
    assert arrive(state, 0, now=4) == []
    assert state.handle(Progress({1: (7, 0)}), 5) == [Snapshot(2), Finish("stopped", 2)]


def test_a_stop_after_the_last_step_is_a_success() -> None:
    state = running(1, steps=2)
    state.handle(StopRequested(), 1)
    assert arrive(state, 2, now=2) == [Snapshot(2), Finish("succeeded", 2)]


def test_an_error_of_the_job_ends_the_run() -> None:
    state = running()
    error = InputError("loss: expected float values, got int64")
    assert state.handle(Failed(1, error), 1) == [Finish("failed", 0, error)]


# --- deaths ----------------------------------------------------------------------------------------------------------


def test_a_death_while_running_halts_recovers_and_goes_on() -> None:
    state = running(3)
    arrive(state, 1, 1, 1, now=1)
    assert state.handle(Lost(1, "it died"), 2) == [Spawn(3), Halt(1)]
    assert state.handle(WorkerHalted(0, 1), 3) == []
    assert state.handle(WorkerHalted(2, 1), 4) == [Recover(1)]
    assert state.handle(Recovered(2, {0: frozenset({0, 3})}), 5) == [
        Begin(2, 2, (0, 2), first=((1,), (2,)), runs=((0, 2), (2, 4))),
        Grant(4),
    ]
    assert state.committed == 2


def test_shards_that_are_done_are_not_run_again_after_a_second_death() -> None:
    state = running(2)
    state.handle(Lost(0, "it died"), 1)
    state.handle(WorkerHalted(1, 1), 1)
    state.handle(Recovered(0, {0: frozenset({2, 3})}), 1)
    state.handle(Lost(1, "it died"), 1)
    assert state.handle(Recovered(0, {0: frozenset({0, 2, 3})}), 1) == []
    assert state.handle(Joined(2, CLASS), 1) == [Begin(3, 0, (2,), ((1,),), ((0, 4),))]


def test_done_shards_of_a_committed_step_are_forgotten() -> None:
    state = running(1)
    state.handle(Lost(0, "it died"), 1)
    state.handle(Recovered(0, {0: frozenset({2, 3})}), 1)
    assert state.handle(Joined(1, CLASS), 1)[0] == Begin(2, 0, (1,), ((0, 1),), ((0, 4),))
    state.handle(Progress({1: (7, 0)}), 2)
    assert state.committed == 2
    state.handle(Lost(1, "it died"), 3)
    state.handle(Recovered(2, {}), 3)
    assert state.handle(Joined(2, CLASS), 3)[0] == Begin(3, 2, (2,), ((0, 1, 2, 3),), ((0, 4),))


def test_a_replacement_takes_part_from_the_next_boundary() -> None:
    state = running(2, ahead_seconds=1e9, max_ahead=6)
    arrive(state, 1, 1, now=1)
    state.handle(Lost(1, "it died"), 2)
    state.handle(WorkerHalted(0, 1), 2)
    assert state.handle(Recovered(2, {}), 2) == [
        Begin(2, 2, (0,), ((0, 1, 2, 3),), ((0, 4),)),
        Grant(8),
    ]
    assert state.handle(Joined(2, CLASS), 3) == []
    assert arrive(state, 5, now=4) == []  # nothing more is granted
    assert arrive(state, 8, now=5) == [
        Begin(3, 8, (0, 2), ((0, 1), (2, 3)), ((0, 2), (2, 4))),
        Grant(14),
    ]


def test_the_death_of_the_only_worker() -> None:
    state = running(1)
    assert state.handle(Lost(0, "it died"), 1) == [Spawn(1), Halt(1), Recover(1)]
    assert state.handle(Recovered(0, {}), 1) == []
    assert state.handle(Joined(1, CLASS), 2) == [Begin(2, 0, (1,), ((0, 1, 2, 3),), ((0, 4),))]


def test_a_death_while_evaluating_evaluates_again() -> None:
    state = running(2, eval_every=2)
    assert arrive(state, 2, 2, now=1) == [Evaluate(1, 2, (0, 1))]
    state.handle(Evaluated(1, 1, 2), 2)
    assert state.handle(Lost(1, "it died"), 3) == [Spawn(2), Halt(1)]
    assert state.handle(Evaluated(0, 1, 2), 4) == []
    assert state.handle(WorkerHalted(0, 1), 4) == [Recover(1)]
    assert state.handle(Recovered(2, {}), 5) == [
        Begin(2, 2, (0,), ((0, 1, 2, 3),), ((0, 4),)),
        Evaluate(2, 2, (0,)),
    ]
    assert state.handle(Evaluated(0, 1, 2), 6) == []  # of the generation before
    assert state.handle(Evaluated(0, 2, 2), 6)[0] == Grant(4)


def test_a_death_while_halting_is_waited_for_no_longer() -> None:
    state = running(3)
    assert state.handle(Lost(0, "it died"), 1) == [Spawn(3), Halt(1)]
    assert state.handle(WorkerHalted(1, 1), 1) == []
    assert state.handle(Lost(2, "it died"), 1) == [Spawn(4), Recover(1)]


def test_a_member_that_has_halted_and_dies_while_others_halt() -> None:
    state = running(3)
    state.handle(Lost(0, "it died"), 1)
    state.handle(WorkerHalted(1, 1), 1)
    assert state.handle(Lost(1, "it died"), 1) == [Spawn(4)]
    assert state.handle(WorkerHalted(2, 1), 1) == [Recover(1)]
    assert state.handle(Recovered(0, {}), 1)[0] == Begin(2, 0, (2,), ((0, 1, 2, 3),), ((0, 4),))


def test_a_death_while_recovering_is_not_among_the_next_members() -> None:
    state = running(3)
    state.handle(Lost(0, "it died"), 1)
    state.handle(WorkerHalted(1, 1), 1)
    assert state.handle(WorkerHalted(2, 1), 1) == [Recover(1)]
    assert state.handle(Lost(2, "it died"), 1) == [Spawn(4)]
    assert state.handle(Recovered(0, {}), 1)[0] == Begin(2, 0, (1,), ((0, 1, 2, 3),), ((0, 4),))


def test_a_replacement_that_joins_while_halting_is_among_the_next_members() -> None:
    state = running(2)
    state.handle(Lost(0, "it died"), 1)
    assert state.handle(Joined(2, CLASS), 1) == []
    assert state.handle(WorkerHalted(1, 1), 1) == [Recover(1)]
    assert state.handle(Recovered(0, {}), 1)[0] == Begin(2, 0, (1, 2), ((0, 1), (2, 3)), ((0, 2), (2, 4)))


def test_the_death_of_a_worker_in_no_generation_disturbs_nobody() -> None:
    state = running(2)
    state.handle(Lost(0, "it died"), 1)
    state.handle(WorkerHalted(1, 1), 1)
    state.handle(Recovered(0, {}), 1)
    assert state.handle(Lost(2, "it died"), 1) == [Spawn(3)]
    assert state.mode is Mode.RUNNING


def test_too_many_deaths_without_a_step_end_the_run() -> None:
    state = running(1)
    for worker in range(4):
        state.handle(Lost(worker, "killed by signal 11"), 1)
    (finish,) = state.handle(Lost(4, "killed by signal 11"), 1)
    assert isinstance(finish, Finish)
    assert finish.status == "failed"
    assert isinstance(finish.error, WorkerError)
    assert "5 workers or lines were lost without a step between them" in str(finish.error)
    assert "killed by signal 11" in str(finish.error)


def test_a_step_between_deaths_starts_the_count_again() -> None:
    state = running(1)
    for worker in range(40):
        instructions = state.handle(Lost(worker, "it died"), worker)
        assert Spawn(worker + 1) in instructions
        state.handle(Recovered(worker + 1, {}), worker)
        state.handle(Joined(worker + 1, CLASS), worker)
    assert state.mode is Mode.RUNNING


def test_a_finished_coordinator_answers_nothing() -> None:
    state = running(1, steps=2)
    assert isinstance(arrive(state, 2, now=1)[-1], Finish)
    for event in (Started(), Joined(0, {}), Lost(0, ""), StopRequested(), Progress({}), WorkerHalted(0, 1)):
        assert state.handle(event, 2) == []
