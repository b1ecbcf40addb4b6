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
    Kill,
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
    assert state.handle(Recovered(0, NONE), 1) == []
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
    begin = begun(state.handle(Recovered(0, frozenset({0, 1})), 1))
    assert (begin.members, begin.first) == ((0, 1), ((2,), (3,)))
    assert state.handle(at(state, 2), 2) == [Snapshot(2), Grant(4)]  # the next loss may be the last
    assert state.handle(Lost(1, "it died"), 3) == [Halt(2)]
    assert halt_all(state, 3) == [Recover(2)]
    assert begun(state.handle(Recovered(2, NONE), 3)).members == (0,)
    (finish,) = state.handle(Lost(0, "it died"), 4)
    assert isinstance(finish, Finish)
    assert str(finish.error) == "no worker is left, the last one: it died"


# --- gradients that are gone ----------------------------------------------------------------------------------------


def test_gradients_that_went_with_a_hosts_memory_are_computed_again() -> None:
    state = running([0, 0, 1])
    state.handle(Lost(0, "it died"), 1)
    halt_all(state, 1)
    state.handle(Recovered(0, frozenset({0, 2, 3})), 1)  # begins with members 1 and 2, shard 1 is missing
    assert state.generation == 2
    state.handle(Lost(1, "it died"), 2)
    state.handle(WorkerHalted(2, 2), 2)
    assert state.handle(Recovered(0, frozenset({0, 2, 3})), 2) == []  # nobody is on the coordinator's host
    state.handle(Lost(2, "it died", gone=frozenset({2, 3})), 3)
    assert begun(state.handle(Joined(3, CLASS, 0), 4)).first == ((1, 2, 3),)


def test_what_goes_with_a_host_while_steps_are_made_is_of_an_older_step() -> None:
    state = running([0, 1, 1])
    state.handle(at(state, 1), 1)
    state.handle(Lost(1, "it died", gone=frozenset({1, 2})), 2)
    halt_all(state, 2)
    assert begun(state.handle(Recovered(1, frozenset({1})), 2)).first == ((0,), (2, 3))


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_lost_line_costs_a_generation_and_nobody() -> None:
    state = running([0, 1])
    state.handle(at(state, 1), 1)
    assert state.handle(LinkLost(1, 1, "the line to host 0: the other end is gone"), 2) == [Halt(1)]
    assert state.handle(LinkLost(0, 1, "the line to host 1: the other end is gone"), 2) == []
    assert halt_all(state, 3) == [Recover(1)]
    assert state.handle(Recovered(1, frozenset({0, 1})), 3)[0] == Begin(2, 1, (0, 1), ((2,), (3,)), ((0, 2), (2, 4)))


def test_a_lost_line_of_an_older_generation_says_nothing() -> None:
    state = running([0, 1])
    state.handle(LinkLost(0, 1, "damaged"), 1)
    halt_all(state, 1)
    state.handle(Recovered(0, NONE), 1)
    assert state.handle(LinkLost(1, 1, "damaged"), 2) == []
    assert state.mode is Mode.RUNNING


def test_a_line_may_be_lost_while_the_parameters_are_evaluated() -> None:
    """A generation that begins at a boundary connects its hosts while others evaluate already."""
    state = running([0, 1], eval_every=2)
    assert state.handle(at(state, 2), 1) == [Evaluate(1, 2, (0, 1))]
    assert state.handle(LinkLost(1, 1, "no connection within 10 s"), 2) == [Halt(1)]
    assert halt_all(state, 3) == [Recover(1)]
    begin, evaluate = state.handle(Recovered(2, NONE), 3)
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
        state.handle(Recovered(0, NONE), generation)
    (finish,) = out
    assert isinstance(finish, Finish)
    assert "6 workers or lines were lost without a step between them" in str(finish.error)
    assert "the line to host 0: damaged" in str(finish.error)


def test_a_step_between_lost_lines_starts_the_count_again() -> None:
    state = running([0, 1])
    for generation in range(1, 20):
        state.handle(LinkLost(1, generation, "damaged"), generation)
        halt_all(state, generation)
        state.handle(Recovered(generation, NONE), generation)
    assert state.mode is Mode.RUNNING


# --- who is to blame ------------------------------------------------------------------------------------------------


def blamed(instructions: list[Instruction]) -> list[int]:
    return [i.worker for i in instructions if isinstance(i, Kill)]


def test_a_first_rank_that_waits_for_another_host_is_not_blamed() -> None:
    state = running([0, 1], timeout_seconds=5)
    state.handle(at(state, 1), 1)
    both = at(state, 1, phase=2).arrivals  # both are in the sum, and worker 1 says nothing more
    assert state.handle(Progress(both, frozenset({0})), 2) == []
    assert blamed(state.handle(Progress(both, frozenset({0})), 30)) == [1]


def test_who_has_stopped_waiting_may_be_blamed_again() -> None:
    state = running([0, 1], timeout_seconds=5)
    state.handle(at(state, 1), 1)
    both = at(state, 1, phase=2).arrivals
    state.handle(Progress(both, frozenset({0, 1})), 2)
    state.handle(Progress(both, frozenset({1})), 3)
    assert blamed(state.handle(Progress(both, frozenset({1})), 30)) == [0]


def test_who_waits_for_a_host_is_behind_no_one_who_computes() -> None:
    """The slowest computes its shard; only it can be late."""
    state = running([0, 0, 1], timeout_seconds=5)
    state.handle(at(state, 1), 1)
    arrivals = {0: (5, 1), 1: (5, 1), 2: (3, 1)}
    state.handle(Progress(arrivals, frozenset({0})), 2)
    assert blamed(state.handle(Progress(arrivals, frozenset({0})), 30)) == [2]


def test_hosts_that_do_not_hear_each_other_begin_again() -> None:
    """Both wait, neither is dead: what was lost is between them."""
    state = running([0, 1], timeout_seconds=5)
    state.handle(at(state, 1), 1)
    both, waiting = at(state, 1, phase=2).arrivals, frozenset({0, 1})
    state.handle(Progress(both, waiting), 2)
    assert state.handle(Progress(both, waiting), 7) == []
    assert state.handle(Progress(both, waiting), 8.5) == [Halt(1)]
    assert halt_all(state, 9) == [Recover(1)]
    assert begun(state.handle(Recovered(1, NONE), 9)).members == (0, 1)


def test_hosts_that_never_hear_each_other_end_the_run_with_what_to_do() -> None:
    state = running([0, 1], timeout_seconds=5)
    now, out = 0.0, []
    for _ in range(6):
        both, waiting = at(state, 0, phase=2).arrivals, frozenset({0, 1})
        state.handle(Progress(both, waiting), now)
        now += 100
        out = state.handle(Progress(both, waiting), now)
        halt_all(state, now)
        state.handle(Recovered(0, NONE), now)
    (finish,) = out
    assert isinstance(finish, Finish)
    assert "the hosts of 2 workers did not hear each other for 5.0 s at step 0" in str(finish.error)
    assert "look at the network between them, or raise timeout_seconds (now 5)" in str(finish.error)


def test_while_one_of_those_behind_computes_the_lines_are_not_blamed() -> None:
    state = running([0, 1, 1], timeout_seconds=5)
    state.handle(at(state, 1), 1)
    arrivals = {0: (5, 1), 1: (5, 1), 2: (5, 1)}
    for beat in range(20):
        arrivals[2] = (5, beat)
        assert state.handle(Progress(arrivals, frozenset({0, 1})), 2 + beat) == []


def test_members_that_wait_at_a_boundary_are_at_rest() -> None:
    state = running([0, 1], timeout_seconds=5, eval_every=2)
    state.handle(at(state, 2), 1)
    arrivals = at(state, 2).arrivals
    assert not blamed(state.handle(Progress(arrivals, frozenset({0, 1})), 3))
    assert state.mode is Mode.EVALUATING


# --- a worker that tells of its host is silent itself ----------------------------------------------------------------

STUCK = {0: (3, 1), 1: (3, 1), 2: (3, 1)}  # a step is granted, and nothing more is known of workers 1 and 2


def silent(state: Coordinator, quiet: dict[int, float], now: float, waiting: frozenset[int] = NONE) -> list[int]:
    return blamed(state.handle(Progress(STUCK, waiting, quiet), now))


def stuck(**changes: Any) -> Coordinator:
    """Worker 1 tells how far 1 and 2 are; all have made a step, and worker 0 waits for the other host."""
    state = running([0, 1, 1], timeout_seconds=5, **changes)
    state.handle(at(state, 1), 1)
    return state


def test_a_silent_speaker_is_blamed_and_not_its_neighbour() -> None:
    state = stuck()
    for now in range(2, 7):
        assert silent(state, {1: now - 1.0}, now, frozenset({0})) == []
    assert silent(state, {1: 6.5}, 7.5, frozenset({0})) == [1]
    assert silent(state, {1: 40}, 41, frozenset({0})) == []  # it is told to die already; nobody else is to blame


def test_a_speaker_is_blamed_for_a_neighbour_that_waits_for_a_word() -> None:
    """Its own row is not behind: it has stopped after its last step, and has passed on no grant."""
    state = running([0, 1, 1], timeout_seconds=5)
    state.handle(at(state, 1), 1)
    arrivals = {0: (7, 1), 1: (7, 1), 2: (3, 1)}
    state.handle(Progress(arrivals, NONE, {1: 1.0}), 2)
    assert blamed(state.handle(Progress(arrivals, NONE, {1: 5.9}), 7)) == []
    assert blamed(state.handle(Progress(arrivals, NONE, {1: 6.1}), 7.2)) == [1]


def test_a_speaker_that_nobody_waits_for_may_be_silent() -> None:
    state = stuck()
    arrivals = {0: (3, 1), 1: (7, 1), 2: (7, 1)}
    for beat in range(30):
        arrivals[0] = (3, beat)
        assert blamed(state.handle(Progress(arrivals, NONE, {1: 1.0 + beat}), 2 + beat)) == []


def test_a_neighbour_has_its_own_time_once_the_speaker_is_back() -> None:
    state = stuck()
    for now in range(2, 7):
        silent(state, {1: now - 1.0}, now, frozenset({0}))
    assert silent(state, {}, 7, frozenset({0, 1})) == []
    assert silent(state, {}, 10.9, frozenset({0, 1})) == []
    assert silent(state, {}, 12.9, frozenset({0, 1})) == [2]  # 5 s, and the second that a step takes


def test_a_neighbour_that_hangs_is_blamed_by_a_speaker_that_is_there() -> None:
    state = stuck()
    silent(state, {2: 1.5}, 2, frozenset({0, 1}))
    assert silent(state, {2: 30}, 30, frozenset({0, 1})) == [2]


def test_all_of_a_host_that_is_not_heard_are_blamed_at_once() -> None:
    """One after the other, each with a deadline of its own, would take long."""
    state = stuck()
    silent(state, {1: 1.5, 2: 1.5}, 2, frozenset({0}))
    assert silent(state, {1: 9, 2: 9}, 9, frozenset({0})) == [1, 2]


def test_a_halt_that_the_silent_speaker_has_not_passed_on_is_not_held_against_its_neighbours() -> None:
    state = stuck()
    state.handle(Lost(0, "it died"), 2)
    assert state.mode is Mode.HALTING
    for now in range(3, 8):
        assert silent(state, {1: now - 1.0}, now) == []
    assert silent(state, {1: 7.5}, 8.5) == [1]
    assert silent(state, {1: 20}, 21) == []
    state.handle(Lost(1, "it died"), 22)
    assert silent(state, {}, 23) == []  # now worker 2 is told
    state.handle(WorkerHalted(2, 1), 23)
    assert state.mode is Mode.RECOVERING


def test_a_silent_speaker_is_blamed_for_an_evaluation_that_does_not_go_on() -> None:
    state = running([0, 1, 1], timeout_seconds=5, eval_every=2)
    assert Evaluate(1, 2, (0, 1, 2)) in state.handle(at(state, 2), 1)
    for worker in (0, 1):
        state.handle(Evaluated(worker, 1, 2), 1)
    state.handle(Progress(at(state, 2).arrivals, NONE, {1: 1.5}), 3)
    assert blamed(state.handle(Progress(at(state, 2).arrivals, NONE, {1: 9.5}), 11)) == [1]


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
    state.handle(Recovered(0, NONE), 1)
    assert begun(state.handle(Joined(3, CLASS, 0), 2)).members == (3, 1, 2)
    state.handle(at(state, 1), 3)
    state.handle(Resized(1), 3)
    out = state.handle(at(state, state.granted), 4)
    assert out[:2] == [Dismiss(2), Dismiss(1)]
    assert begun(out).members == (3,)


def test_a_size_that_is_there_already_changes_nothing() -> None:
    state = running([0, 1])
    assert state.handle(Resized(2), 1) == []
    assert state.handle(at(state, 2), 2) == [Grant(4)]


def test_a_loss_after_a_smaller_size_is_not_made_up_for() -> None:
    state = running([0, 1, 1])
    state.handle(Resized(2), 1)
    assert state.handle(Lost(2, "it died"), 2) == [Halt(1)]
    halt_all(state, 2)
    assert begun(state.handle(Recovered(0, NONE), 2)).members == (0, 1)


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
