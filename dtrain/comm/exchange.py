"""The sum between hosts: from the gradients that each host holds to the whole sum on every host.

The order of summation is that of `tree.py`, whoever adds. A host first adds what it can add alone: the largest subtrees
whose shards it holds (`own.py`). A small buffer then goes straight to all other hosts (`direct.py`), a large one by way
of the owners of its slices (`slices.py`). The rows of tables go before it (`row_exchange.py`). The same additions are
made as on one host, on the same values, so the bits are the same.

A large buffer may leave bucket by bucket while earlier layers still run backward: a helper thread of the host's first
rank adds and sends what every rank of the host has reported as ready.

Every host then has the whole sum, its squares and all losses, says so to all others, and goes on only when all have
said so. So if any host has begun the update of a step, every host can finish it by itself, and a host that is lost
takes nothing with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from dtrain.comm.barrier import Halted
from dtrain.comm.direct import DirectExchange, is_direct
from dtrain.comm.layout import split_evenly
from dtrain.comm.links import Kind, LinkLost, Links
from dtrain.comm.memory import COMPLETE, HALT, PARTIAL, READY, RING, ROW_WORDS, WAITS, RunMemory
from dtrain.comm.own import Held, OwnSubtrees, Part
from dtrain.comm.reduce import Call
from dtrain.comm.row_exchange import RowExchange
from dtrain.comm.slices import SliceExchange, buckets

__all__ = ["OVERLAP_BYTES", "Held", "HostSum", "Part"]

OVERLAP_BYTES = 4 << 20
"""A smaller buffer is sent when all of it is there: to hand it to a thread would take longer than to send it."""

_PATIENCE_SECONDS = 0.005
_READY_SECONDS = 0.0005
_IDLE_SECONDS = 0.05
_YIELDS = 2000

Exchange = DirectExchange | SliceExchange


class HostSum:
    """The sum between hosts, as one rank of a host sees it, in one generation.

    Without overlap every rank calls ``add_own`` when all gradients of the host are there, then its first rank ``run``.
    With overlap every rank reports buckets with ``report``, and the first rank calls ``start`` before and ``finish``
    after its own. ``links`` is None for the other ranks.
    """

    def __init__(
        self, memory: RunMemory, part: Part, links: Links | None, generation: int, overlaps: bool | None = None
    ) -> None:
        layout = memory.dimensions.layout
        self._memory, self._part, self._links, self._generation = memory, part, links, generation
        self._row = part.rank * ROW_WORDS
        self._own_calls: dict[tuple[Held, tuple[int, ...]], list[Call]] = {}
        self._exchanges: dict[tuple[Held, tuple[int, ...]], tuple[Exchange, RowExchange | None]] = {}
        self.overlaps = layout.dense_nbytes >= OVERLAP_BYTES if overlaps is None else overlaps
        self.overlaps = self.overlaps and not layout.tables  # rows are there when a shard is done, and go first
        self.buckets = buckets(layout.blocks, part.hosts)
        self._helper: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        self._is_closed = False

    def add_own(self, step: int, held: Held, present: tuple[int, ...]) -> None:
        """Add this rank's blocks of the subtrees that the host holds whole; then say so."""
        calls = self._own_calls.get((held, present))
        if calls is None:
            blocks = split_evenly(self._memory.dimensions.layout.blocks, self._part.ranks)[self._part.rank]
            calls = OwnSubtrees(self._memory, self._part, held, present).bind(blocks)
            _keep(self._own_calls, (held, present), calls)
        for call in calls:
            call()
        self._memory.arrived_words[self._row + PARTIAL] = step + 1

    def report(self, step: int, count: int | None = None) -> None:
        """Say that the first ``count`` buckets (None: all) of this rank's gradients of ``step`` are there."""
        total = len(self.buckets)
        self._memory.arrived_words[self._row + READY] = step * total + (total if count is None else count)

    def run(self, step: int, held: Held, present: tuple[int, ...], idle: Callable[[], None] = lambda: None) -> None:
        """Make ``total``, its squares and the losses of ``step`` whole on this host. Raises Halted, LinkLost.

        ``idle`` is called now and then while this host waits; it may raise.
        """
        for rank in range(1, self._part.ranks):
            self._wait(rank * ROW_WORDS + PARTIAL, step + 1, idle)
        exchange, rows = self._exchange_of(held, present)
        if rows is not None:
            assert self._links is not None
            squares = self._memory.squares[step % RING]
            rows.run(self._links, step, squares, lambda: self._progress(step, _PATIENCE_SECONDS, True, idle))
        self._run(exchange, step, idle, lambda: len(self.buckets), _PATIENCE_SECONDS)

    def start(self, step: int, held: Held, present: tuple[int, ...]) -> None:
        """Begin to add and send, in the helper thread, what the ranks of this host will report."""
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, "dtrain exchange")
        self._running = self._helper.submit(self._overlap, step, held, present)

    def finish(self, idle: Callable[[], None] = lambda: None) -> None:
        """Wait until the step that was started is whole on this host. Raises Halted, LinkLost."""
        assert self._running is not None
        running, self._running = self._running, None
        while True:
            try:
                return running.result(timeout=_IDLE_SECONDS)
            except TimeoutError:
                if running.done():
                    raise
                idle()

    def close(self) -> None:
        """End the helper thread; the generation is halted or over."""
        self._is_closed = True
        if self._helper is not None:
            self._helper.shutdown()

    def _overlap(self, step: int, held: Held, present: tuple[int, ...]) -> None:
        words, total = self._memory.arrived_words, len(self.buckets)
        rows = [rank * ROW_WORDS + READY for rank in range(self._part.ranks)]
        exchange, _ = self._exchange_of(held, present)

        def ready() -> int:
            return min(words[row] for row in rows) - step * total

        with np.errstate(all="ignore"):  # the setting is the thread's own; see `worker.py`
            self._run(exchange, step, lambda: None, ready, _READY_SECONDS)

    def _run(
        self, exchange: Exchange, step: int, idle: Callable[[], None], ready: Callable[[], int], patience: float
    ) -> None:
        """Exchange one step; ``ready`` tells how many buckets are there."""
        assert self._links is not None
        links, slot = self._links, step % RING
        exchange.start(links, step)
        while exchange.is_waiting or not links.is_sent():
            self._check_halt()
            if exchange.offered < len(self.buckets):
                exchange.offer(links, slot, ready(), self.overlaps)
            is_idle = exchange.offered == len(self.buckets)  # until then this host has work of its own
            for host, kind in self._progress(step, _PATIENCE_SECONDS if is_idle else patience, is_idle, idle):
                exchange.arrived(links, host, kind, slot)
            if exchange.is_whole:
                exchange.take_figures(slot)
                self._memory.header_words[COMPLETE] = step + 1
                exchange.announce(links)

    def _check_halt(self) -> None:
        if self._memory.header_words[HALT] >= self._generation or self._is_closed:
            raise Halted

    def _progress(self, step: int, patience: float, is_idle: bool, idle: Callable[[], None]) -> list[tuple[int, Kind]]:
        """Let the lines work for at most so long, and return what has arrived."""
        assert self._links is not None
        self._check_halt()
        try:
            arrived = self._links.progress(step, patience)
        except LinkLost:
            self._check_halt()  # the other host has only seen it first
            raise
        if not arrived:
            if is_idle:
                self._memory.arrived_words[self._row + WAITS] += 1
            idle()
        return arrived

    def _wait(self, word: int, value: int, idle: Callable[[], None]) -> None:
        words, turns = self._memory.arrived_words, 0
        while words[word] < value:
            if self._memory.header_words[HALT] >= self._generation:
                raise Halted
            turns += 1
            if turns < _YIELDS:
                os.sched_yield()
            else:
                if turns % 1000 == 0:
                    idle()
                time.sleep(100e-6)

    def _exchange_of(self, held: Held, present: tuple[int, ...]) -> tuple[Exchange, RowExchange | None]:
        found = self._exchanges.get((held, present))
        if found is None:
            own = OwnSubtrees(self._memory, self._part, held, present)
            kind = DirectExchange if is_direct(self._memory, self._part, own) else SliceExchange
            has_tables = bool(self._memory.dimensions.layout.tables)
            rows = RowExchange(self._memory, self._part, own, present) if has_tables else None
            found = kind(self._memory, self._part, own, present), rows
            _keep(self._exchanges, (held, present), found)
        return found


def _keep(found: dict[Any, Any], key: Any, value: Any) -> None:
    if len(found) > 4:  # a first step after a loss has one of its own
        found.clear()
    found[key] = value
