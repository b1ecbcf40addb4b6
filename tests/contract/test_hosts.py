"""The sum over shards, whatever carries it: one body, run on one host and on several, over TCP and over MPI.

A host is simulated by a memory of its own.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtrain.comm.layout import BLOCK
from dtrain.comm.links import Kind, Links, Meeting
from dtrain.comm.memory import ARRIVED, COMPLETE, HALT, UPDATED, WAITS, RunMemory
from dtrain.comm.threads import one_blas_thread
from tests.contract.ranks import HALTED, LOST, Child, resident_bytes
from tests.contract.sums import (
    HOSTS,
    HUNDRED_MEGABYTES,
    SMALL,
    TEN_MEGABYTES,
    Case,
    Watch,
    all_reduce,
    check,
    nobody,
    places,
)
from tests.support import ROOT, wait_until
from tests.unit.comm.hosts import in_threads

TOKEN = b"a token"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_blas_thread():
        yield


class Board:
    """Where hosts write the ports by which they can be met, for each generation: it stands for the coordinator."""

    def __init__(self, generations: int, hosts: int) -> None:
        self._map = mmap.mmap(-1, 8 * (generations + 1) * hosts)
        self._ports = np.ndarray((generations + 1, hosts), np.int64, self._map)

    def links(self, generation: int, host: int) -> Links:
        meeting = Meeting("127.0.0.1", TOKEN, generation, host)
        ports = self._ports[generation]
        ports[host] = meeting.address[1]
        wait_until(lambda: ports.all())
        return meeting.links([("127.0.0.1", int(p)) for p in ports], lambda: None)


Connect = Callable[[int, int], Links]


class World:
    """Ranks as processes, on hosts that are connected over TCP; each case is a generation with memories of its own."""

    def __init__(self, counts: Sequence[int], cases: Sequence[Case], other: dict[int, Case] | None = None) -> None:
        self.counts, self.cases, self.other = tuple(counts), list(cases), other or {}
        self.memories = [
            [self.case(i, host).memory(count) for host, count in enumerate(counts)] for i in range(len(cases))
        ]
        self.board = Board(len(cases), len(counts))
        self.children: list[Child] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.end()
        for memories in self.memories:
            for memory in memories:
                memory.close()

    def case(self, index: int, host: int) -> Case:
        """What a host believes the case to be."""
        return self.other.get(host, self.cases[index])

    def start(self, watch: Callable[[int, int], Watch] = lambda host, rank: nobody, wrap: Any = None) -> list[Child]:
        def body(host: int, rank: int) -> None:
            for index in range(len(self.cases)):
                case, generation = self.case(index, host), index + 1
                memory = RunMemory(case.dimensions(self.counts[host]), self.memories[index][host].fd)
                links = self.board.links(generation, host) if rank == 0 and len(self.counts) > 1 else None
                if wrap is not None and links is not None:
                    links = wrap(host, links)
                all_reduce(case, memory, self.counts, host, rank, links, generation, watch(host, rank))
                if links is not None:
                    links.close()

        self.children = [Child.of(lambda at=at: body(*at)) for at in places(self.counts)]
        return self.children

    def check(self) -> None:
        for index, memories in enumerate(self.memories):
            for host, memory in enumerate(memories):
                check(self.case(index, host), memory, len(self.counts))

    def halt(self) -> None:
        for memories in self.memories:
            for memory in memories:
                memory.header[HALT] = 1 << 40


def one_host_threads(counts: Sequence[int], cases: Sequence[Case]) -> None:
    """All ranks are threads of this process."""
    ranks = sum(counts)
    for case in cases:
        memory = case.memory(ranks)
        in_threads(ranks, lambda rank, c=case, m=memory: all_reduce(c, m, (ranks,), 0, rank, None))  # type: ignore[misc]
        check(case, memory, 1)
        memory.close()


def processes(counts: Sequence[int], cases: Sequence[Case]) -> None:
    with World(counts, cases) as world:
        assert [child.join() for child in world.start()] == [0] * sum(counts)
        world.check()


def one_host_processes(counts: Sequence[int], cases: Sequence[Case]) -> None:
    processes((sum(counts),), cases)


def mpiexec(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the ranks of `mpi_ranks.py` under the MPI of this environment."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    assert found, f"{sys.executable} has no mpiexec beside it; install dtrain[mpich]"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPIR_CVAR_POLLS_BEFORE_YIELD": "1"}
    command = [found, "-n", ranks, sys.executable, "-m", "tests.contract.mpi_ranks", *arguments]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=ROOT
    )


def over_mpi(counts: Sequence[int], cases: Sequence[Case]) -> None:
    name = "small" if list(cases) == SMALL else "large"
    done = mpiexec(sum(counts), name, *counts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok") == sum(counts)  # ranks may speak at once


Transport = Callable[[Sequence[int], Sequence[Case]], None]
TRANSPORTS: dict[str, Transport] = {
    "in-process": one_host_threads,
    "processes": one_host_processes,
    "tcp": processes,
    "mpi": over_mpi,
}


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS.keys())
def test_the_sum_has_one_set_of_bits(transport: Transport, world_size: int) -> None:
    transport(HOSTS[world_size], SMALL)


@pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS.keys())
def test_the_sum_of_ten_megabytes(transport: Transport) -> None:
    transport((2, 1), [TEN_MEGABYTES])


def test_the_sum_of_a_hundred_megabytes() -> None:
    processes((1, 1), [HUNDRED_MEGABYTES])


# --- hosts that do not agree ------------------------------------------------------------------------------------------

ODD = Case(((3 * BLOCK + 5,), (7,)), shards=4, present=(0, 1, 2, 3))


@pytest.mark.parametrize(
    "other",
    [
        replace(ODD, shapes=((3 * BLOCK + 25,), (7,))),
        replace(ODD, shapes=((BLOCK,),)),
        replace(ODD, dtype="float64"),
        replace(ODD, shards=5, present=(0, 1, 2, 3, 4)),
    ],
    ids=["16 elements more", "fewer blocks", "float64", "a shard more"],
)
@pytest.mark.parametrize("counts", [(1, 1), (2, 1, 1)])
def test_hosts_that_do_not_agree_on_the_layout_end_with_an_error_that_names_one(
    counts: tuple[int, ...], other: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    with World(counts, [ODD], {len(counts) - 1: other}) as world:
        codes = end_of_halted(world, world.start())
        assert set(codes) == {HALTED, LOST} if sum(counts) > 2 else LOST in codes
        lost = [line for line in capfd.readouterr().err.splitlines() if line.startswith("the line to host ")]
        assert any("bytes where" in line for line in lost), lost
        assert all(m.arrived[0, ARRIVED] < UPDATED for m in world.memories[0])


def end_of_halted(world: World, children: list[Child]) -> list[int]:
    """What the coordinator does: when somebody is lost, or all wait for ever, it halts the generation."""
    memories = world.memories[0]

    def is_stuck() -> bool:
        gone = any(os.waitid(os.P_PID, c.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for c in children)
        return gone or all(m.arrived[0, WAITS] > 100 for m in memories)

    wait_until(is_stuck)
    world.halt()
    before = time.monotonic()
    codes = [child.join() for child in children]
    assert time.monotonic() - before < 20
    return codes


# --- ranks that do not come, or die -----------------------------------------------------------------------------------

DYING = Case(((40 * BLOCK,), (7,)), shards=5, present=(0, 1, 2, 3, 4), steps=3)


@pytest.mark.parametrize("absent", [(0, 0), (1, 0), (1, 1), (2, 0)])
def test_a_rank_that_never_arrives_ends_all_others_in_halted(absent: tuple[int, int]) -> None:
    counts = (1, 2, 1)

    def watch(host: int, rank: int) -> Watch:
        def wait(phase: str, step: int) -> None:
            if (host, rank) == absent and step == 1:
                signal.pause()

        return wait

    with World(counts, [DYING]) as world:
        children = world.start(watch)
        memories = world.memories[0]
        waiting = [m for h, m in enumerate(memories) if h != absent[0]]
        wait_until(lambda: all(m.arrived[0, WAITS] > 5 and m.arrived[0, ARRIVED] >= 5 for m in waiting))
        world.halt()
        at = places(counts).index(absent)
        assert [c.join() for i, c in enumerate(children) if i != at] == [HALTED] * 3
        assert {int(m.header[COMPLETE]) for m in memories} == {1}


class Dies:
    """Lines of a process that is killed when it is about to send its n-th frame of a kind."""

    def __init__(self, links: Any, kind: Kind, after: int) -> None:
        self._links, self._kind, self._left = links, kind, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._links, name)

    def send(self, host: int, kind: Kind, buffer: Any) -> None:
        if kind is self._kind:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        self._links.send(host, kind, buffer)


PHASES = ["compute", "add", "exchange", "summed", "update"]


@pytest.mark.parametrize("dying", [(0, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_that_dies_in_a_phase_leaves_nothing_that_cannot_be_settled(phase: str, dying: tuple[int, int]) -> None:
    def watch(host: int, rank: int) -> Watch:
        def die(name: str, step: int) -> None:
            if (host, rank) == dying and (name, step) == (phase, 1):
                os.kill(os.getpid(), signal.SIGKILL)

        return die

    with World((1, 2, 1), [DYING]) as world:
        check_death(world, world.start(watch), dying)


FRAMES = {Kind.PARTIAL: 6, Kind.TOTAL: 2, Kind.FIGURES: 2, Kind.DONE: 2}
"""About how many frames the sum of gradients sends of each kind in the first step."""


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("after", [0, 1])
def test_a_first_rank_that_dies_between_frames_leaves_nothing_that_cannot_be_settled(kind: Kind, after: int) -> None:
    """It has told one of the others, and not the other one."""
    frames = FRAMES[kind]

    def wrap(host: int, links: Links) -> Any:
        return Dies(links, kind, frames + after) if host == 1 else links

    with World((1, 2, 1), [DYING]) as world:
        check_death(world, world.start(wrap=wrap), (1, 0))


def check_death(world: World, children: list[Child], dying: tuple[int, int]) -> None:
    """All others end; if anybody has gone into an update, every host that is left has the whole sum of that step."""
    at = places(world.counts).index(dying)
    codes = end_of_halted(world, children)
    assert codes[at] == -signal.SIGKILL
    assert {c for i, c in enumerate(codes) if i != at} <= {HALTED, LOST}
    memories = world.memories[0]
    steps = [(int(m.arrived[:n, ARRIVED].min()) + 1) // 4 for m, n in zip(memories, world.counts, strict=True)]
    most = max(steps)
    assert most - min(steps) <= 1
    for host, memory in enumerate(memories):
        others = [r for r in range(world.counts[host]) if (host, r) != dying]
        if others:
            assert memory.header[COMPLETE] >= most
    begun = [m for m in memories if m.arrived[0, ARRIVED] >= 4 * most + 2]
    if begun:
        assert all(m.header[COMPLETE] == most + 1 for m in memories)


# --- endurance --------------------------------------------------------------------------------------------------------


def test_ten_thousand_sums_between_two_hosts_leak_nothing() -> None:
    steps = 10_000
    case = Case(((31,), (2,)), shards=2, present=(0, 1), steps=steps, is_plain=True)

    def watch(host: int, rank: int) -> Watch:
        first: list[int] = []

        def look(phase: str, step: int) -> None:
            if phase == "compute" and step == 1000:
                first[:] = [len(os.listdir("/proc/self/fd")), resident_bytes()]
            if phase == "update" and step == steps - 1:
                assert len(os.listdir("/proc/self/fd")) == first[0]
                assert resident_bytes() < first[1] + 1_000_000

        return look

    with World((1, 1), [case]) as world:
        assert [child.join() for child in world.start(watch)] == [0, 0]
        for memory in world.memories[0]:
            assert memory.header[COMPLETE] == steps
            assert memory.total.tobytes() == world.memories[0][0].total.tobytes()


def test_fifty_generations_leak_nothing() -> None:
    """Every generation has lines of its own."""
    case, generations = Case(((5,),), shards=2, present=(0, 1), steps=1, is_plain=True), 50
    board = Board(generations, 2)
    with World((1, 1), [case]) as world:
        before = len(os.listdir("/proc/self/fd"))

        def body(host: int) -> None:
            for generation in range(1, generations + 1):
                links = board.links(generation, host)
                memory = world.memories[0][host]
                memory.arrived[:] = 0
                all_reduce(case, memory, (1, 1), host, 0, links, generation)
                links.close()

        in_threads(2, body)
        world.check()
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, 20)


# --- MPI --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"),
    [("order", (1, 1)), ("mismatch", (1, 1, 1)), ("halted", (2, 1, 1)), ("repetitions", (1, 1))],
    ids=["frames in order", "another layout", "a rank never arrives", "leaks"],
)
def test_hosts_over_mpi(name: str, counts: tuple[int, ...]) -> None:
    done = mpiexec(sum(counts), name, *counts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok") == sum(counts)
