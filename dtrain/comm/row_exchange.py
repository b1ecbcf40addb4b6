"""The exchange of the rows of tables between hosts: rows travel, never a table.

First every host tells all others which rows its shards use: how many, then which. Then each knows the union over any
of them, so the length of everything that follows. A host adds the largest subtrees whose shards it holds, each over the
rows that this subtree uses, sends the sums to all others, and adds all of them up the tree. The additions are those
that one host makes (`rows.py`), so the bits are the same.

Everything goes straight to all other hosts. The way by the owners of slices (`slices.py`) would save nothing where the
hosts use different rows, which is what tables are for: the sum is then as long as all its terms together.

The first rank of a host does all of this, before the exchange of the dense gradients, which also says that it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import TABLE_PARTS
from dtrain.comm.links import Kind, Links
from dtrain.comm.memory import RunMemory
from dtrain.comm.own import OwnSubtrees, Part
from dtrain.comm.rows import (
    Ids,
    Term,
    Values,
    add_rows,
    compact,
    ids_of,
    merged,
    scratch_rows,
    square_rows,
    used_rows,
)
from dtrain.comm.tree import Leaf, Place, Subtree, final_additions, partial_additions

Progress = Callable[[], list[tuple[int, Kind]]]
"""Lets the lines work, and returns what has arrived: a host and a kind for each frame. May raise."""


class RowExchange:
    """What is sent and added in a step, for one distribution of the gradients over the hosts."""

    def __init__(self, memory: RunMemory, part: Part, own: OwnSubtrees, present: tuple[int, ...]) -> None:
        self._memory, self._layout, self._present = memory, memory.dimensions.layout, present
        self._host, self._subtrees = part.host, own.of_host
        self._peers = [h for h in range(part.hosts) if h != part.host]
        self._shards = [sorted(h & set(present)) for h in own.held]
        self._scratch = scratch_rows(self._layout, memory.dimensions.shards)
        self._adds = final_additions(memory.dimensions.shards, {s for of in own.of_host for s in of})

    def run(self, links: Links, step: int, squares: NDArray[np.float64], progress: Progress) -> None:
        """Make the rows' sum whole on this host, with its squares; what ``progress`` raises ends it."""
        links.begin(step)
        self._exchange_ids(links, progress)
        rows = self._exchange_sums(links, progress)
        adds, result = self._adds
        for number, group in enumerate(self._layout.groups):
            places = [(s, ids, values) for s, by_group in rows.items() for ids, values in (by_group[number],)]
            union, found = merged([ids for _, ids, _ in places])
            terms: dict[Place, Term] = {s: Term(p, v) for (s, _, v), p in zip(places, found, strict=True)}
            total = compact(self._memory.total, group, len(union))
            add_rows(adds, result, terms, (0, len(union)), total, self._scratch)
            square_rows(self._layout, number, union, total, (0, TABLE_PARTS), squares)

    def _exchange_ids(self, links: Links, progress: Progress) -> None:
        """Put into this host's memory which rows the shards of the others use."""
        memory, layout = self._memory, self._layout
        groups, own = len(layout.groups), self._shards[self._host]
        counts = {p: np.empty((len(self._shards[p]), groups), np.int64) for p in self._peers}
        self._swap(links, Kind.ROW_COUNTS, memory.row_counts[own], counts, progress)
        lists = [ids_of(memory, g, s) for s in own for g in range(groups)]
        ids = {p: np.empty(int(counts[p].sum()), np.int64) for p in self._peers}
        self._swap(links, Kind.ROW_IDS, np.concatenate([*lists, np.empty(0, np.int64)]), ids, progress)
        for peer in self._peers:
            lo = 0
            for shard, of_shard in zip(self._shards[peer], counts[peer].tolist(), strict=True):
                memory.row_counts[shard] = of_shard
                for group, count in zip(layout.groups, of_shard, strict=True):
                    memory.row_ids[shard, group.first_row : group.first_row + count] = ids[peer][lo : lo + count]
                    lo += count

    def _exchange_sums(self, links: Links, progress: Progress) -> dict[Subtree, list[tuple[Ids, Values]]]:
        """Return, for each subtree that a host holds and each group, the rows that it uses and their sums."""
        found: dict[Subtree, list[tuple[Ids, Values]]] = {}
        buffers = {}
        for host, subtrees in enumerate(self._subtrees):
            used = {s: [self._used(s, g) for g in range(len(self._layout.groups))] for s in subtrees}
            widths = [g.width for g in self._layout.groups]
            size = sum(len(ids) * w for of in used.values() for ids, w in zip(of, widths, strict=True))
            buffers[host] = buffer = np.empty(size, self._layout.dtype)
            lo = 0
            for subtree, of in used.items():
                rows = []
                for ids, width in zip(of, widths, strict=True):
                    hi = lo + len(ids) * width
                    rows.append((ids, buffer[lo:hi].reshape(len(ids), width)))
                    lo = hi
                if host == self._host or subtree not in found:  # two hosts may hold the same
                    found[subtree] = rows
                if host == self._host:
                    for number, (_, values) in enumerate(rows):
                        self._add(subtree, number, values)
        self._swap(links, Kind.ROWS, buffers.pop(self._host), buffers, progress)
        return found

    def _used(self, subtree: Subtree, group: int) -> Ids:
        return used_rows(self._memory, group, [s for s in self._present if subtree.lo <= s < subtree.hi])

    def _add(self, subtree: Subtree, number: int, out: Values) -> None:
        """Add the shards of a subtree that this host holds."""
        memory, group = self._memory, self._layout.groups[number]
        shards = [s for s in self._present if subtree.lo <= s < subtree.hi]
        _, places = merged([ids_of(memory, number, s) for s in shards])
        terms: dict[Place, Term] = {
            Leaf(s): Term(p, compact(memory.gradients[s], group, len(p))) for s, p in zip(shards, places, strict=True)
        }
        adds, result = partial_additions(subtree, self._present)
        add_rows(adds, result, terms, (0, len(out)), out, self._scratch)

    def _swap(self, links: Links, kind: Kind, own: Values, incoming: Mapping[int, Values], progress: Progress) -> None:
        """Send ``own`` to all others and receive what they send, all of one kind."""
        for peer in self._peers:
            links.receive(peer, kind, incoming[peer])
            links.send(peer, kind, own)
        missing = len(self._peers)
        while missing:
            missing -= len(progress())
