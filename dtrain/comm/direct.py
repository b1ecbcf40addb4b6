"""The exchange of a small buffer between hosts: every host sends its subtrees' sums to all others and adds all of them.

It takes one way through the network where the exchange by slices takes two, and one frame to each host. With two hosts
it costs no more bytes; with more of them the limit `DIRECT_BYTES` keeps what it costs below the price of a second way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.links import Kind, Links
from dtrain.comm.memory import RunMemory
from dtrain.comm.own import OwnSubtrees, Part
from dtrain.comm.reduce import Call, Squares, bind_additions, scratch_of
from dtrain.comm.slices import buckets
from dtrain.comm.tree import Subtree, final_additions

DIRECT_BYTES = 256 << 10
"""What a host may send in all for a step, so that it is sent directly."""

_ALIGN = 64


def is_direct(memory: RunMemory, part: Part, own: OwnSubtrees) -> bool:
    """Whether the buffer is small enough: the same answer on every host."""
    most = max(len(subtrees) for subtrees in own.of_host)
    return (part.hosts - 1) * most * memory.dimensions.layout.dense_nbytes <= DIRECT_BYTES


class DirectExchange:
    """What is sent and added in a step, for one distribution of the gradients over the hosts."""

    def __init__(self, memory: RunMemory, part: Part, own: OwnSubtrees, present: tuple[int, ...]) -> None:
        layout, shards = memory.dimensions.layout, memory.dimensions.shards
        self._memory, self._own = memory, own
        self._peers = [h for h in range(part.hosts) if h != part.host]
        self._buckets = len(buckets(layout.blocks, part.hosts))
        self._blocks = range(layout.blocks)
        self._own_adds = own.bind((0, layout.blocks))
        self.offered = self._missing = self._unannounced = 0
        self._is_announced = False
        messages = [_Message(memory, own, host) for host in range(part.hosts)]
        self._message, self._of_peer = messages[part.host], {peer: messages[peer] for peer in self._peers}
        terms = {s: row for message in messages for s, row in message.rows.items()}
        adds, result = final_additions(shards, set(terms))
        scratch = scratch_of(layout, shards)
        self._adds: list[Call] = []
        for where in map(layout.block, self._blocks):

            def term(subtree: Subtree, where: slice = where) -> NDArray[np.generic]:
                return terms[subtree][where]

            self._adds += bind_additions(adds, result, term, memory.total[where], scratch)
        self._squares = Squares(layout, memory.total, (0, layout.blocks))
        self._shards = {peer: np.array(sorted(own.held[peer] & set(present)), np.intp) for peer in self._peers}
        self._nothing = np.empty(0, np.uint8)

    def start(self, links: Links, step: int) -> None:
        """Post what will be received."""
        links.begin(step)
        self._is_announced = False
        self.offered, self._missing, self._unannounced = 0, len(self._peers), len(self._peers)
        for peer, message in self._of_peer.items():
            links.receive(peer, Kind.PARTIAL, message.content)
            links.receive(peer, Kind.DONE, self._nothing)

    def offer(self, links: Links, slot: int, ready: int, adds: bool) -> None:
        """Send everything once all buckets are ready; with ``adds`` the own subtrees are still to be added."""
        if ready < self._buckets:
            return
        if adds:
            for call in self._own_adds:
                call()
        message = self._message
        for subtree, row in self._own.rows.items():
            message.rows[subtree][:] = row[: message.rows[subtree].size]
        message.losses[:] = self._memory.losses[slot]
        message.shard_squares[:] = self._memory.shard_squares[slot]
        for peer in self._peers:
            links.send(peer, Kind.PARTIAL, message.content)
        self.offered = self._buckets
        if not self._missing:
            self._add(slot)

    def arrived(self, links: Links, host: int, kind: Kind, slot: int) -> None:
        """A posted frame is there."""
        if kind is Kind.DONE:
            self._unannounced -= 1
            return
        self._missing -= 1
        if not self._missing and self.offered:
            self._add(slot)

    def _add(self, slot: int) -> None:
        for call in self._adds:
            call()
        squares = self._memory.squares[slot]
        for block in self._blocks:
            self._squares.run(block, squares)

    def take_figures(self, slot: int) -> None:
        """Put the losses of the others, and their shards' squared norms, in their place."""
        losses, squares = self._memory.losses[slot], self._memory.shard_squares[slot]
        for peer, shards in self._shards.items():
            losses[shards] = self._of_peer[peer].losses[shards]
            squares[shards] = self._of_peer[peer].shard_squares[shards]

    @property
    def is_waiting(self) -> bool:
        """Whether the step is not yet over for this host."""
        return self._missing > 0 or self._unannounced > 0

    @property
    def is_whole(self) -> bool:
        """Whether everything has arrived here and is added, and nobody has been told."""
        return not self._missing and self.offered > 0 and not self._is_announced

    def announce(self, links: Links) -> None:
        """Tell the others that everything has arrived here."""
        self._is_announced = True
        for peer in self._peers:
            links.send(peer, Kind.DONE, self._nothing)


class _Message:
    """What a host sends: the sums of its subtrees one after the other, then all shards' losses and squared norms."""

    def __init__(self, memory: RunMemory, own: OwnSubtrees, host: int) -> None:
        layout, shards = memory.dimensions.layout, memory.dimensions.shards
        row_bytes = -(-layout.dense_nbytes // _ALIGN) * _ALIGN
        subtrees = own.of_host[host]
        self.content = np.zeros(len(subtrees) * row_bytes + 16 * shards, np.uint8)
        self.rows: dict[Subtree, NDArray[np.generic]] = {
            subtree: self.content[i * row_bytes : i * row_bytes + layout.dense_nbytes].view(layout.dtype)
            for i, subtree in enumerate(subtrees)
        }
        figures = self.content[len(subtrees) * row_bytes :].view(np.float64)
        self.losses, self.shard_squares = figures[:shards], figures[shards:]
