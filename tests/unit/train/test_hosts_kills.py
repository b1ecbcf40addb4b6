"""A worker of another host is ended by one beside it, for certain and once."""

from __future__ import annotations

import os

from tests.unit.train.cluster import Cluster


def test_a_worker_is_ended_by_one_beside_it() -> None:
    cluster = Cluster([1])
    for worker in (1, 2):
        cluster.add(worker, 1, has_agent=False)
    cluster.hosts.set_members((0, 1, 2))
    assert cluster.hosts.kill(1, 4321)
    assert cluster.next_message(2) == {"type": "host_kill", "pid": 4321}
    cluster.lose(2)
    assert not cluster.hosts.kill(1, 4321)  # nobody is beside it
    assert not cluster.hosts.kill(0, os.getpid())


def test_who_is_to_be_ended_is_ended_before_its_memory_is_used_again() -> None:
    """The one beside it that was told may be silent as well, and be given up without having done it."""
    cluster = Cluster([1])
    for worker in (1, 2, 3):
        cluster.add(worker, 1, has_agent=False)
    cluster.hosts.set_members((0, 1, 2, 3))
    assert cluster.hosts.kill(1, 4321)
    cluster.lose(1)
    cluster.lose(2)
    cluster.hosts.set_members((0, 3))
    cluster.hosts._hosts[1].is_current = True
    cluster.hosts.begin(2, 0, 0, [])
    assert cluster.next_message(3) == {"type": "host_kill", "pid": 4321}
    assert cluster.next_message(3)["type"] == "host_grant"


def test_who_has_been_ended_is_not_ended_again() -> None:
    """Its process number may be another's by then."""
    cluster = Cluster([1])
    for worker in (1, 2):
        cluster.add(worker, 1, has_agent=False)
    cluster.hosts.set_members((0, 1, 2))
    cluster.hosts.kill(1, 4321)
    assert cluster.next_message(2)["type"] == "host_kill"
    cluster.hosts.killed(2, 4321)
    cluster.lose(1)
    cluster.hosts.set_members((0, 2))
    cluster.hosts._hosts[1].is_current = True
    cluster.hosts.begin(2, 0, 0, [])
    assert cluster.next_message(2)["type"] == "host_grant"


def test_a_worker_with_the_number_of_one_that_was_to_be_ended_is_another() -> None:
    cluster = Cluster([1])
    for worker in (1, 2):
        cluster.add(worker, 1, has_agent=False)
    cluster.hosts.kill(1, 4321)
    cluster.add(3, 1, has_agent=False)
    cluster.hosts.joined(3, {"memory": [4321, 7]})
    cluster.lose(1)
    cluster.lose(2)
    cluster.hosts.set_members((0, 3))
    cluster.hosts._hosts[1].is_current = True
    cluster.hosts.begin(2, 0, 0, [])
    assert cluster.next_message(3)["type"] == "host_grant"
