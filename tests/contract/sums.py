"""The contract of the sum: what each rank does in a step, whatever carries it, and which bits every host then has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from dtrain.comm.barrier import Barrier
from dtrain.comm.exchange import Held, HostSum, Part
from dtrain.comm.layout import BLOCK, Layout, split_evenly
from dtrain.comm.links import Links
from dtrain.comm.memory import COMPLETE, GRADIENTS, RING, SUMMED, UPDATED, Dimensions, RunMemory
from dtrain.comm.reduce import SliceSum
from dtrain.comm.tree import tree_sum
from tests.unit.comm.floats import Floats, bits, finite


@dataclass(frozen=True)
class Case:
    """What is summed: gradients of ``shards`` shards of a layout, of which ``present`` have samples."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"
    shards: int = 6
    present: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    steps: int = 3
    is_plain: bool = False  # values that are quick to make

    @property
    def layout(self) -> Layout:
        return Layout(tuple(f"p{i}" for i in range(len(self.shapes))), self.shapes, np.dtype(self.dtype))

    def memory(self, ranks: int) -> RunMemory:
        return RunMemory(self.dimensions(ranks))

    def dimensions(self, ranks: int) -> Dimensions:
        return Dimensions(self.layout, (), self.shards, ranks)

    def gradient(self, step: int, shard: int) -> Floats:
        random = np.random.default_rng([step, shard])
        if self.is_plain:
            return random.random(self.layout.size, np.float32).astype(self.dtype, copy=False)
        return finite(random, (self.layout.size,), self.dtype)


SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "empty": ((0,),),
    "one": ((1,),),
    "odd": ((31, 3), (0,), (7,)),
    "4 KB": ((1024,),),
    "several blocks": ((3 * BLOCK - 9,), (2,), (16383,)),
}
SMALL = [
    Case(shapes, dtype, shards, present)
    for shapes in SIZES.values()
    for dtype in ("float32", "float64")
    for shards, present in ((6, tuple(range(6))), (5, (0, 1, 2)))
]
TEN_MEGABYTES = Case(((2_500_000,), (123,)), shards=5, present=(0, 1, 2, 4), steps=1)
HUNDRED_MEGABYTES = Case(((25_000_000,),), shards=3, present=(0, 1, 2), steps=1, is_plain=True)

HOSTS = {
    1: (1,),
    2: (1, 1),
    3: (2, 1),
    4: (1, 1, 1, 1),
    5: (2, 3),
    6: (2, 2, 2),
    7: (3, 1, 3),
    8: (4, 4),
}
"""How many ranks each host has, for each number of ranks."""


def places(counts: Sequence[int]) -> list[tuple[int, int]]:
    """The (host, rank there) of every rank."""
    return [(host, rank) for host, count in enumerate(counts) for rank in range(count)]


def held_by(case: Case, counts: Sequence[int]) -> Held:
    """The shards of each host: its ranks have runs of them, as even as it goes."""
    runs = split_evenly(case.shards, sum(counts))
    held: list[set[int]] = [set() for _ in counts]
    for (host, _), run in zip(places(counts), runs, strict=True):
        held[host].update(range(*run))
    return tuple(map(frozenset, held))


Watch = Callable[[str, int], None]
"""Is told of every phase, (name, step), before it begins."""


def nobody(phase: str, step: int) -> None:
    return


def all_reduce(
    case: Case,
    memory: RunMemory,
    counts: Sequence[int],
    host: int,
    rank: int,
    links: Links | None,
    generation: int = 1,
    watch: Watch = nobody,
) -> None:
    """What a worker does in a step, without a model. The first rank of a host notes what it then has."""
    layout = memory.dimensions.layout
    own = split_evenly(case.shards, sum(counts))[places(counts).index((host, rank))]
    held = held_by(case, counts)
    barrier = Barrier(memory, rank, counts[host], generation)
    part = Part(host, len(counts), rank, counts[host])
    between = HostSum(memory, part, links, generation) if len(counts) > 1 else None
    overlaps = between is not None and between.overlaps
    slice_sum = SliceSum(layout, memory.gradients, memory.total, split_evenly(layout.blocks, counts[host])[rank])
    for step in range(case.steps):
        slot = step % RING
        if between is not None and overlaps and rank == 0:
            between.start(step, held, case.present)
        watch("compute", step)
        for shard in range(*own):
            memory.gradients[shard] = case.gradient(step, shard) if shard in case.present else np.nan
            memory.losses[slot, shard] = 1.0 / (shard + step + 1)
        if between is not None and overlaps:
            between.report(step)
        barrier.arrive(4 * step + GRADIENTS)
        barrier.wait(4 * step + GRADIENTS)
        watch("add", step)
        if between is None:
            slice_sum.run(case.present, memory.squares[slot])
        else:
            if not overlaps:
                between.add_own(step, held, case.present)
            watch("exchange", step)
            if rank == 0:
                between.finish() if overlaps else between.run(step, held, case.present)
        watch("summed", step)
        barrier.arrive(4 * step + SUMMED)
        barrier.wait(4 * step + SUMMED)
        if rank == 0:
            memory.coefficients[slot, :3] = words(case, memory.total, memory.squares[slot], memory.losses[slot])
        watch("update", step)
        barrier.arrive(4 * step + UPDATED)
        barrier.wait(4 * step + UPDATED)
    if between is not None:
        between.close()


def words(case: Case, total: Floats, squares: Floats, losses: Floats) -> list[int]:
    """A word for each of the figures, in place of their bytes."""
    return [
        int.from_bytes(hashlib.sha256(content).digest()[:6], "little")
        for content in (bits(total), squares.tobytes(), losses[list(case.present)].tobytes())
    ]


@cache
def expected(case: Case) -> list[list[int]]:
    """The words of each step, as the definition makes them."""
    layout, found = case.layout, []
    segments = [s for block in layout.segments for s in block]
    for step in range(case.steps):
        leaves = [case.gradient(step, s) if s in case.present else None for s in range(case.shards)]
        total = tree_sum(list(leaves), np.empty(layout.size, layout.dtype))
        wide = total.astype(np.float64)
        squares = np.array([np.dot(wide[s.lo : s.hi], wide[s.lo : s.hi]) for s in segments])
        found.append(words(case, total, squares, np.array([1.0 / (s + step + 1) for s in range(case.shards)])))
    return found


def check(case: Case, memory: RunMemory, hosts: int) -> None:
    """Fail unless a host has noted what the definition says."""
    noted = [[int(w) for w in memory.coefficients[step % RING, :3]] for step in range(case.steps)]
    for step, (has, should) in enumerate(zip(noted, expected(case), strict=True)):
        names = [n for n, a, b in zip(("total", "squares", "losses"), has, should, strict=True) if a != b]
        assert not names, f"{case}, step {step}: other {', '.join(names)}"
    if hosts > 1:
        assert memory.header[COMPLETE] == case.steps


def repeated(case: Case, steps: int) -> Case:
    return replace(case, steps=steps)
