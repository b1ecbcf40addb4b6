"""The sum between hosts: from the gradients that each host holds to the whole sum on every host.

The order of summation is that of `tree.py`, whoever adds. A host first adds what it can add alone: the largest subtrees
whose shards it holds (`cover`). Each host owns a run of blocks. The subtrees' sums of these blocks travel to the owner,
who adds them up the tree and hands the result back to all (reduce-scatter, all-gather). The same additions are made as
on one host, on the same values, so the bits are the same.

With H hosts that hold one subtree each, a host sends (H-1)/H of the buffer twice, which is the least that is possible.

Every host then has the whole sum, its squares and all losses, says so to all others, and goes on only when all have
said so. So if any host has begun the update of a step, every host can finish it by itself, and a host that is lost
takes nothing with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.barrier import Halted
from dtrain.comm.layout import BLOCK, split_evenly
from dtrain.comm.links import Kind, LinkLost, Links
from dtrain.comm.memory import COMPLETE, HALT, PARTIAL, RING, ROW_WORDS, WAITS, RunMemory
from dtrain.comm.reduce import Call, Squares, bind_additions, scratch_of
from dtrain.comm.tree import Leaf, Subtree, cover, final_additions, partial_additions

CHUNK_BLOCKS = 16
"""Blocks that travel and are added together: a megabyte of float32."""

_PATIENCE_SECONDS = 0.005
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

    Every rank calls ``add_own``; then the first rank of each host calls ``run``. ``links`` is None for the other ranks.
    """

    def __init__(self, memory: RunMemory, part: Part, links: Links | None, generation: int) -> None:
        self._memory, self._part, self._links, self._generation = memory, part, links, generation
        self._row = part.rank * ROW_WORDS
        self._schedules: dict[tuple[Held, tuple[int, ...]], _Schedule] = {}

    def add_own(self, step: int, held: Held, present: tuple[int, ...]) -> None:
        """Add this rank's blocks of the subtrees that the host holds whole; then say so."""
        for call in self._schedule(held, present).own:
            call()
        self._memory.arrived_words[self._row + PARTIAL] = step + 1

    def run(self, step: int, held: Held, present: tuple[int, ...], idle: Callable[[], None] = lambda: None) -> None:
        """Make ``total``, its squares and the losses of ``step`` whole on this host. Raises Halted, LinkLost.

        ``idle`` is called now and then while this host waits; it may raise.
        """
        assert self._links is not None
        memory, links, part = self._memory, self._links, self._part
        words, header, slot = memory.arrived_words, memory.header_words, step % RING
        for rank in range(1, part.ranks):
            self._wait(rank * ROW_WORDS + PARTIAL, step + 1, idle)
        schedule = self._schedule(held, present)
        schedule.start(links, step)
        while schedule.is_waiting or not links.is_sent():
            if header[HALT] >= self._generation:
                raise Halted
            try:
                arrived = links.progress(step, _PATIENCE_SECONDS)
            except LinkLost:
                if header[HALT] >= self._generation:  # the other host has only seen it first
                    raise Halted from None
                raise
            if not arrived:
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
        self.own = self._bind_own(own)
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

    def _bind_own(self, own: Sequence[Subtree]) -> list[Call]:
        memory, layout = self._memory, self._memory.dimensions.layout
        scratch = scratch_of(layout, memory.dimensions.shards)
        calls: list[Call] = []
        for block in range(*split_evenly(layout.blocks, self._part.ranks)[self._part.rank]):
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
        self._chunks = [_chunks(*blocks) for blocks in self._slices]
        self._sends = [  # (host, chunk of its slice) of each own subtree, chunk by chunk
            (peer, row[_elements(memory, chunk)])
            for peer in self._peers
            for chunk in self._chunks[peer]
            for row in self._rows.values()
        ]
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
        for peer, content in self._sends:
            links.send(peer, Kind.PARTIAL, content)
        self._advance(links, step % RING)

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
            if chunk < len(chunks) and any(self._next[p] < (chunk + 1) * self._frames[p] for p in self._peers):
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
        """Whether everything has arrived here, and nobody has been told."""
        return self._missing == 0 and not self._is_announced

    def announce(self, links: Links) -> None:
        """Tell the others that everything has arrived here."""
        self._is_announced = True
        for peer in self._peers:
            links.send(peer, Kind.DONE, self._nothing)


def _chunks(lo: int, hi: int) -> list[tuple[int, int]]:
    return [(start, min(start + CHUNK_BLOCKS, hi)) for start in range(lo, hi, CHUNK_BLOCKS)]


def _elements(memory: RunMemory, blocks: tuple[int, int]) -> slice:
    """The elements of blocks ``lo..hi``."""
    size = memory.dimensions.layout.size
    return slice(min(blocks[0] * BLOCK, size), min(blocks[1] * BLOCK, size))
