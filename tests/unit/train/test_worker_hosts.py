"""What the first rank of a host hears while it waits for the other hosts."""

from __future__ import annotations

import pytest

from dtrain.comm.barrier import Halted
from dtrain.comm.channel import Channel, ChannelClosed, Message, channel_pair
from dtrain.comm.memory import HALT, WAITS
from dtrain.train.worker import Worker
from tests.unit.train.cluster import memory_of, program

PEERS: Message = {"type": "peers", "generation": 3, "addresses": []}
MEETING: Message = {"type": "meeting", "generation": 3, "address": []}


def worker() -> tuple[Worker, Channel]:
    here, there = channel_pair()
    made = Worker(Channel(there))
    made.memory = memory_of(program())
    return made, here


def test_it_takes_the_answer_of_its_generation_alone() -> None:
    asking, coordinator = worker()
    for message in ({"type": "go"}, {**PEERS, "generation": 2}, PEERS):
        coordinator.send(message)
    assert asking.ask(MEETING, "peers") == PEERS
    assert coordinator.receive(30) == MEETING
    assert asking._next_message(0) is None


def test_an_evaluation_that_is_due_at_once_is_not_lost() -> None:
    """A generation may begin at a boundary: its members are then told to evaluate before the hosts have met."""
    asking, coordinator = worker()
    evaluate = {"type": "evaluate", "generation": 3, "step": 4, "chunks": [0, 1]}
    coordinator.send(evaluate)
    coordinator.send(PEERS)
    assert asking.ask(MEETING, "peers") == PEERS
    assert asking._next_message(0) == evaluate


def test_a_halt_ends_the_wait() -> None:
    asking, _coordinator = worker()
    asking.memory.header[HALT] = 3
    with pytest.raises(Halted):
        asking.ask(MEETING, "peers")


def test_a_stop_ends_the_wait_and_is_kept() -> None:
    asking, coordinator = worker()
    coordinator.send({"type": "stop"})
    with pytest.raises(Halted):
        asking.ask(MEETING, "peers")
    assert asking._next_message(0) == {"type": "stop"}


def test_the_end_of_the_coordinator_ends_the_wait() -> None:
    asking, coordinator = worker()
    coordinator._socket.shutdown(1)
    with pytest.raises(ChannelClosed):
        asking.ask(MEETING, "peers")


def test_it_says_that_it_waits_for_another_host() -> None:
    """Else it would be blamed for a host that does not come."""
    asking, coordinator = worker()
    coordinator.send({"type": "go"})
    coordinator.send(PEERS)
    asking.ask(MEETING, "peers")
    assert asking.memory.arrived[0, WAITS] == 2
