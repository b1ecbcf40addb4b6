"""The coordinator's answers where several hosts take part: lines, places, sizes and gradients that go with a host."""

from __future__ import annotations

from typing import Any

import pytest

from dtrain.errors import WorkerError
from dtrain.train.coordinator import Coordinator, Mode, Policy
from dtrain.train.events import (
    Begin,
    Dismiss,
    Evaluate,
    Evaluated,
    Finish,
    Grant,
    Halt,
    Instruction,
    Joined,
    LinkLost,
    Lost,
    Progress,
    Recover,
    Recovered,
    Resized,
    Snapshot,
    Spawn,
    Started,
    StopRequested,
    WorkerHalted,
)

CLASS = {"numpy": "2.4.0"}
NONE: frozenset[int] = frozenset()


def running(hosts: list[int], **changes: Any) -> Coordinator:
    """A coordinator whose workers 0, 1, … have joined at time 0 on these hosts."""
    values = {"steps": 100, "shards": 4, "world_size": len(hosts), "numerics": CLASS, **changes}
    state = Coordinator(Policy(**values))
    state.handle(Started(), 0)
    for worker, host in enumerate(hosts):
        state.handle(Joined(worker, CLASS, host), 0)
    assert state.generation == 1
    return state


def at(state: Coordinator, step: int, phase: int = 0) -> Progress:
    return Progress({w: (4 * step - 1 + phase, step) for w in state.members})


def begun(instructions: list[Instruction]) -> Begin:
    (begin,) = [i for i in instructions if isinstance(i, Begin)]
    return begin


def halt_all(state: Coordinator, now: float) -> list[Instruction]:
    """Every member says that it has stopped."""
    generation, last = state.generation, []
    for member in state.members:
        last = state.handle(WorkerHalted(member, generation), now) or last
    return last


# --- places ----------------------------------------------------------------------------------------------------------


def test_the_ranks_of_a_host_are_neighbours() -> None:
    """So a host holds a run of shards, and sends few subtrees."""
    state = running([1, 0, 2, 0, 1], shards=8)
    assert state.members == (1, 3, 0, 4, 2)


def test_no_generation_without_a_member_on_the_coordinators_host() -> None:
    state = running([0, 1, 1])
    assert state.handle(Lost(0, "it died"), 1)[:2] == [Spawn(3), Halt(1)]
    state.handle(WorkerHalted(1, 1), 1)
    assert state.handle(WorkerHalted(2, 1), 1) == [Recover(1)]
    assert state.handle(Recovered(0, {}), 1) == []
    assert state.handle(Joined(3, CLASS, 0), 2)[0] == Begin(
        2, 0, (3, 1, 2), first=((0,), (1,), (2, 3)), runs=((0, 1), (1, 2), (2, 4))
    )


def test_the_run_ends_if_the_coordinators_host_has_no_worker_and_gets_none() -> None:
    """To wait for one would be for ever."""
    state = running([0, 1, 1], can_replace=False)
    (finish,) = state.handle(Lost(0, "killed by signal 9"), 1)
    assert isinstance(finish, Finish)
    assert isinstance(finish.error, WorkerError)
    assert str(finish.error) == "no worker is left on the coordinator's host, the last one: killed by signal 9"


def test_where_nobody_can_be_replaced_the_others_go_on() -> None:
    state = running([0, 1, 1], can_replace=False)
    assert state.handle(Lost(2, "it died"), 1) == [Halt(1)]
    assert halt_all(state, 1) == [Recover(1)]
    begin = begun(state.handle(Recovered(0, {0: frozenset({0, 1})}), 1))
    assert (begin.members, begin.first) == ((0, 1), ((2,), (3,)))
    assert state.handle(at(state, 2), 2) == [Snapshot(2), Grant(4)]  # the next loss may be the last
    assert state.handle(Lost(1, "it died"), 3) == [Halt(2)]
    assert halt_all(state, 3) == [Recover(2)]
    assert begun(state.handle(Recovered(2, {}), 3)).members == (0,)
    (finish,) = state.handle(Lost(0, "it died"), 4)
    assert isinstance(finish, Finish)
    assert str(finish.error) == "no worker is left, the last one: it died"


# --- gradients that are gone ----------------------------------------------------------------------------------------


def test_gradients_that_went_with_a_hosts_memory_are_computed_again() -> None:
    state = running([0, 0, 1])
    state.handle(Lost(0, "it died"), 1)
    halt_all(state, 1)
    state.handle(Recovered(0, {0: frozenset({0, 2, 3})}), 1)  # begins with members 1 and 2, shard 1 is missing
    assert state.generation == 2
    state.handle(Lost(1, "it died"), 2)
    state.handle(WorkerHalted(2, 2), 2)
    kept = {0: frozenset({0}), 1: frozenset({2, 3})}
    assert state.handle(Recovered(0, kept), 2) == []  # nobody is on the coordinator's host
    state.handle(Lost(2, "it died", gone=1), 3)
    assert begun(state.handle(Joined(3, CLASS, 0), 4)).first == ((1, 2, 3),)


def test_what_goes_with_a_host_while_steps_are_made_is_of_an_older_step() -> None:
    state = running([0, 1, 1])
    state.handle(at(state, 1), 1)
    state.handle(Lost(1, "it died", gone=1), 2)
    halt_all(state, 2)
    assert begun(state.handle(Recovered(1, {0: frozenset({1})}), 2)).first == ((0,), (2, 3))


def test_gradients_on_a_host_that_does_not_take_part_are_computed_again() -> None:
    """Its only member is told to die, or is let go, and nobody else can reach its memory."""
    state = running([0, 1], shards=2)
    state.handle(Resized(1), 1)
    state.handle(LinkLost(0, 1, "damaged"), 1)
    halt_all(state, 1)
    out = state.handle(Recovered(0, {0: frozenset({0}), 1: frozenset({1})}), 1)
    assert out[0] == Dismiss(1)
    assert begun(out).first == ((1,),)


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_lost_line_costs_a_generation_and_nobody() -> None:
    state = running([0, 1])
    state.handle(at(state, 1), 1)
    assert state.handle(LinkLost(1, 1, "the line to host 0: the other end is gone"), 2) == [Halt(1)]
    assert state.handle(LinkLost(0, 1, "the line to host 1: the other end is gone"), 2) == []
    assert halt_all(state, 3) == [Recover(1)]
    assert state.handle(Recovered(1, {0: frozenset({0, 1})}), 3)[0] == Begin(
        2, 1, (0, 1), ((2,), (3,)), ((0, 2), (2, 4))
    )


def test_a_lost_line_of_an_older_generation_says_nothing() -> None:
    state = running([0, 1])
    state.handle(LinkLost(0, 1, "damaged"), 1)
    halt_all(state, 1)
    state.handle(Recovered(0, {}), 1)
    assert state.handle(LinkLost(1, 1, "damaged"), 2) == []
    assert state.mode is Mode.RUNNING


def test_a_line_may_be_lost_while_the_parameters_are_evaluated() -> None:
    """A generation that begins at a boundary connects its hosts while others evaluate already."""
    state = running([0, 1], eval_every=2)
    assert state.handle(at(state, 2), 1) == [Evaluate(1, 2, (0, 1))]
    assert state.handle(LinkLost(1, 1, "no connection within 10 s"), 2) == [Halt(1)]
    assert halt_all(state, 3) == [Recover(1)]
    begin, evaluate = state.handle(Recovered(2, {}), 3)
    assert isinstance(begin, Begin)
    assert evaluate == Evaluate(2, 2, (0, 1))
    state.handle(Evaluated(0, 2, 2), 4)
    assert state.handle(Evaluated(1, 2, 2), 4) == [Grant(4)]


def test_lines_that_are_lost_again_and_again_end_the_run() -> None:
    state = running([0, 1])
    out: list[Instruction] = []
    for generation in range(1, 7):
        out = state.handle(LinkLost(1, generation, "the line to host 0: damaged"), generation)
        halt_all(state, generation)
        state.handle(Recovered(0, {}), generation)
    (finish,) = out
    assert isinstance(finish, Finish)
    assert "6 workers or lines were lost without a step between them" in str(finish.error)
    assert "the line to host 0: damaged" in str(finish.error)


def test_a_step_between_lost_lines_starts_the_count_again() -> None:
    state = running([0, 1])
    for generation in range(1, 20):
        state.handle(LinkLost(1, generation, "damaged"), generation)
        halt_all(state, generation)
        state.handle(Recovered(generation, {}), generation)
    assert state.mode is Mode.RUNNING


# --- another size ----------------------------------------------------------------------------------------------------


def test_a_run_grows_at_the_next_boundary() -> None:
    state = running([0, 1])
    assert state.handle(Resized(4), 1) == [Spawn(2), Spawn(3)]
    assert state.handle(Joined(2, CLASS, 1), 2) == []
    assert state.handle(at(state, 2), 3) == [
        Begin(2, 2, (0, 1, 2), ((0,), (1,), (2, 3)), ((0, 1), (1, 2), (2, 4))),
        Grant(4),
    ]
    assert state.handle(Joined(3, CLASS, 0), 4) == []
    assert begun(state.handle(at(state, 4), 5)).members == (0, 3, 1, 2)


def test_a_run_shrinks_at_the_next_boundary() -> None:
    state = running([0, 1, 1, 0], ahead_seconds=1e9)
    state.handle(at(state, 1), 1)
    granted = state.granted
    assert state.handle(Resized(2), 2) == []
    assert state.handle(at(state, granted - 1), 3) == []  # nothing more is granted
    assert state.handle(at(state, granted), 4)[:3] == [
        Dismiss(3),
        Dismiss(2),
        Begin(2, granted, (0, 1), ((0, 1), (2, 3)), ((0, 2), (2, 4))),
    ]
    assert set(state.workers) == {0, 1}
    assert state.handle(Lost(3, "it died"), 5) == []  # it was let go
    assert state.handle(WorkerHalted(2, 1), 5) == []


def test_who_is_not_there_yet_is_let_go_first() -> None:
    state = running([0, 1])
    state.handle(Resized(4), 1)
    state.handle(Joined(2, CLASS, 1), 2)
    assert state.handle(Resized(3), 3) == []
    out = state.handle(at(state, 2), 4)
    assert out[0] == Dismiss(3)
    assert begun(out).members == (0, 1, 2)


def test_a_member_that_is_let_go_by_a_smaller_size_leaves_one_on_the_coordinators_host() -> None:
    """The one there is the newest, since it came in the place of one that died."""
    state = running([0, 1, 1])
    state.handle(Lost(0, "it died"), 1)
    halt_all(state, 1)
    state.handle(Recovered(0, {}), 1)
    assert begun(state.handle(Joined(3, CLASS, 0), 2)).members == (3, 1, 2)
    state.handle(at(state, 1), 3)
    state.handle(Resized(1), 3)
    out = state.handle(at(state, state.granted), 4)
    assert out[:2] == [Dismiss(2), Dismiss(1)]
    assert begun(out).members == (3,)


def test_one_is_started_where_all_that_are_left_are_on_other_hosts() -> None:
    """By a smaller size there are enough workers, but none on the coordinator's host."""
    state = running([0, 1, 1])
    state.handle(Resized(2), 1)
    assert state.handle(Lost(0, "it died"), 2) == [Halt(1)]
    assert halt_all(state, 2) == [Recover(1)]
    assert state.handle(Recovered(0, {}), 2) == [Spawn(3)]
    assert state.handle(Progress({}), 3) == []
    out = state.handle(Joined(3, CLASS, 0), 4)
    assert out[0] == Dismiss(2)
    assert begun(out).members == (3, 1)


def test_a_run_that_gets_nobody_on_the_coordinators_host_ends() -> None:
    state = running([0, 1])
    state.handle(Resized(1), 1)
    state.handle(Lost(0, "it died"), 2)
    out = [*halt_all(state, 2), *state.handle(Recovered(0, {}), 2)]
    for number in range(2, 20):
        if isinstance(out[-1], Finish):
            break
        assert out[-1] == Spawn(number)
        out = state.handle(Joined(number, CLASS, 1), number)
    assert "no worker is on the coordinator's host" in str(out[-1].error)


def test_a_size_that_is_there_already_changes_nothing() -> None:
    state = running([0, 1])
    assert state.handle(Resized(2), 1) == []
    assert state.handle(at(state, 2), 2) == [Grant(4)]


def test_a_loss_after_a_smaller_size_is_not_made_up_for() -> None:
    state = running([0, 1, 1])
    state.handle(Resized(2), 1)
    assert state.handle(Lost(2, "it died"), 2) == [Halt(1)]
    halt_all(state, 2)
    assert begun(state.handle(Recovered(0, {}), 2)).members == (0, 1)


def test_a_stop_goes_before_another_size() -> None:
    state = running([0, 1])
    state.handle(Resized(1), 1)
    state.handle(StopRequested(), 1)
    assert state.handle(at(state, 2), 2) == [Snapshot(2), Finish("stopped", 2)]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_size_asked_for_before_the_start_is_the_size_of_the_start(size: int) -> None:
    state = Coordinator(Policy(steps=10, shards=4, world_size=3, numerics=CLASS))
    state.handle(Started(), 0)
    state.handle(Resized(size), 0)
    begins: list[Begin] = []
    for worker in range(max(3, size)):
        begins += [i for i in state.handle(Joined(worker, CLASS, 0), 1) if isinstance(i, Begin)]
    assert [len(b.members) for b in begins] == [size]
