"""Whom the coordinator takes for dead on several hosts: nobody who waits for others, or who cannot be heard."""

from __future__ import annotations

from typing import Any

from dtrain.train.coordinator import Coordinator, Mode
from dtrain.train.events import (
    Evaluate,
    Evaluated,
    Finish,
    Halt,
    Instruction,
    Kill,
    Lost,
    Progress,
    Recover,
    Recovered,
    Resized,
    WorkerHalted,
)
from tests.unit.train.test_coordinator_hosts import NONE, at, begun, halt_all, running

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
    assert begun(state.handle(Recovered(1, {}), 9)).members == (0, 1)


def test_hosts_that_never_hear_each_other_end_the_run_with_what_to_do() -> None:
    state = running([0, 1], timeout_seconds=5)
    now, out = 0.0, []
    for _ in range(6):
        both, waiting = at(state, 0, phase=2).arrivals, frozenset({0, 1})
        state.handle(Progress(both, waiting), now)
        now += 100
        out = state.handle(Progress(both, waiting), now)
        halt_all(state, now)
        state.handle(Recovered(0, {}), now)
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


def test_who_waits_for_another_host_before_it_can_evaluate_is_not_blamed() -> None:
    """A generation that begins at a boundary introduces its hosts while they are told to evaluate already."""
    state = running([0, 1], timeout_seconds=5, eval_every=2)
    assert Evaluate(1, 2, (0, 1)) in state.handle(at(state, 2), 1)
    rows = at(state, 2).arrivals
    state.handle(Progress(rows, frozenset({0})), 2)
    assert blamed(state.handle(Progress(rows, frozenset({0})), 12)) == [1]


def test_hosts_that_do_not_hear_each_other_before_an_evaluation_begin_again() -> None:
    state = running([0, 1], timeout_seconds=5, eval_every=2)
    state.handle(at(state, 2), 1)
    rows, both = at(state, 2).arrivals, frozenset({0, 1})
    state.handle(Progress(rows, both), 2)
    assert state.handle(Progress(rows, both), 12) == [Halt(1)]


def test_who_could_not_go_on_has_its_own_time_once_it_can() -> None:
    """Worker 1 was late, and is there again; worker 0 has waited for it, and has not moved yet."""
    state = running([0, 0], timeout_seconds=5)
    state.handle(at(state, 1), 1)
    state.handle(Progress({0: (6, 2), 1: (5, 2)}), 2)
    assert state.handle(Progress({0: (6, 2), 1: (6, 2)}), 7.5) == []
    assert state.handle(Progress({0: (6, 2), 1: (7, 2)}), 8.5) == []
    assert blamed(state.handle(Progress({0: (6, 2), 1: (7, 2)}), 14)) == [0]


def test_who_cannot_start_before_another_one_has_is_not_blamed() -> None:
    """It waits for the memory that a worker beside it makes."""
    state = running([0, 1])
    state.handle(Resized(4), 1)
    for now in range(2, 62):
        assert not blamed(state.handle(Progress({0: (0, now), 1: (0, now)}, frozenset({3})), now))
    assert blamed(state.handle(Progress({0: (0, 62), 1: (0, 62)}, frozenset({3})), 62)) == [2]
    assert not blamed(state.handle(Progress({0: (0, 100), 1: (0, 100)}), 100))
    assert blamed(state.handle(Progress({0: (0, 123), 1: (0, 123)}), 123)) == [3]


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
