"""The barrier of the ranks of one host: each rank writes one word, and waits until every other word has followed.

No rank writes another's word, so no atomic operation is needed; x86-64 keeps stores in order, and an aligned 8-byte
store is whole. A wait spins for some microseconds, then gives up its time slice, then sleeps. It ends with ``Halted``
when the coordinator halts the generation: the coordinator watches the deadline, since only it can tell a slow rank from
a dead one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from dtrain.comm.memory import ARRIVED, HALT, ROW_WORDS, RunMemory

_SPINS = 300
_YIELDS = 2000
_SLEEP_SECONDS = 100e-6


class Halted(Exception):
    """The coordinator halted this generation; the rank stops where it is and asks what to do."""


class Barrier:
    """The barrier of one rank in one generation of ``world_size`` ranks.

    ``idle`` is called now and then in a long wait; it may raise, for example when the coordinator is gone.
    """

    def __init__(
        self, memory: RunMemory, rank: int, world_size: int, generation: int, idle: Callable[[], None] = lambda: None
    ) -> None:
        self._words = memory.arrived_words
        self._header = memory.header_words
        self._own = rank * ROW_WORDS + ARRIVED
        self._others = [r * ROW_WORDS + ARRIVED for r in range(world_size) if r != rank]
        self._generation = generation
        self._idle = idle
        # With more ranks than cores a spinning rank keeps the one that it waits for from running.
        self._spins = _SPINS if world_size <= (os.cpu_count() or 1) else 0

    def arrive(self, value: int) -> None:
        """Say that this rank has reached ``value``; everything that it wrote before is visible to who sees this."""
        self._words[self._own] = value

    def wait(self, value: int) -> None:
        """Wait until every rank has reached ``value``. Raises Halted."""
        words = self._words
        for other in self._others:
            if words[other] < value:
                self._wait_for(other, value)

    def _wait_for(self, other: int, value: int) -> None:
        words, header, generation = self._words, self._header, self._generation
        for _ in range(self._spins):
            if words[other] >= value:
                return
        turns = 0
        while words[other] < value:
            if header[HALT] >= generation:
                # The word may have been written between the two looks, and then the others may have gone on.
                if words[other] >= value:
                    return
                raise Halted
            turns += 1
            if turns < _YIELDS:
                os.sched_yield()
            else:
                if turns % 1000 == 0:
                    self._idle()
                time.sleep(_SLEEP_SECONDS)
