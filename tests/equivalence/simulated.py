"""Rows of the fingerprint matrix over simulated hosts: real mpirun and a real Ray cluster across network namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.simulate import Hosts, RayCluster
from tests.backends import python_of
from tests.support import command

Run = Callable[[Path, Path], subprocess.CompletedProcess[str]]


def mpirun_on(hosts: Hosts, flavour: str, ranks: int, *arguments: object) -> tuple[list[str], dict[str, str]]:
    """The command line of ``dtrain`` on the ranks of simulated hosts, to be run on the first one, and its variables."""
    python = python_of(flavour)
    if flavour == "openmpi":
        options = ["--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "--map-by", "node"]
        options += ["--mca", "plm_rsh_agent", str(hosts.agent), "--hostfile", str(hosts.hostfile(flavour))]
        variables = dict(os.environ)
    else:
        options = ["-launcher", "ssh", "-launcher-exec", str(hosts.agent), "-f", str(hosts.hostfile(flavour))]
        variables = {**os.environ, "UCX_TLS": "tcp,self"}  # otherwise shared memory, which simulated hosts share
    job = [str(python), *command(*arguments)[1:]]
    return [str(python.parent / "mpiexec"), *options, "-n", str(ranks), *job], variables


def run_on(hosts: Hosts, line: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command on the first host to its end."""
    done: Any = hosts[0].run(line, env=variables, capture_output=True, text=True, timeout=200)
    return done


def rows_of_hosts(stack: ExitStack) -> list[tuple[str, int, Run]]:
    """(backend, workers, what runs a job) over 2 and 3 hosts."""
    found: list[tuple[str, int, Run]] = []
    hosts = {count: stack.enter_context(Hosts(count)) for count in (2, 3)}
    for flavour in ("mpich", "openmpi"):
        for count, ranks in ((2, 2), (2, 4), (3, 3)):

            def run_ranks(
                job: Path, run: Path, f: str = flavour, n: int = ranks, on: Hosts = hosts[count]
            ) -> subprocess.CompletedProcess[str]:
                return run_on(on, *mpirun_on(on, f, n, "run", job, "--run-dir", run, "-q", "--json"))

            found.append((f"{flavour}, {count} hosts", ranks, run_ranks))
    cluster = stack.enter_context(RayCluster(hosts[3], cpus=2))
    for workers in (3, 6):

        def run_ray(job: Path, run: Path, n: int = workers) -> subprocess.CompletedProcess[str]:
            line = [*command("run", job, "--run-dir", run, "-q", "--json", "-w", n), "--backend", "ray"]
            variables = {**os.environ, **cluster.environment}
            return run_on(hosts[3], [*line, "--address", cluster.address], variables)

        found.append(("ray, 3 hosts", workers, run_ray))
    return found
