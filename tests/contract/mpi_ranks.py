"""What `test_hosts.py` runs under mpirun: ``python -m tests.contract.mpi_ranks NAME COUNT...``, a count for each host.

Every rank says "ok", or ends all with its error.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from dtrain.comm.barrier import Halted
from dtrain.comm.layout import BLOCK
from dtrain.comm.links import Kind, LinkLost
from dtrain.comm.memory import COMPLETE, HALT, WAITS, RunMemory, open_memory
from dtrain.comm.mpi import MpiLinks, World
from dtrain.comm.threads import one_blas_thread
from tests.contract.ranks import resident_bytes
from tests.contract.sums import SMALL, TEN_MEGABYTES, Case, all_reduce, check, places

GENERATIONS = iter(range(1, 1 << 20))


class Ranks:
    """The hosts that the ranks of this mpirun stand for. Every rank makes every call."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.world = World()
        self.counts = tuple(counts)
        self.host, self.rank = places(counts)[self.world.rank]
        self.leaders = [places(counts).index((host, 0)) for host in range(len(counts))]

    def memories(self, cases: Sequence[Case]) -> list[RunMemory]:
        """The memory of every host, made by its first rank; a host's own comes to this rank by number."""
        made = cases[self.host].memory(self.counts[self.host]) if self.rank == 0 else None
        told = struct.pack("qq", os.getpid(), -1 if made is None else made.fd)
        where = [struct.unpack("qq", t) for t in self.world.gather(told)]
        found = [
            RunMemory(cases[host].dimensions(self.counts[host]), open_memory(*where[leader]))
            for host, leader in enumerate(self.leaders)
        ]
        self.world.gather(b"opened")
        if made is not None:
            made.close()
        return found

    def links(self, generation: int) -> MpiLinks | None:
        return MpiLinks(self.world, generation, self.leaders, self.host) if self.rank == 0 else None

    def sum(self, case: Case, memory: RunMemory, generation: int, **options: Any) -> None:
        links = self.links(generation) if len(self.counts) > 1 else None
        try:
            all_reduce(case, memory, self.counts, self.host, self.rank, links, generation, **options)
        finally:
            if links is not None:
                links.close()

    def run(self, case: Case) -> None:
        """One case from beginning to end."""
        memories = self.memories([case] * len(self.counts))
        self.sum(case, memories[self.host], next(GENERATIONS))
        if self.rank == 0:
            check(case, memories[self.host], len(self.counts))
        for memory in memories:
            memory.close()


def small(ranks: Ranks) -> None:
    for case in SMALL:
        ranks.run(case)


def large(ranks: Ranks) -> None:
    ranks.run(TEN_MEGABYTES)


def order(ranks: Ranks) -> None:
    """A short frame that is complete before a long one that was sent first is handed out after it."""

    class Comm:
        def Irecv(self, buffer: Any, source: int, tag: int) -> Any:
            requests.append(MPI.Grequest.Start(None, None, None))
            return requests[-1]

    requests: list[Any] = []
    links = MpiLinks(ranks.world, 1, [0, 1], 0)
    links._comm = Comm()
    empty = np.empty(0, np.uint8)
    for kind in (Kind.PARTIAL, Kind.PARTIAL, Kind.TOTAL, Kind.PARTIAL):
        links.receive(1, kind, empty)
    requests[1].Complete()
    assert links.progress(0, 0.01) == []
    requests[2].Complete()
    assert links.progress(0, 1.0) == [(1, Kind.TOTAL)]
    requests[0].Complete()
    assert links.progress(0, 1.0) == [(1, Kind.PARTIAL)] * 2
    requests[3].Complete()
    assert links.progress(0, 1.0) == [(1, Kind.PARTIAL)]
    assert links.progress(0, 0.0) == []


def mismatch(ranks: Ranks) -> None:
    """The last host has another layout: somebody names a host, and nobody hangs."""
    good = Case(((3 * BLOCK + 5,), (7,)), shards=4, present=(0, 1, 2, 3))
    for shapes in [((3 * BLOCK + 25,), (7,)), ((3 * BLOCK - 15,), (7,)), ((BLOCK,),)]:
        other = Case(shapes, shards=4, present=(0, 1, 2, 3))
        cases = [good] * (len(ranks.counts) - 1) + [other]
        memories, generation = ranks.memories(cases), next(GENERATIONS)
        reason, named = b"", -1
        try:
            ranks.sum(cases[ranks.host], memories[ranks.host], generation)
        except Halted:
            pass
        except LinkLost as lost:
            named, reason = lost.host, str(lost).encode()
            for memory in memories:
                memory.header[HALT] = generation
        assert named != ranks.host
        said = [r.strip(b"\0") for r in ranks.world.gather(reason[:200].ljust(200, b"\0"))]
        assert any(r.startswith(b"the line to host ") for r in said), said
        for memory in memories:
            memory.close()
        ranks.run(good)  # what is left of the generation is in nobody's way


def halted(ranks: Ranks) -> None:
    """Host 1 never comes to a step; the others end in Halted, and a new generation makes the sum."""
    case = Case(((40 * BLOCK + 5,), (7,)), shards=4, present=(0, 1, 2, 3), steps=2)
    memories, generation = ranks.memories([case] * len(ranks.counts)), next(GENERATIONS)

    class NeverCame(Exception):
        pass

    def watch(phase: str, step: int) -> None:
        if ranks.host == 1 and (phase, step) == ("exchange", 1):
            deadline = time.monotonic() + 30
            waiting = [m for h, m in enumerate(memories) if h != 1]
            while any(m.arrived[0, WAITS] < 20 for m in waiting) and time.monotonic() < deadline:
                time.sleep(0.001)
            for memory in memories:
                memory.header[HALT] = generation
            raise NeverCame

    try:
        ranks.sum(case, memories[ranks.host], generation, watch=watch)
        raise AssertionError("it was not halted")
    except Halted:
        assert ranks.host != 1
    except NeverCame:
        assert ranks.host == 1
    assert memories[ranks.host].header[COMPLETE] == 1
    ranks.world.gather(b"over")
    for memory in memories:
        memory.close()
    for _ in range(3):
        ranks.run(case)


def repetitions(ranks: Ranks) -> None:
    steps = 3_000
    case = Case(((31,), (2,)), shards=2, present=(0, 1), steps=steps, is_plain=True)
    memories = ranks.memories([case] * 2)
    first: list[int] = []

    def watch(phase: str, step: int) -> None:
        if phase == "compute" and step == 1000:
            first[:] = [len(os.listdir("/proc/self/fd")), resident_bytes()]
        if phase == "update" and step == steps - 1:
            assert len(os.listdir("/proc/self/fd")) == first[0]
            assert resident_bytes() < first[1] + 1_000_000

    ranks.sum(case, memories[ranks.host], next(GENERATIONS), watch=watch)
    assert memories[ranks.host].header[COMPLETE] == steps


def main() -> None:
    ranks = Ranks([int(c) for c in sys.argv[2:]])
    try:
        run = {
            "small": small,
            "large": large,
            "order": order,
            "mismatch": mismatch,
            "halted": halted,
            "repetitions": repetitions,
        }[sys.argv[1]]
        with one_blas_thread():
            run(ranks)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        ranks.world.abort(1)
    ranks.world.gather(b"done")
    print("ok", flush=True)


if __name__ == "__main__":
    main()
