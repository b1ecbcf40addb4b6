"""The exchange of a large buffer between hosts: reduce-scatter of the subtrees' sums, all-gather of the whole sum.

Each host owns a run of blocks. The subtrees' sums of these blocks travel to the owner, who adds them up the tree and
hands the result back to all. With H hosts that hold one subtree each, a host sends (H-1)/H of the buffer twice, which
is the least that is possible.

The buffer travels in *buckets* of a megabyte, from its end to its beginning, which is about the order in which backward
finishes gradients (later layers have later names). Buckets leave in bucket order, not in the order in which they become
ready, and their size does not change a bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import split_evenly
from dtrain.comm.links import Kind, Links
from dtrain.comm.memory import RunMemory
from dtrain.comm.own import OwnSubtrees, Part, elements
from dtrain.comm.reduce import Call, Squares, bind_additions, scratch_of
from dtrain.comm.tree import Subtree, final_additions

CHUNK_BLOCKS = 16
"""Blocks of a bucket: a megabyte of float32."""


class SliceExchange:
    """What is added and what travels in a step, for one distribution of the gradients over the hosts."""

    def __init__(self, memory: RunMemory, part: Part, own: OwnSubtrees, present: tuple[int, ...]) -> None:
        layout, shards = memory.dimensions.layout, memory.dimensions.shards
        self._memory, self._part, self._own, self._present = memory, part, own, set(present)
        self._buckets = buckets(layout.blocks, part.hosts)
        self._slices = split_evenly(layout.blocks, part.hosts)
        self._peers = [h for h in range(part.hosts) if h != part.host]
        self._missing = self._unannounced = 0
        self._is_announced = False
        lo, hi = self._slices[part.host]
        self._chunks = [[chunk for owner, chunk in self._buckets if owner == h] for h in range(part.hosts)]
        self._adds_of_bucket: dict[int, list[Call]] = {}
        start, end = elements(memory, (lo, hi)).start, elements(memory, (lo, hi)).stop
        self._incoming = {
            peer: {s: np.empty(end - start, layout.dtype) for s in own.of_host[peer]} for peer in self._peers
        }
        scratch = scratch_of(layout, shards)
        every = {s for subtrees in own.of_host for s in subtrees}
        adds, result = final_additions(shards, every)
        source: dict[Subtree, tuple[NDArray[np.generic], int]] = {s: (row, 0) for s, row in own.rows.items()}
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
        self._figures = [np.empty(s.stop - s.start + 2 * shards, np.float64) for s in self._segments]
        self._nothing = np.empty(0, np.uint8)
        self._frames = {peer: len(own.of_host[peer]) for peer in self._peers}

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
        lo = elements(memory, self._slices[part.host]).start
        for peer in self._peers:
            for chunk in self._chunks[part.host]:
                where = elements(memory, chunk)
                for row in self._incoming[peer].values():
                    links.receive(peer, Kind.PARTIAL, row[where.start - lo : where.stop - lo])
                    self._missing += 1
            for chunk in self._chunks[peer]:
                links.receive(peer, Kind.TOTAL, memory.total[elements(memory, chunk)])
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
                    calls = self._adds_of_bucket[number] = self._own.bind(chunk)
                for call in calls:
                    call()
            self.offered += 1
            if owner == self._part.host:
                self._own_ready += 1
                continue
            for row in self._own.rows.values():
                links.send(owner, Kind.PARTIAL, row[elements(self._memory, chunk)])
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
            content = memory.total[elements(memory, chunks[chunk])]
            for peer in self._peers:
                links.send(peer, Kind.TOTAL, content)

    def _send_figures(self, links: Links, slot: int) -> None:
        memory, part = self._memory, self._part
        figures, segments = self._figures[part.host], self._segments[part.host]
        count = segments.stop - segments.start
        figures[:count] = memory.squares[slot, segments]
        figures[count:] = 0.0
        for shard in self._own.losses:
            figures[count + 2 * shard] = memory.losses[slot, shard]
            figures[count + 2 * shard + 1] = memory.shard_squares[slot, shard]
        for peer in self._peers:
            links.send(peer, Kind.FIGURES, figures)

    def take_figures(self, slot: int) -> None:
        """Put the squares of the others, and the losses and squared norms of their shards, in their place."""
        memory = self._memory
        for peer in self._peers:
            segments, figures = self._segments[peer], self._figures[peer]
            count = segments.stop - segments.start
            memory.squares[slot, segments] = figures[:count]
            for shard in self._own.held[peer] & self._present:
                memory.losses[slot, shard] = figures[count + 2 * shard]
                memory.shard_squares[slot, shard] = figures[count + 2 * shard + 1]

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
