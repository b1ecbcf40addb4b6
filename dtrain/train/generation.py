"""What the members of a new generation are told: their ranks and shards, and which host holds what and is met where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtrain.comm.channel import Message
from dtrain.train.events import Begin
from dtrain.train.hosts import Hosts, held


def begin_messages(begin: Begin, hosts: Hosts, done: Mapping[int, frozenset[int]], address: str) -> dict[int, Message]:
    """Return the message for each member. ``done`` are the shards that are done on each host already.

    ``address`` is that of the coordinator's host for the others.
    """
    numbers = (0, *hosts.others)
    where = [hosts.host_of[w] for w in begin.members]
    runs = [range(*run) for run in begin.runs]
    messages: dict[int, Message] = {}
    for rank, worker in enumerate(begin.members):
        local = hosts.on(where[rank])
        message: Message = {
            "type": "begin",
            "generation": begin.generation,
            "step": begin.step,
            "rank": local.index(worker),
            "world_size": len(local),
            "first": begin.first[rank],
            "run": begin.runs[rank],
        }
        if len(numbers) > 1:
            message |= {
                "part": {
                    "host": numbers.index(where[rank]),
                    "hosts": len(numbers),
                    "rank": local.index(worker),
                    "ranks": len(local),
                },
                "first_held": held(numbers, where, begin.first, done),
                "held": held(numbers, where, runs, {}),
                "leaders": [hosts.on(n)[0] for n in numbers],
                "address": address if where[rank] == 0 else "",
            }
        messages[worker] = message
    return messages


class Introductions:
    """The first rank of each host says where it can be met; when all have, all are told. One for each generation."""

    def __init__(self, hosts: Hosts, generation: int) -> None:
        self._hosts, self._generation = hosts, generation
        self._addresses: dict[int, Any] = {}

    def meet(self, worker: int, address: Any) -> dict[int, Message]:
        """Note where a first rank can be met; return what is to be told to whom."""
        self._addresses[self._hosts.host_of[worker]] = address
        numbers = (0, *self._hosts.others)
        if not all(n in self._addresses for n in numbers):
            return {}
        addresses = [self._addresses[n] for n in numbers]
        peers = {"type": "peers", "generation": self._generation, "addresses": addresses}
        return {self._hosts.on(n)[0]: peers for n in numbers}
