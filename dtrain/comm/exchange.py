"""The sum between hosts: from the gradients that each host holds to the whole sum on every host.

The order of summation is that of `tree.py`, whoever adds. A host first adds what it can add alone: the largest subtrees
whose shards it holds (`cover`). Each host owns a run of blocks. The subtrees' sums of these blocks travel to the owner,
who adds them up the tree and hands the result back to all (reduce-scatter, all-gather). The same additions are made as
on one host, on the same values, so the bits are the same.

With H hosts that hold one subtree each, a host sends (H-1)/H of the buffer twice, which is the least that is possible.

The buffer travels in *buckets* of a megabyte, from its end to its beginning, which is about the order in which backward
finishes gradients (later layers have later names). A large buffer leaves bucket by bucket while earlier layers still
run backward: a helper thread of the host's first rank adds and sends what every rank of the host has reported as ready.
Buckets leave in bucket order, not in the order in which they become ready, and their size does not change a bit.

Every host then has the whole sum, its squares and all losses, says so to all others, and goes on only when all have
said so. So if any host has begun the update of a step, every host can finish it by itself, and a host that is lost
takes nothing with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.barrier import Halted
from dtrain.comm.layout import BLOCK, split_evenly
from dtrain.comm.links import Kind, LinkLost, Links
from dtrain.comm.memory import COMPLETE, HALT, PARTIAL, READY, RING, ROW_WORDS, WAITS, RunMemory
from dtrain.comm.reduce import Call, Squares, bind_additions, scratch_of
from dtrain.comm.tree import Leaf, Subtree, cover, final_additions, partial_additions

CHUNK_BLOCKS = 16
"""Blocks of a bucket: a megabyte of float32."""

OVERLAP_BYTES = 4 << 20
"""A smaller buffer is sent when all of it is there: to hand it to a thread would take longer than to send it."""

_PATIENCE_SECONDS = 0.005
_READY_SECONDS = 0.0005
_IDLE_SECONDS = 0.05
_YIELDS = 2000

Held = tuple[frozenset[int], ...]
"""The shards whose gradients each host holds, by host."""


@dataclass(frozen=True)
class Part:
    """The place of one process in the sum between hosts: its host among ``hosts``, its rank among those of the host."""

    host: int
    hosts: int
    rank: int
    ranks: int


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
        self._schedules: dict[tuple[Held, tuple[int, ...]], _Schedule] = {}
        self.overlaps = layout.nbytes >= OVERLAP_BYTES if overlaps is None else overlaps
        self.buckets = buckets(layout.blocks, part.hosts)
        self._helper: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        self._is_closed = False

    def add_own(self, step: int, held: Held, present: tuple[int, ...]) -> None:
        """Add this rank's blocks of the subtrees that the host holds whole; then say so."""
        for call in self._schedule(held, present).own:
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
        schedule = self._schedule(held, present)
        self._exchange(schedule, step, idle, lambda: len(self.buckets), _PATIENCE_SECONDS)

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
        schedule = self._schedule(held, present)

        def ready() -> int:
            return min(words[row] for row in rows) - step * total

        with np.errstate(all="ignore"):  # the setting is the thread's own; see `worker.py`
            self._exchange(schedule, step, lambda: None, ready, _READY_SECONDS)

    def _exchange(
        self, schedule: _Schedule, step: int, idle: Callable[[], None], ready: Callable[[], int], patience: float
    ) -> None:
        """Exchange one step; ``ready`` tells how many buckets are there."""
        assert self._links is not None
        links, words, header, slot = self._links, self._memory.arrived_words, self._memory.header_words, step % RING
        schedule.start(links, step)
        while schedule.is_waiting or not links.is_sent():
            if header[HALT] >= self._generation or self._is_closed:
                raise Halted
            if schedule.offered < len(self.buckets):
                schedule.offer(links, slot, ready(), self.overlaps)
            try:
                arrived = links.progress(step, patience if schedule.offered < len(self.buckets) else _PATIENCE_SECONDS)
            except LinkLost:
                if header[HALT] >= self._generation:  # the other host has only seen it first
                    raise Halted from None
                raise
            if not arrived:
                if schedule.offered == len(self.buckets):  # until then this host has work of its own
                    words[self._row + WAITS] += 1
                idle()
            for host, kind in arrived:
                schedule.arrived(links, host, kind, slot)
            if schedule.is_whole:
                schedule.take_figures(slot)
                header[COMPLETE] = step + 1
                schedule.announce(links)

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

    def _schedule(self, held: Held, present: tuple[int, ...]) -> _Schedule:
        schedule = self._schedules.get((held, present))
        if schedule is None:
            if len(self._schedules) > 4:  # a first step after a loss has one of its own
                self._schedules.clear()
            schedule = self._schedules[held, present] = _Schedule(self._memory, self._part, held, present)
        return schedule


class _Schedule:
    """What is added and what travels in a step, for one distribution of the gradients over the hosts."""

    def __init__(self, memory: RunMemory, part: Part, held: Held, present: tuple[int, ...]) -> None:
        layout, shards = memory.dimensions.layout, memory.dimensions.shards
        self._memory, self._part, self._held, self._present = memory, part, held, present
        self.subtrees = [cover(shards, present, h) for h in held]
        own = self.subtrees[part.host]
        self._rows = self._place_own(own)
        self.own = self._bind_own(split_evenly(layout.blocks, part.ranks)[part.rank])
        self._slices = split_evenly(layout.blocks, part.hosts)
        self._peers = [h for h in range(part.hosts) if h != part.host]
        self._missing = self._unannounced = 0
        self._is_announced = False
        if part.rank == 0:
            self._prepare()

    def _place_own(self, own: Sequence[Subtree]) -> dict[Subtree, NDArray[np.generic]]:
        """Where the sum of each own subtree lies: in the gradient itself if it is of one shard."""
        rows: dict[Subtree, NDArray[np.generic]] = {}
        self._many: list[Subtree] = []
        for subtree in own:
            shards = [s for s in self._present if subtree.lo <= s < subtree.hi]
            if len(shards) == 1:
                rows[subtree] = self._memory.gradients[shards[0]]
            else:
                rows[subtree] = self._memory.partials[len(self._many)]
                self._many.append(subtree)
        return rows

    def _bind_own(self, blocks: tuple[int, int]) -> list[Call]:
        """The additions that make the own subtrees in these blocks."""
        memory, layout = self._memory, self._memory.dimensions.layout
        scratch = scratch_of(layout, memory.dimensions.shards)
        calls: list[Call] = []
        for block in range(*blocks):
            where = layout.block(block)

            def gradient(leaf: Leaf, where: slice = where) -> NDArray[np.generic]:
                return memory.gradients[leaf.shard, where]

            for subtree in self._many:
                adds, result = partial_additions(subtree, self._present)
                calls += bind_additions(adds, result, gradient, self._rows[subtree][where], scratch)
        return calls

    def _prepare(self) -> None:
        """Bind what the first rank of the host does: what it sends, receives and adds."""
        memory, part = self._memory, self._part
        layout = memory.dimensions.layout
        lo, hi = self._slices[part.host]
        self._buckets = buckets(layout.blocks, part.hosts)
        self._chunks = [[chunk for owner, chunk in self._buckets if owner == h] for h in range(part.hosts)]
        self._adds_of_bucket: dict[int, list[Call]] = {}
        start, end = _elements(memory, (lo, hi)).start, _elements(memory, (lo, hi)).stop
        self._incoming = {
            peer: {s: np.empty(end - start, layout.dtype) for s in self.subtrees[peer]} for peer in self._peers
        }
        scratch = scratch_of(layout, memory.dimensions.shards)
        every = {s for subtrees in self.subtrees for s in subtrees}
        adds, result = final_additions(memory.dimensions.shards, every)
        source: dict[Subtree, tuple[NDArray[np.generic], int]] = {s: (row, 0) for s, row in self._rows.items()}
        for rows in self._incoming.values():
            source |= {s: (row, start) for s, row in rows.items()}
        self._adds: list[list[list[Call]]] = []
        for chunk in self._chunks[part.host]:
            blocks = []
            for block in range(*chunk):
                where = layout.block(block)

                def term(subtree: Subtree, where: slice = where) -> NDArray[np.generic]:
                    row, offset = source[subtree]
                    return row[where.start - offset : where.stop - offset]

                blocks.append(bind_additions(adds, result, term, memory.total[where], scratch))
            self._adds.append(blocks)
        self._squares = Squares(layout, memory.total, (lo, hi))
        self._segments = [slice(layout.segment_starts[a], layout.segment_starts[b]) for a, b in self._slices]
        shards = memory.dimensions.shards
        self._figures = [np.empty(s.stop - s.start + shards, np.float64) for s in self._segments]
        self._nothing = np.empty(0, np.uint8)
        self._own_losses = sorted(self._held[part.host] & set(self._present))
        self._frames = {peer: len(self.subtrees[peer]) for peer in self._peers}

    def start(self, links: Links, step: int) -> None:
        """Post what will be received, and send what is there."""
        memory, part = self._memory, self._part
        links.begin(step)
        self._is_announced = False
        self._next = {peer: 0 for peer in self._peers}  # frames of PARTIAL that have arrived
        self._added = 0  # chunks of the own slice
        self.offered = 0  # buckets
        self._own_ready = 0  # of them, those of the own slice
        self._missing, self._unannounced = 0, len(self._peers)
        lo = _elements(memory, self._slices[part.host]).start
        for peer in self._peers:
            for chunk in self._chunks[part.host]:
                where = _elements(memory, chunk)
                for row in self._incoming[peer].values():
                    links.receive(peer, Kind.PARTIAL, row[where.start - lo : where.stop - lo])
                    self._missing += 1
            for chunk in self._chunks[peer]:
                links.receive(peer, Kind.TOTAL, memory.total[_elements(memory, chunk)])
                self._missing += 1
            links.receive(peer, Kind.FIGURES, self._figures[peer])
            self._missing += 1
            links.receive(peer, Kind.DONE, self._nothing)

    def offer(self, links: Links, slot: int, ready: int, adds: bool) -> None:
        """Hand out the buckets below ``ready``; with ``adds`` the own subtrees in them are still to be added."""
        while self.offered < ready:
            number = self.offered
            owner, chunk = self._buckets[number]
            if adds:
                calls = self._adds_of_bucket.get(number)
                if calls is None:
                    calls = self._adds_of_bucket[number] = self._bind_own(chunk)
                for call in calls:
                    call()
            self.offered += 1
            if owner == self._part.host:
                self._own_ready += 1
                continue
            for row in self._rows.values():
                links.send(owner, Kind.PARTIAL, row[_elements(self._memory, chunk)])
        self._advance(links, slot)

    def arrived(self, links: Links, host: int, kind: Kind, slot: int) -> None:
        """A posted frame is there."""
        if kind is Kind.DONE:
            self._unannounced -= 1
            return
        self._missing -= 1
        if kind is Kind.PARTIAL:
            self._next[host] += 1
            self._advance(links, slot)

    def _advance(self, links: Links, slot: int) -> None:
        """Add and hand out every chunk of the own slice for which all partial sums are there."""
        memory, part = self._memory, self._part
        chunks = self._chunks[part.host]
        while self._added <= len(chunks):
            chunk = self._added
            if chunk < len(chunks):
                is_here = chunk < self._own_ready
                if not is_here or any(self._next[p] < (chunk + 1) * self._frames[p] for p in self._peers):
                    return
            elif self.offered < len(self._buckets):  # the losses are not there before the last gradient
                return
            self._added += 1
            if chunk == len(chunks):
                self._send_figures(links, slot)
                return
            for block, calls in enumerate(self._adds[chunk], chunks[chunk][0]):
                for call in calls:
                    call()
                self._squares.run(block, memory.squares[slot])
            content = memory.total[_elements(memory, chunks[chunk])]
            for peer in self._peers:
                links.send(peer, Kind.TOTAL, content)

    def _send_figures(self, links: Links, slot: int) -> None:
        memory, part = self._memory, self._part
        figures, segments = self._figures[part.host], self._segments[part.host]
        count = segments.stop - segments.start
        figures[:count] = memory.squares[slot, segments]
        figures[count:] = 0.0
        for shard in self._own_losses:
            figures[count + shard] = memory.losses[slot, shard]
        for peer in self._peers:
            links.send(peer, Kind.FIGURES, figures)

    def take_figures(self, slot: int) -> None:
        """Put the squares and losses of the others in their place."""
        memory = self._memory
        present = set(self._present)
        for peer in self._peers:
            segments, figures = self._segments[peer], self._figures[peer]
            count = segments.stop - segments.start
            memory.squares[slot, segments] = figures[:count]
            for shard in self._held[peer] & present:
                memory.losses[slot, shard] = figures[count + shard]

    @property
    def is_waiting(self) -> bool:
        """Whether the step is not yet over for this host."""
        return self._missing > 0 or self._unannounced > 0

    @property
    def is_whole(self) -> bool:
        """Whether everything has arrived here and the own slice is added, and nobody has been told."""
        is_added = self._added > len(self._chunks[self._part.host])
        return self._missing == 0 and is_added and not self._is_announced

    def announce(self, links: Links) -> None:
        """Tell the others that everything has arrived here."""
        self._is_announced = True
        for peer in self._peers:
            links.send(peer, Kind.DONE, self._nothing)


def buckets(blocks: int, hosts: int) -> list[tuple[int, tuple[int, int]]]:
    """The buckets in the order in which they travel: who owns it, and its blocks ``lo..hi``."""
    found = [
        (owner, (start, min(start + CHUNK_BLOCKS, hi)))
        for owner, (lo, hi) in enumerate(split_evenly(blocks, hosts))
        for start in range(lo, hi, CHUNK_BLOCKS)
    ]
    return found[::-1]


def _elements(memory: RunMemory, blocks: tuple[int, int]) -> slice:
    """The elements of blocks ``lo..hi``."""
    size = memory.dimensions.layout.size
    return slice(min(blocks[0] * BLOCK, size), min(blocks[1] * BLOCK, size))
