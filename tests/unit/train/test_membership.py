"""Who comes, is heard, is killed and let go; above all, that a process number is used on its own host only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dtrain.comm.channel import Channel, Message, channel_pair
from dtrain.comm.host import host_id
from dtrain.comm.memory import RunMemory
from dtrain.train.host import Host
from dtrain.train.launcher import Launcher
from dtrain.train.membership import ANSWER_SECONDS, Membership
from dtrain.train.stacks import Whereabouts
from tests.unit.train.cluster import memory_of, program

SECONDS = 30.0


class Visitors(Launcher):
    """Workers that come in by themselves, and one that is started here."""

    def __init__(self) -> None:
        self.killed: list[int] = []
        self.dismissed: list[int] = []
        self.arrived: list[tuple[int, Channel, dict[str, Any]]] = []
        self.ends: dict[int, Channel] = {}

    def start(self, worker: int, memory: RunMemory) -> Channel | None:
        return self._line(worker)

    def visit(self, worker: int, host: str, pid: int = 4321) -> None:
        self.arrived.append((worker, self._line(worker), {"host": host, "pid": pid}))

    def _line(self, worker: int) -> Channel:
        here, there = channel_pair()
        self.ends[worker] = Channel(there)
        return here

    def visitors(self) -> list[tuple[int, Channel, dict[str, Any]]]:
        found, self.arrived = self.arrived, []
        return found

    def welcome(self, worker: int) -> Message:
        return {}

    def kill(self, worker: int) -> None:
        self.killed.append(worker)

    def dismiss(self, worker: int) -> None:
        self.dismissed.append(worker)

    def close(self) -> None:
        for end in self.ends.values():
            end.close()


@pytest.fixture
def launcher() -> Visitors:
    return Visitors()


@pytest.fixture
def membership(launcher: Visitors) -> Iterator[Membership]:
    p = program()
    made = Membership(launcher, Host(p, memory_of(p)), 5.0)
    yield made
    for end in launcher.ends.values():
        end._socket.shutdown(2)
    made.close()


def come(membership: Membership, launcher: Visitors, *hosts: str) -> None:
    """Workers 1, 2, … come in on these hosts and join."""
    for worker, host in enumerate(hosts, 1):
        launcher.visit(worker, host, 1000 + worker)
        membership.let_visitors_in()
        membership.joined(worker, {"memory": [1000 + worker, 7]})


# --- process numbers -------------------------------------------------------------------------------------------------


def test_the_process_number_of_another_host_is_not_used_here_before_the_worker_has_joined(
    membership: Membership, launcher: Visitors
) -> None:
    """It may be the number of any process of this host."""
    launcher.visit(1, "elsewhere", pid=os.getpid())
    launcher.visit(2, "elsewhere", pid=os.getpid())
    membership.let_visitors_in()
    for worker in (1, 2):
        membership.kill(worker)
    assert launcher.killed == []
    assert launcher.dismissed == [1, 2]
    assert membership.overdue() == [1, 2]  # nobody there can end them, so they are given up
    assert membership.lose(1) == 1
    assert membership.overdue() == [2]


def test_who_has_not_come_in_is_given_up_and_not_killed(membership: Membership, launcher: Visitors) -> None:
    launcher.visit(1, "elsewhere")
    membership.kill(1)  # it is at the door, and nobody has looked where it is from
    assert launcher.killed == []
    assert membership.overdue() == [1]


def test_who_has_gone_has_no_place_any_more(membership: Membership, launcher: Visitors) -> None:
    come(membership, launcher, "elsewhere")
    membership.lose(1)
    membership.kill(1)
    assert launcher.killed == []


def test_a_worker_of_another_host_is_ended_by_one_beside_it(membership: Membership, launcher: Visitors) -> None:
    come(membership, launcher, "elsewhere", "elsewhere", "a third")
    for worker in (1, 2, 3):
        assert launcher.ends[worker].receive(SECONDS)  # the welcome
    membership.kill(1)
    assert launcher.ends[2].receive(SECONDS) == {"type": "host_kill", "pid": 1001}
    assert launcher.ends[3].receive(0) is None
    assert launcher.killed == []
    assert membership.overdue() == []  # there is time for its line to end


@pytest.mark.parametrize("is_started", [True, False])
def test_a_worker_of_this_host_is_ended_by_its_launcher(
    membership: Membership, launcher: Visitors, is_started: bool
) -> None:
    if is_started:
        membership.start(1)
    else:
        launcher.visit(1, host_id())
        membership.let_visitors_in()
    membership.kill(1)
    assert launcher.killed == [1]
    assert launcher.dismissed == []


def test_another_makes_the_memory_if_its_maker_is_let_go(membership: Membership, launcher: Visitors) -> None:
    for worker in (1, 2):
        launcher.visit(worker, "elsewhere")
    membership.let_visitors_in()
    assert launcher.ends[2].receive(0) is None
    membership.dismiss(1)
    welcome = launcher.ends[2].receive(SECONDS)
    assert welcome is not None
    assert (welcome["type"], welcome["memory"]) == ("welcome", None)


# --- where one is that is silent --------------------------------------------------------------------------------------


def test_a_worker_of_this_host_is_looked_at_here(membership: Membership, launcher: Visitors) -> None:
    membership.start(1)
    assert membership.whereabouts(1) == Whereabouts()  # its process is not known
    launcher.pid = lambda worker: os.getpid()  # type: ignore[method-assign]
    threading.current_thread().name = "worker 1"
    found = membership.whereabouts(1)
    assert found is not None
    assert "in test_a_worker_of_this_host_is_looked_at_here" in found.line


def test_a_worker_of_another_host_is_looked_at_by_one_beside_it_before_it_is_ended(
    membership: Membership, launcher: Visitors
) -> None:
    come(membership, launcher, "elsewhere", "elsewhere", "a third")
    for worker in (1, 2, 3):
        assert launcher.ends[worker].receive(SECONDS)  # the welcome
    assert membership.whereabouts(1) is None
    membership.kill(1)
    assert launcher.ends[2].receive(SECONDS) == {"type": "host_stack", "worker": 1, "pid": 1001}
    assert launcher.ends[2].receive(SECONDS) == {"type": "host_kill", "pid": 1001}
    assert [launcher.ends[w].receive(0) for w in (1, 3)] == [None, None]


def test_a_worker_that_is_alone_on_its_host_has_a_moment_to_say_where_it_is(
    membership: Membership, launcher: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    come(membership, launcher, "elsewhere")
    launcher.ends[1].receive(SECONDS)
    assert membership.whereabouts(1) is None
    assert launcher.ends[1].receive(SECONDS) == {"type": "host_stack", "worker": 1, "pid": 1001}
    membership.kill(1)
    assert membership.overdue() == []
    later = time.monotonic() + ANSWER_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert membership.overdue() == [1]


# --- hearing ---------------------------------------------------------------------------------------------------------


def heard(membership: Membership, count: int) -> list[tuple[int, Message | None]]:
    found: list[tuple[int, Message | None]] = []
    deadline = time.monotonic() + SECONDS
    while len(found) < count and time.monotonic() < deadline:
        found += membership.hear(0.01)
    return found


def test_words_are_heard_in_their_order_and_then_the_end(membership: Membership, launcher: Visitors) -> None:
    membership.start(1)
    launcher.ends[1].send({"type": "idle"})
    launcher.ends[1].send({"type": "halted"})
    assert heard(membership, 2) == [(1, {"type": "idle"}), (1, {"type": "halted"})]
    launcher.ends[1]._socket.shutdown(2)
    assert heard(membership, 1) == [(1, None)]


def test_who_is_let_go_because_of_anothers_word_is_not_heard_any_more(
    membership: Membership, launcher: Visitors
) -> None:
    """Its own words may have come at the same time; its end is no loss."""
    for worker in (1, 2):
        membership.start(worker)
        launcher.ends[worker].send({"type": "idle"})
        launcher.ends[worker].send({"type": "idle"})
    found = []
    for worker, message in membership.hear(SECONDS):
        found.append((worker, message))
        for other in (1, 2):
            membership.dismiss(other)
    assert len(found) == 1
    assert list(membership.hear(0)) == []
    assert membership.lost == 0


def test_it_is_woken(membership: Membership) -> None:
    membership.wake()
    start = time.monotonic()
    assert list(membership.hear(SECONDS)) == []
    assert time.monotonic() - start < SECONDS
