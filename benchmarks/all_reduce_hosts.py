"""All-reduce under mpirun: every transport of dtrain against MPI_Allreduce of the same MPI and against gloo.

    python benchmarks/all_reduce_hosts.py                       # two simulated hosts, MPICH; needs root
    python benchmarks/all_reduce_hosts.py --bandwidth 1gbit
    python benchmarks/all_reduce_hosts.py --one-host            # two ranks of this machine, with shared memory

Each of two ranks holds one gradient; afterwards both have the sum. dtrain's figures include the sums of squares for the
norm (unless ``--without-norm``) and, between hosts, the word that every host has everything, without which no host may
begin an update; in brackets stands the time until the host itself has the sum. All contestants run in turn in the same
two processes, each RUNS times in a row (once above 4 MB), so that they share what disturbs them; a figure is the median
of the slower rank's time. Also printed: the bytes that dtrain sent from a host over TCP, against the 2(H-1)/H of the
buffer that is the least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 25 << 20)  # float32 elements: 4 KB to 100 MB
RUNS = 10
SHARED, MPI_LINKS, TCP_LINKS = "dtrain in shared memory", "dtrain over MPI", "dtrain over TCP"
ALLREDUCE, GLOO = "MPI_Allreduce", "gloo"


@dataclass
class Contestant:
    """``call(step)`` makes one sum; ``whole_at`` is when this host had it, if that is not when the call ends."""

    call: Callable[[int], object]
    whole_at: Callable[[], float] | None = None
    seconds: list[float] = field(default_factory=list)
    seconds_whole: list[float] = field(default_factory=list)


class NotedLinks:
    """Lines that note when this host has the sum: then it tells the others."""

    def __init__(self, links: Any, last: object) -> None:
        self._send, self._last, self.whole_at = links.send, last, 0.0
        self.begin, self.receive, self.progress, self.is_sent = (
            links.begin,
            links.receive,
            links.progress,
            links.is_sent,
        )

    def send(self, host: int, kind: object, buffer: Any) -> None:
        if kind is self._last:
            self.whole_at = time.perf_counter()
        self._send(host, kind, buffer)


def between_hosts(links: Any, layout: Any, rank: int, generation: int) -> Contestant:
    """dtrain's sum between hosts over ``links``."""
    from dtrain.comm.exchange import HostSum, Part
    from dtrain.comm.links import Kind
    from dtrain.comm.memory import Dimensions, RunMemory

    memory = RunMemory(Dimensions(layout, (), 2, 1))
    memory.gradients[rank] = 1e-30
    noted = NotedLinks(links, Kind.DONE)
    between = HostSum(memory, Part(rank, 2, 0, 1), noted, generation, overlaps=False)
    held, present = (frozenset({0}), frozenset({1})), (0, 1)

    def call(step: int) -> None:
        between.add_own(step, held, present)
        between.run(step, held, present)

    return Contestant(call, lambda: noted.whole_at)


def in_shared_memory(world: Any, layout: Any, generation: int, has_norm: bool) -> Contestant:
    """dtrain's sum on one host: each rank adds its half of what both have written."""
    from dtrain.comm.barrier import Barrier
    from dtrain.comm.layout import split_evenly
    from dtrain.comm.memory import GRADIENTS, SUMMED, Dimensions, RunMemory, open_memory
    from dtrain.comm.reduce import SliceSum

    dimensions = Dimensions(layout, (), 2, 2)
    memory = RunMemory(dimensions) if world.rank == 0 else None
    at = json.loads(world.broadcast(json.dumps([os.getpid(), memory.fd if memory else 0]).encode()))
    memory = memory or RunMemory(dimensions, open_memory(*at))
    memory.gradients[world.rank] = 1e-30
    barrier = Barrier(memory, world.rank, 2, generation, lambda: None)
    half = split_evenly(layout.blocks, 2)[world.rank]
    slices = SliceSum(layout, memory.gradients, memory.total, half)

    def call(step: int) -> None:
        barrier.arrive(4 * step + GRADIENTS)
        barrier.wait(4 * step + GRADIENTS)
        slices.run((0, 1), memory.squares[0] if has_norm else None)
        barrier.arrive(4 * step + SUMMED)
        barrier.wait(4 * step + SUMMED)

    return Contestant(call)


def rank_main(options: argparse.Namespace) -> None:
    """One rank: print the table on rank 0."""
    import numpy as np
    import torch.distributed as dist
    from mpi4py import MPI
    from torch import from_numpy

    from dtrain.comm.host import host_addresses
    from dtrain.comm.layout import Layout
    from dtrain.comm.links import Meeting
    from dtrain.comm.mpi import MpiLinks, World, library
    from dtrain.comm.reduce import Squares

    if options.without_norm:
        Squares.run = lambda self, block, squares: None  # type: ignore[method-assign]
    world = World()
    rank = world.rank
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if options.one_host else "eth0")
    dist.init_process_group("gloo", init_method=f"tcp://{options.rank}:29511", rank=rank, world_size=world.size)
    own_address = "127.0.0.1" if options.one_host else host_addresses()[0]
    rows = []
    for generation, elements in enumerate(SIZES, 1):
        layout = Layout(("p",), ((elements,),), np.dtype(np.float32))
        meeting = Meeting(own_address, b"benchmark", generation, rank)
        own = json.dumps(list(meeting.address)).ljust(64).encode()
        tcp = meeting.links([tuple(json.loads(a)) for a in world.gather(own)], lambda: None)
        mpi = MpiLinks(world, generation, [0, 1], rank)
        buffer, tensor = np.zeros(elements, np.float32), from_numpy(np.zeros(elements, np.float32))
        contestants = {
            MPI_LINKS: between_hosts(mpi, layout, rank, generation),
            TCP_LINKS: between_hosts(tcp, layout, rank, generation),
            ALLREDUCE: Contestant(lambda step, b=buffer: world.comm.Allreduce(MPI.IN_PLACE, b)),
            GLOO: Contestant(lambda step, t=tensor: dist.all_reduce(t)),
        }
        if options.one_host:
            shared = in_shared_memory(world, layout, generation, not options.without_norm)
            contestants = {SHARED: shared, **contestants}
        steps = measure(world, contestants, options.seconds, RUNS if layout.nbytes <= 4 << 20 else 1)
        rows.append((layout.nbytes, slower(world, contestants), tcp.bytes_sent / steps / layout.nbytes, steps))
        tcp.close()
        mpi.close()
    if rank == 0:
        print(describe(options, library()))
        print(table(rows))
        sys.stdout.flush()
    world.comm.Barrier()
    dist.destroy_process_group()


def measure(world: Any, contestants: dict[str, Contestant], seconds: float, runs: int) -> int:
    """Let all run in turn for so long; return how many steps each has made."""
    began, step = time.monotonic(), 0
    while True:
        now = runs if step > 1 else 1
        for contestant in contestants.values():
            for number in range(step, step + now):
                world.comm.Barrier()
                start = time.perf_counter()
                contestant.call(number)
                contestant.seconds.append(time.perf_counter() - start)
                if contestant.whole_at:
                    contestant.seconds_whole.append(contestant.whole_at() - start)
        step += now
        if world.broadcast(b"x" if time.monotonic() - began > seconds and step >= 5 else b"") == b"x":
            return step


def slower(world: Any, contestants: dict[str, Contestant]) -> dict[str, tuple[float, float | None]]:
    """By contestant, the median of the slower rank's seconds for the call and until it had the sum."""
    import numpy as np
    from mpi4py import MPI

    def median(seconds: list[float]) -> float:
        both = np.array(seconds[1:])
        most = np.empty_like(both)
        world.comm.Allreduce(both, most, op=MPI.MAX)
        return statistics.median(most.tolist())

    return {
        name: (median(c.seconds), median(c.seconds_whole) if c.seconds_whole else None)
        for name, c in contestants.items()
    }


def describe(options: argparse.Namespace, library: str) -> str:
    """What the table is of."""
    where = "Two ranks of one host" if options.one_host else "Two hosts, one rank each"
    norm = "without the norm" if options.without_norm else "with the norm"
    return f"{where}, {library}, {norm}; median µs of the slower rank, in brackets until it has the sum\n"


def table(rows: list[tuple[int, dict[str, tuple[float, float | None]], float, int]]) -> str:
    """The table in Markdown; ratios are above 1 where dtrain is slower than MPI_Allreduce and faster than gloo."""
    names = list(rows[0][1])
    best = names[0]  # what a run uses here: shared memory on a host, MPI between them
    ratios = [f"{best} / {ALLREDUCE}"] if best == MPI_LINKS else [f"{ALLREDUCE} / {best}", f"{GLOO} / {best}"]
    heads = ["size", *names, *ratios, f"{GLOO} / {TCP_LINKS}", "bytes", "rounds"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for nbytes, seconds, bytes_ratio, steps in rows:
        cells = [f"{nbytes >> 20} MB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KB"]
        for total, whole in seconds.values():
            cells.append(f"{total * 1e6:,.0f}" + (f" ({whole * 1e6:,.0f})" if whole is not None else ""))
        cells += [_ratio(seconds, ratio) for ratio in [*ratios, f"{GLOO} / {TCP_LINKS}"]]
        lines.append("| " + " | ".join([*cells, f"{bytes_ratio:.3f}", str(steps)]) + " |")
    return "\n".join(lines)


def _ratio(seconds: dict[str, tuple[float, float | None]], name: str) -> str:
    over, under = (seconds[part] for part in name.split(" / "))
    text = f"{over[0] / under[0]:.2f}"
    return text if over[1] is None or under[1] is not None else f"{text} ({over[1] / under[0]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="All-reduce under mpirun, on one host or between two simulated ones.")
    parser.add_argument("--one-host", action="store_true", help="two ranks of this machine")
    parser.add_argument("--bandwidth", help="of each simulated host's link, as in 1gbit; unlimited unless given")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each size")
    parser.add_argument("--without-norm", action="store_true", help="leave out the sums of squares")
    parser.add_argument("--rank", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_main(options)
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    mpiexec: list[Any] = [Path(sys.executable).parent / "mpiexec", "-n", 2]
    rank: list[Any] = [sys.executable, __file__, "--seconds", options.seconds]
    rank += ["--one-host"] * options.one_host + ["--without-norm"] * options.without_norm
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if options.one_host:
        line = [*map(str, [*mpiexec, *rank]), "--rank", "127.0.0.1"]
        os.execvpe(line[0], line, variables)
    from cluster.simulate import Hosts

    with Hosts(2, **({"bandwidth": options.bandwidth} if options.bandwidth else {})) as hosts:
        launcher = ["-launcher", "ssh", "-launcher-exec", hosts.agent, "-f", hosts.hostfile("mpich")]
        line = [*mpiexec, *launcher, *rank, "--rank", hosts[0].address]
        sys.exit(hosts[0].run(line, env={**variables, "UCX_TLS": "tcp,self"}).returncode)


if __name__ == "__main__":
    main()
