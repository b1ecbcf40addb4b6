"""Several hosts in one process: a memory each, a thread for each rank, and lines over loopback between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dtrain.comm.barrier import Barrier
from dtrain.comm.exchange import Held, HostSum, Part
from dtrain.comm.layout import Layout
from dtrain.comm.links import Links, Meeting, TcpLinks
from dtrain.comm.memory import ARRIVED, COMPLETE, GRADIENTS, HALT, RING, SUMMED, UPDATED, Dimensions, RunMemory
from dtrain.comm.reduce import SliceSum
from dtrain.comm.threads import one_blas_thread
from tests.unit.comm.floats import Floats

TOKEN = b"a token"
DEADLINE_SECONDS = 60.0
GENERATION = 3


@dataclass(frozen=True)
class Placement:
    """The hosts, how many ranks each has, and which shards' gradients it holds."""

    layout: Layout
    held: Held
    ranks: tuple[int, ...]
    shards: int

    @property
    def hosts(self) -> int:
        return len(self.held)

    def memory(self, host: int) -> RunMemory:
        return RunMemory(Dimensions(self.layout, (), self.shards, self.ranks[host]))


@dataclass
class Sums:
    """What a host has after a step."""

    total: Floats
    squares: Floats
    losses: Floats
    shard_squares: Floats
    complete: int


@dataclass
class Result:
    """What every host had after every step, and the bytes that each has sent."""

    sums: list[list[Sums]]
    bytes_sent: list[int] = field(default_factory=list)


def layout_of(shapes: tuple[tuple[int, ...], ...], dtype: type = np.float32) -> Layout:
    return Layout(tuple(f"p{i}" for i in range(len(shapes))), shapes, np.dtype(dtype))


def one_host_sum(layout: Layout, gradients: Floats, present: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Total and squares as a single host makes them."""
    total = np.empty(layout.size, layout.dtype)
    squares = np.empty(layout.segment_starts[-1], np.float64)
    with np.errstate(all="ignore"), one_blas_thread():
        SliceSum(layout, gradients, total, (0, layout.blocks)).run(present, squares)
    return total, squares


def meet(hosts: int, generation: int = GENERATION) -> list[TcpLinks]:
    """Lines between ``hosts`` ends in this process."""
    meetings = [Meeting("127.0.0.1", TOKEN, generation, host) for host in range(hosts)]
    addresses = [m.address for m in meetings]
    found: list[TcpLinks | None] = [None] * hosts

    def connect(host: int) -> None:
        found[host] = meetings[host].links(addresses, lambda: None)

    in_threads(hosts, connect)
    return [links for links in found if links is not None]


def in_threads(count: int, body: Callable[[int], None], failed: Callable[[], None] = lambda: None) -> None:
    """Run ``body(index)`` in as many threads; raise the first error, after ``failed`` was called so that all end."""
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            body(index)
        except BaseException as error:
            errors.append(error)
            failed()

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert not any(t.is_alive() for t in threads), "a rank hangs"
    if errors:
        raise errors[0]


def take_step(
    memory: RunMemory,
    between: HostSum,
    part: Part,
    barrier: Barrier,
    step: int,
    held: Held,
    present: tuple[int, ...],
    compute: Callable[[slice], None],
) -> None:
    """One step as a rank of a host makes it; ``compute`` makes the rank's gradients in these elements, and its losses.

    With overlap they are made bucket by bucket, while those before are on their way.
    """
    layout = memory.dimensions.layout
    if between.overlaps and part.rank == 0:
        between.start(step, held, present)
    if between.overlaps:
        for count, (_, (lo, hi)) in enumerate(between.buckets[:-1], 1):
            compute(slice(layout.block(lo).start, layout.block(hi - 1).stop))
            between.report(step, count)
    compute(slice(0, layout.size))
    if between.overlaps:
        between.report(step)
    barrier.arrive(4 * step + GRADIENTS)
    barrier.wait(4 * step + GRADIENTS)
    if not between.overlaps:
        between.add_own(step, held, present)
    if part.rank == 0:
        between.finish() if between.overlaps else between.run(step, held, present)
    barrier.arrive(4 * step + SUMMED)
    barrier.wait(4 * step + SUMMED)


def exchange(
    placement: Placement,
    gradients: Sequence[Floats],
    losses: Sequence[Floats],
    presents: Sequence[tuple[int, ...]],
    overlaps: bool = False,
) -> Result:
    """Run a step for each of ``gradients`` on all hosts. What no host may read is not a number."""
    hosts = placement.hosts
    memories = [placement.memory(host) for host in range(hosts)]
    for memory in memories:
        memory.arrived[:, ARRIVED] = -1  # so that the barrier before the first step is one
    lines: list[Links] = list(meet(hosts))
    result = Result([[] for _ in range(hosts)])
    every = [(host, rank) for host in range(hosts) for rank in range(placement.ranks[host])]

    def halt() -> None:
        for memory in memories:
            memory.header[HALT] = GENERATION

    def body(index: int) -> None:
        host, rank = every[index]
        memory, ranks = memories[host], placement.ranks[host]
        part = Part(host, hosts, rank, ranks)
        between = HostSum(memory, part, lines[host] if rank == 0 else None, GENERATION, overlaps)
        barrier = Barrier(memory, rank, ranks, GENERATION)
        own = sorted(placement.held[host])[rank::ranks]
        memory.gradients[own] = np.nan
        for step, present in enumerate(presents):
            slot = step % RING
            if rank == 0:
                memory.losses[slot], memory.squares[slot], memory.total[...] = np.nan, np.nan, np.nan
                memory.shard_squares[slot] = np.nan
            barrier.arrive(4 * step)
            barrier.wait(4 * step)

            def compute(where: slice, step: int = step, slot: int = slot, present: tuple[int, ...] = present) -> None:
                for shard in own:
                    if shard in present:
                        memory.gradients[shard, where] = gradients[step][shard, where]
                        if where.start == 0:
                            memory.losses[slot, shard] = losses[step][shard]
                            memory.shard_squares[slot, shard] = -losses[step][shard]

            with np.errstate(all="ignore"):
                take_step(memory, between, part, barrier, step, placement.held, present, compute)
            memory.gradients[own] = np.nan  # nobody reads them any more
            if rank == 0:
                result.sums[host].append(
                    Sums(
                        memory.total.copy(),
                        memory.squares[slot].copy(),
                        memory.losses[slot].copy(),
                        memory.shard_squares[slot].copy(),
                        int(memory.header[COMPLETE]),
                    )
                )
            barrier.arrive(4 * step + UPDATED)
            barrier.wait(4 * step + UPDATED)
        between.close()

    try:
        with one_blas_thread():
            in_threads(len(every), body, halt)
        result.bytes_sent = [links.bytes_sent for links in lines]  # type: ignore[attr-defined]
    finally:
        for links in lines:
            links.close()
        for memory in memories:
            memory.close()
    return result
