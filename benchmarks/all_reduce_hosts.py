"""All-reduce between two hosts: dtrain over MPI and over TCP against MPI_Allreduce of the same MPI and against gloo.

    python benchmarks/all_reduce_hosts.py                       # two simulated hosts, MPICH; needs root
    python benchmarks/all_reduce_hosts.py --bandwidth 1gbit

One rank a host holds one gradient; afterwards both have the sum. dtrain's figures include the sums of squares for the
norm and the word that every host has everything. All four run in turn in the same two processes, so that they share
what disturbs them; a figure is the median over the rounds of the slower rank's time. Also printed: the bytes that
dtrain sent from a host, against the 2(H-1)/H of the buffer that is the least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 25 << 20)  # float32 elements: 4 KB to 100 MB
NAMES = ("dtrain over MPI", "dtrain over TCP", "MPI_Allreduce", "gloo")


def label(elements: int) -> str:
    size = 4 * elements
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def rank_main(address: str, seconds: float) -> None:
    """One rank: print the table on rank 0."""
    import numpy as np
    import torch.distributed as dist
    from mpi4py import MPI
    from torch import from_numpy

    from dtrain.comm.exchange import HostSum, Part
    from dtrain.comm.host import host_addresses
    from dtrain.comm.layout import Layout
    from dtrain.comm.links import Meeting
    from dtrain.comm.memory import Dimensions, RunMemory
    from dtrain.comm.mpi import MpiLinks, World, library

    world = World()
    rank = world.rank
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "eth0")
    dist.init_process_group("gloo", init_method=f"tcp://{address}:29511", rank=rank, world_size=world.size)
    rows = []
    for generation, elements in enumerate(SIZES, 1):
        layout = Layout(("p",), ((elements,),), np.dtype(np.float32))
        meeting = Meeting(host_addresses()[0], b"benchmark", generation, rank)
        own = json.dumps(list(meeting.address)).ljust(64).encode()
        addresses = [tuple(json.loads(a)) for a in world.gather(own)]
        tcp = meeting.links(addresses, lambda: None)
        mpi = MpiLinks(world, generation, list(range(world.size)), rank)
        held = tuple(frozenset({r}) for r in range(world.size))
        present = tuple(range(world.size))

        def exchange(links, layout=layout, held=held, present=present, generation=generation) -> Callable[[int], None]:
            memory = RunMemory(Dimensions(layout, (), world.size, 1))
            memory.gradients[rank] = 1e-30
            between = HostSum(memory, Part(rank, world.size, 0, 1), links, generation, overlaps=False)

            def run(number: int) -> None:
                between.add_own(number, held, present)
                between.run(number, held, present)

            return run

        buffer = np.zeros(elements, np.float32)
        tensor = from_numpy(np.zeros(elements, np.float32))
        bodies = {
            NAMES[0]: exchange(mpi),
            NAMES[1]: exchange(tcp),
            NAMES[2]: lambda step, b=buffer: world.comm.Allreduce(MPI.IN_PLACE, b),
            NAMES[3]: lambda step, t=tensor: dist.all_reduce(t),
        }
        times: dict[str, list[float]] = {name: [] for name in NAMES}
        began, step = time.monotonic(), 0
        while True:
            for name, body in bodies.items():
                world.comm.Barrier()
                start = time.perf_counter()
                body(step)
                times[name].append(time.perf_counter() - start)
            step += 1
            if world.broadcast(b"x" if time.monotonic() - began > seconds and step >= 5 else b"") == b"x":
                break
        slower = {}
        for name in NAMES:
            both = np.array(times[name][1:])
            most = np.empty_like(both)
            world.comm.Allreduce(both, most, op=MPI.MAX)
            slower[name] = statistics.median(most.tolist())
        least = 2 * (world.size - 1) / world.size * layout.nbytes
        rows.append((elements, slower, tcp.bytes_sent / step / least, step))
        tcp.close()
        mpi.close()
    if rank == 0:
        print(f"Two hosts, one rank each, {library()}; median µs of the slower rank; bytes sent against 2(H-1)/H\n")
        print(
            "| size | "
            + " | ".join(NAMES)
            + " | MPI: dtrain / MPI_Allreduce | gloo / dtrain over TCP | bytes | rounds |"
        )
        print("|---|" + "---:|" * (len(NAMES) + 4))
        for elements, slower, ratio, rounds in rows:
            cells = " | ".join(f"{slower[n] * 1e6:,.0f}" for n in NAMES)
            print(
                f"| {label(elements)} | {cells} | {slower[NAMES[0]] / slower[NAMES[2]]:.2f} | "
                f"{slower[NAMES[3]] / slower[NAMES[1]]:.2f} | {ratio:.3f} | {rounds} |"
            )
        sys.stdout.flush()
    world.comm.Barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="All-reduce between two simulated hosts.")
    parser.add_argument("--bandwidth", help="of each host's link, as in 1gbit; unlimited unless given")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each size")
    parser.add_argument("--rank", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_main(options.rank, options.seconds)
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from cluster.simulate import Hosts

    with Hosts(2, **({"bandwidth": options.bandwidth} if options.bandwidth else {})) as hosts:
        mpiexec = Path(sys.executable).parent / "mpiexec"
        line = [mpiexec, "-launcher", "ssh", "-launcher-exec", hosts.agent, "-f", hosts.hostfile("mpich"), "-n", 2]
        line += [sys.executable, __file__, "--rank", hosts[0].address, "--seconds", options.seconds]
        variables = {**os.environ, "UCX_TLS": "tcp,self", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        sys.exit(hosts[0].run(line, env=variables).returncode)


if __name__ == "__main__":
    main()
