"""Who is where, and how the hosts of a halted generation come to the end of the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dtrain.comm.channel import channel_pair
from dtrain.comm.memory import BEGUN, COMPLETE, GRADIENTS, GRANTED, HALT, SUMMED, WAITS
from dtrain.train.host import FOREVER, Host
from dtrain.train.hosts import Hosts, held
from tests.support import wait_until
from tests.unit.train.cluster import Cluster, coefficients, memory_of, program

# --- who is there ----------------------------------------------------------------------------------------------------


def hosts() -> Hosts:
    p = program()
    return Hosts(Host(p, memory_of(p)), "here", 5.0, lambda worker: None)


def test_hosts_are_numbered_as_they_come_and_the_coordinators_is_zero() -> None:
    known = hosts()
    assert [known.place(w, i) for w, i in enumerate(["b", "here", "a", "b", "here"])] == [1, 0, 2, 1, 0]
    assert known.host_of == {0: 1, 1: 0, 2: 2, 3: 1, 4: 0}


def test_the_first_worker_of_a_host_makes_its_memory_and_the_others_wait_for_it() -> None:
    known = hosts()
    for worker in range(4):
        known.place(worker, "b" if worker < 3 else "c")
    assert [known.memory_for(w) for w in range(4)] == [None, False, False, None]
    assert known.joined(0, {"memory": [1234, 7]}) == [1, 2]
    assert [known.memory_for(w) for w in (1, 2)] == [(1234, 7), (1234, 7)]
    assert known.joined(1, {"memory": [1235, 8]}) == []


def test_another_makes_the_memory_if_its_maker_dies() -> None:
    known = hosts()
    for worker in range(3):
        known.place(worker, "b")
        known.memory_for(worker)
    assert known.forget(0) == (True, [1, 2])
    assert [known.memory_for(w) for w in (1, 2)] == [None, False]
    assert known.joined(1, {"memory": [9, 9]}) == [2]


def test_who_waits_for_a_memory_may_die() -> None:
    known = hosts()
    for worker in range(3):
        known.place(worker, "b")
        known.memory_for(worker)
    assert known.forget(1) == (True, [])
    assert known.joined(0, {"memory": [9, 9]}) == [2]


def test_a_memory_lives_as_long_as_one_of_its_workers() -> None:
    known = hosts()
    for worker in range(2):
        known.place(worker, "b")
    known.memory_for(0)
    known.joined(0, {"memory": [100, 7]})
    known.joined(1, {"memory": [101, 8]})
    assert known.forget(0) == (False, [])
    known.place(2, "b")
    assert known.memory_for(2) == (101, 8)
    assert known.forget(1) == (True, [])
    assert known.memory_for(2) is None


def test_a_worker_of_the_coordinators_host_takes_no_memory_with_it() -> None:
    known = hosts()
    known.place(0, "here")
    assert known.joined(0, {}) == []
    assert known.forget(0) == (False, [])
    assert known.forget(99) == (False, [])


def test_the_shards_that_are_on_each_host() -> None:
    """Those that its members run, and those that are done there."""
    assert held((0, 2), (0, 0, 2), [[0], [1, 2], [5]], {2: {3}, 0: {4}, 7: {6}}) == [[0, 1, 2, 4], [3, 5]]
    assert held((0, 1), (0, 1), [[], []], {}) == [[], []]


# --- generations -----------------------------------------------------------------------------------------------------


def test_a_new_host_is_given_the_state_the_grants_and_the_words() -> None:
    cluster = Cluster([1, 2])
    assert cluster.state(1) != cluster.state(0)
    cluster.begin(generation=4, step=6, granted=9)
    assert cluster.state(1) == cluster.state(0)
    memory = cluster.memories[1]
    assert memory.header[[HALT, GRANTED, BEGUN, COMPLETE]].tolist() == [3, 9, 4, 0]
    assert memory.arrived[:2, 0].tolist() == [24, 24]
    for row, values in zip(memory.coefficients[6:9], coefficients(cluster.program, 6, 9), strict=True):
        assert row[: len(values)].tolist() == values


def test_a_host_that_has_the_state_is_not_given_it_again() -> None:
    cluster = Cluster([1, 1])
    cluster.begin()
    cluster.memories[0].parameters[...] = 5
    cluster.begin(generation=2)
    assert (cluster.memories[1].parameters != 5).any()


def test_a_host_that_a_generation_went_on_without_is_given_the_state_again() -> None:
    cluster = Cluster([1, 1])
    cluster.begin()
    everybody, cluster.members = cluster.members, (0,)
    cluster.begin(generation=2)
    cluster.memories[0].parameters[...] = 5
    cluster.members = everybody
    cluster.begin(generation=3, step=1, granted=3)
    assert cluster.state(1) == cluster.state(0)


def test_grants_reach_every_host() -> None:
    cluster = Cluster([1, 1, 2])
    cluster.begin(granted=2)
    cluster.hosts.grant(2, coefficients(cluster.program, 2, 7))
    cluster.settled()
    for memory in cluster.memories:
        assert memory.header[GRANTED] == 7
        assert memory.coefficients[:7].tobytes() == cluster.memories[0].coefficients[:7].tobytes()
        assert memory.coefficients[:7, 0].all()


def test_a_grant_that_died_with_a_speaker_is_given_again() -> None:
    """A step that is run with the coefficients of no step would part the hosts."""
    cluster = Cluster([1, 2])
    cluster.begin(granted=2)
    cluster.die(1)
    wait_until(lambda: is_closed(cluster, 1))
    cluster.hosts.grant(2, coefficients(cluster.program, 2, 5))
    assert cluster.memories[1].header[GRANTED] == 2
    cluster.lose(1)
    cluster.members = (0, 2)
    cluster.begin(generation=2, step=2, granted=5)
    assert cluster.memories[1].header[GRANTED] == 5
    assert cluster.memories[1].coefficients[:5].tobytes() == cluster.memories[0].coefficients[:5].tobytes()


def is_closed(cluster: Cluster, worker: int) -> bool:
    try:
        cluster.agents[worker].receive(0)
    except Exception:
        return True
    return False


def test_a_halt_reaches_every_host() -> None:
    cluster = Cluster([1, 1, 1])
    cluster.begin()
    cluster.hosts.halt(1)
    cluster.settled()
    assert [int(m.header[HALT]) for m in cluster.memories] == [1, 1, 1]
    cluster.hosts.halt(FOREVER)
    cluster.settled()
    assert [int(m.header[HALT]) for m in cluster.memories] == [FOREVER] * 3


def test_a_halt_that_died_with_a_speaker_is_told_to_the_next() -> None:
    cluster = Cluster([1, 2])
    cluster.begin()
    cluster.die(1)
    wait_until(lambda: is_closed(cluster, 1))
    cluster.hosts.halt(1)
    assert cluster.memories[1].header[HALT] == 0
    cluster.lose(1)
    cluster.settled()
    assert cluster.memories[1].header[HALT] == 1


def test_the_state_that_died_with_a_speaker_is_sent_again() -> None:
    """Its memory lives on, and must not be taken for up to date."""
    cluster = Cluster([1, 2])
    cluster.die(1)
    wait_until(lambda: is_closed(cluster, 1))
    cluster.hosts.set_members((0, 1, 2))
    cluster.hosts.begin(1, 3, 3, coefficients(cluster.program, 3, 5))
    cluster.lose(1)
    cluster.hosts.halt(1)
    cluster.compute(0, 3, [0])
    assert cluster.hosts.settle() == (3, {0: frozenset({0})})
    cluster.members = (0, 2)
    cluster.begin(generation=2, step=3, granted=5)
    assert cluster.state(1) == cluster.state(0)


def test_a_speaker_whose_line_breaks_in_the_middle_of_the_state_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would follow on the line would be taken for the rest of the array."""
    monkeypatch.setattr("dtrain.train.hosts._STATE_SECONDS", 0.2)
    cluster = Cluster([1])
    cluster.add(1, 1, has_agent=False)
    cluster.hosts.set_members((0, 1))
    cluster.hosts.begin(1, 0, 0, [])
    assert cluster.killed == [1]


# --- the end of a halted generation ----------------------------------------------------------------------------------

STEP = 7
Arrange = Callable[[Cluster], Any]


def halted(counts: list[int], **changes: Any) -> Cluster:
    cluster = Cluster(counts, **changes)
    cluster.begin(generation=1, step=STEP, granted=STEP + 2)
    cluster.hosts.halt(1)
    cluster.settled()
    return cluster


def test_without_a_whole_sum_nothing_is_committed() -> None:
    cluster = halted([1, 2, 1])
    before = cluster.state(0)
    cluster.compute(0, STEP, [0])
    cluster.reach(1, STEP, GRADIENTS, [1, 2], behind=1)
    cluster.reach(2, STEP, 0, [])
    assert cluster.hosts.settle() == (STEP, {0: frozenset({0}), 1: frozenset({1, 2}), 2: frozenset()})
    assert {cluster.state(h) for h in range(3)} == {before}


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_host_without_the_whole_sum_keeps_all_from_the_update(lacking: int) -> None:
    """Then nobody can have begun it: all go on only when all have said that they are whole."""
    cluster = halted([2, 2, 1])
    before = cluster.state(0)
    for host in range(3):
        cluster.sum(host, STEP)
        cluster.compute(host, STEP, [host])
    cluster.memories[lacking].header[COMPLETE] = 0
    assert cluster.hosts.settle() == (STEP, {h: frozenset({h}) for h in range(3)})
    assert {cluster.state(h) for h in range(3)} == {before}


ARRANGEMENTS: dict[str, Arrange] = {
    "all are whole, none has begun": lambda c: None,
    "one has committed": lambda c: c.update(1, STEP),
    "the coordinator's has committed": lambda c: c.update(0, STEP),
    "all have committed": lambda c: [c.update(h, STEP) for h in range(3)],
    "one is in the middle": lambda c: c.update(1, STEP, ranks=[1]),
    "the coordinator's is in the middle": lambda c: c.update(0, STEP, ranks=[0]),
    "each is elsewhere": lambda c: (c.update(0, STEP, ranks=[1]), c.update(2, STEP)),
}


@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=ARRANGEMENTS.keys())
def test_a_whole_sum_on_every_host_is_committed_once_on_every_host(arrange: Arrange) -> None:
    cluster = halted([2, 2, 1])
    expected = cluster.after_update(STEP)
    for host in range(3):
        cluster.sum(host, STEP)
        cluster.memories[host].shard_done[host] = STEP + 1
    arrange(cluster)
    assert cluster.hosts.settle()[0] == STEP + 1
    assert {cluster.state(h) for h in range(3)} == {expected}
    assert cluster.hosts.settle()[0] == STEP + 1  # may be asked again
    assert {cluster.state(h) for h in range(3)} == {expected}
    for memory in cluster.memories:
        assert memory.decisions[STEP].tobytes() == cluster.memories[0].decisions[STEP].tobytes()


def test_a_host_may_be_in_the_next_step_already() -> None:
    cluster = halted([1, 2])
    expected = cluster.after_update(STEP)
    for host in range(2):
        cluster.sum(host, STEP)
    cluster.update(0, STEP)
    cluster.compute(0, STEP + 1, [0, 1])
    cluster.update(1, STEP, ranks=[0])
    step, done = cluster.hosts.settle()
    assert step == STEP + 1
    assert done == {0: frozenset({0, 1})}
    assert {cluster.state(h) for h in range(2)} == {expected}


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_host_that_is_lost_takes_nothing_with_it(is_whole: bool) -> None:
    """Whether its ranks had begun the update or not: if they had, the others are whole."""
    cluster = halted([1, 1, 2])
    before, expected = cluster.state(0), cluster.after_update(STEP)
    for host in (0, 1):
        cluster.sum(host, STEP)
        cluster.compute(host, STEP, [host])
    if not is_whole:
        cluster.memories[1].header[COMPLETE] = 0
    for worker in (2, 3):
        cluster.die(worker)
        cluster.lose(worker)
    step, done = cluster.hosts.settle()
    assert step == STEP + is_whole
    assert {cluster.state(h) for h in (0, 1)} == {expected if is_whole else before}
    assert done == ({} if is_whole else {0: frozenset({0}), 1: frozenset({1})})


def test_a_host_whose_death_is_not_yet_noticed_is_lost_too() -> None:
    cluster = halted([1, 1])
    before = cluster.state(0)
    cluster.sum(0, STEP)
    cluster.compute(0, STEP, [0, 1, 2])
    cluster.die(1)
    assert cluster.hosts.settle() == (STEP + 1, {})
    assert cluster.state(0) != before


def test_only_the_gradients_of_the_next_step_are_kept() -> None:
    cluster = halted([1, 1])
    cluster.compute(0, STEP, [0])
    cluster.compute(1, STEP, [2])
    cluster.memories[1].shard_done[3] = STEP  # of the step before
    assert cluster.hosts.settle() == (STEP, {0: frozenset({0}), 1: frozenset({2})})


def test_a_gradient_that_lies_on_two_hosts_is_counted_once() -> None:
    """One of them was left out for a while, and the other has computed it meanwhile."""
    cluster = halted([1, 1, 1])
    for host, shards in enumerate([[0], [0, 1], [1, 2]]):
        cluster.compute(host, STEP, shards)
    assert cluster.hosts.settle()[1] == {0: frozenset({0}), 1: frozenset({1}), 2: frozenset({2})}


def test_a_step_that_is_not_finite_is_committed_nowhere() -> None:
    cluster = halted([1, 2])
    before = cluster.state(0)
    for host in range(2):
        cluster.sum(host, STEP)
        cluster.memories[host].losses[STEP, 2] = np.inf
    assert cluster.hosts.settle()[0] == STEP
    assert {cluster.state(h) for h in range(2)} == {before}


def test_a_step_that_is_skipped_is_committed_everywhere_without_an_update() -> None:
    cluster = halted([1, 2], on_nonfinite="skip")
    before = cluster.state(0)
    for host in range(2):
        cluster.sum(host, STEP)
        cluster.memories[host].losses[STEP, 2] = np.inf
    assert cluster.hosts.settle()[0] == STEP + 1
    assert {cluster.state(h) for h in range(2)} == {before}
    assert [bool(m.decisions[STEP, 0]) for m in cluster.memories] == [True, True]


class DiesAt(Host):
    """A host whose worker dies when it is to mend: before it has begun, or in the middle of a block."""

    def __init__(self, cluster: Cluster, worker: int, blocks: int) -> None:
        super().__init__(cluster.program, cluster.memories[1])
        self._cluster, self._worker = cluster, worker
        rule, count = self._settings.rule, 0

        class Rule:
            def __getattr__(self, name: str) -> Any:
                return getattr(rule, name)

            def update(self, parameter: Any, gradient: Any, state: Any, values: Any, scratch: Any) -> None:
                nonlocal count
                if count == blocks:
                    half = slice(0, len(parameter) // 2)
                    rule.update(
                        parameter[half],
                        gradient[half],
                        tuple(s[half] for s in state),
                        values,
                        tuple(s[half] for s in scratch),  # type: ignore[arg-type]
                    )
                    cluster.die(worker)
                    raise ConnectionResetError
                count += 1
                rule.update(parameter, gradient, state, values, scratch)

        self._settings = replace(self._settings, rule=Rule())  # type: ignore[arg-type]

    def mend(self, ranks: int) -> int:
        with np.errstate(all="ignore"):
            try:
                return super().mend(ranks)
            except ConnectionResetError:
                return -1


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_the_next_speaker_mends_what_the_first_has_left_when_it_died(blocks: int) -> None:
    cluster = Cluster([1])
    cluster.add(1, 1, has_agent=False)
    cluster.attend(1, DiesAt(cluster, 1, blocks))
    cluster.add(2, 1)
    cluster.members = (0, 1, 2)
    cluster.begin(generation=1, step=STEP, granted=STEP + 2)
    cluster.hosts.halt(1)
    expected = cluster.after_update(STEP)
    for host in range(2):
        cluster.sum(host, STEP)
    assert cluster.hosts.settle()[0] == STEP + 1
    assert {cluster.state(h) for h in range(2)} == {expected}


def test_a_host_that_dies_before_it_has_mended_is_given_the_state_when_it_comes_again() -> None:
    cluster = Cluster([1])
    cluster.add(1, 1, has_agent=False)
    cluster.attend(1, DiesAt(cluster, 1, 1))
    cluster.members = (0, 1)
    cluster.begin(generation=1, step=STEP, granted=STEP + 2)
    cluster.hosts.halt(1)
    expected = cluster.after_update(STEP)
    for host in range(2):
        cluster.sum(host, STEP)
    assert cluster.hosts.settle()[0] == STEP + 1
    assert cluster.state(0) == expected
    assert cluster.state(1) != expected
    cluster.add(2, 1)  # it maps the memory that worker 1 has left half updated
    cluster.lose(1)
    cluster.members = (0, 2)
    cluster.begin(generation=2, step=STEP + 1, granted=STEP + 3)
    assert {cluster.state(h) for h in range(2)} == {expected}


def test_a_silent_speaker_is_ended_and_the_next_one_asked() -> None:
    cluster = Cluster([1], timeout_seconds=0.3)
    cluster.add(1, 1)
    cluster.add(2, 1)
    cluster.members = (0, 1, 2)
    cluster.begin(generation=1, step=STEP, granted=STEP + 2)
    here, nobody = channel_pair()
    cluster.hosts.channels[1] = here  # from now on its words are read by nobody
    cluster.compute(1, STEP, [2])
    assert cluster.hosts.settle() == (STEP, {0: frozenset(), 1: frozenset({2})})
    assert cluster.killed == [1]
    nobody.close()


# --- how far they are ------------------------------------------------------------------------------------------------


def test_arrivals_are_those_of_all_hosts_in_the_order_of_members() -> None:
    cluster = Cluster([2, 2])
    cluster.begin(step=3, granted=5)
    cluster.reach(0, 3, GRADIENTS)
    message = {"rows": [[12 + SUMMED, 4, 0], [12 + GRADIENTS, 2, 0]], "phases": [[0.1] * 6, [0.2] * 6], "steps": 3}
    cluster.hosts.reported(2, message)
    arrivals, _ = cluster.hosts.arrivals(100.0)
    assert arrivals == {0: (13, 0), 1: (13, 0), 2: (14, 4), 3: (13, 2)}
    cluster.hosts.reported(2, message | {"phases": [[0.25] * 6, [0.5] * 6], "steps": 1})
    assert cluster.hosts.take_phases() == {2: ([0.35] * 6, 4), 3: ([0.7] * 6, 4)}
    assert cluster.hosts.take_phases() == {}
    assert cluster.hosts.forget(3) == (False, [])
    assert set(cluster.hosts.arrivals(100.0)[0]) == {0, 1, 2}


def test_who_waits_for_another_host_is_known_for_a_second() -> None:
    cluster = Cluster([1, 1])
    cluster.begin()
    assert cluster.hosts.arrivals(20.0)[1] == frozenset()
    cluster.memories[0].arrived[0, WAITS] = 3
    cluster.hosts.reported(1, {"rows": [[0, 0, 8]], "phases": [[0.0] * 6], "steps": 0})
    assert cluster.hosts.arrivals(21.0)[1] == frozenset({0, 1})
    assert cluster.hosts.arrivals(21.9)[1] == frozenset({0, 1})
    assert cluster.hosts.arrivals(22.1)[1] == frozenset()
    cluster.memories[0].arrived[0, WAITS] = 4
    assert cluster.hosts.arrivals(22.2)[1] == frozenset({0})


def test_who_of_another_host_says_nothing_for_a_second_is_silent() -> None:
    cluster = Cluster([1, 2])
    for worker in (0, 1, 2):
        cluster.hosts.heard(worker, 20.0)
    assert cluster.hosts.silent(20.9) == {}
    cluster.hosts.heard(2, 20.5)
    assert cluster.hosts.silent(21.25) == {1: 1.25}
    assert cluster.hosts.silent(22.0) == {1: 2.0, 2: 1.5}
    cluster.lose(1)
    assert cluster.hosts.silent(22.0) == {2: 1.5}


def test_nobody_is_silent_because_the_coordinator_was_busy() -> None:
    """To send the state takes a while, in which nobody is listened to."""
    cluster = Cluster([1, 1])
    cluster.hosts.heard(1, -1000.0)
    cluster.begin()
    assert cluster.hosts.silent(time.monotonic()) == {}


def test_who_waits_for_a_memory_waits() -> None:
    cluster = Cluster([1])
    for worker in (1, 2):
        cluster.hosts.place(worker, "b")
        cluster.hosts.memory_for(worker)
    assert cluster.hosts.arrivals(20.0)[1] == frozenset({2})
    cluster.hosts.joined(1, {"memory": [9, 9]})
    assert cluster.hosts.arrivals(20.0)[1] == frozenset()
