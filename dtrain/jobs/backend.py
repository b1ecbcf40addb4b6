"""Where the workers of a run are: in this process, on the cores of this machine, or on the ranks of mpirun."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Protocol

from dtrain.errors import InputError
from dtrain.jobs.in_process import InProcessLauncher
from dtrain.jobs.local import LocalLauncher
from dtrain.jobs.mpi import Ranks
from dtrain.jobs.payload import spec_payload
from dtrain.jobs.spec import JobSpec
from dtrain.jobs.zygote import Zygote
from dtrain.train.launcher import Launcher
from dtrain.train.program import Program
from dtrain.train.service import max_workers


class Backend(Protocol):
    """Has a number of workers, and makes what starts them."""

    workers: int

    def launcher(self, spec: JobSpec, program: Program) -> Launcher:
        """Return what starts the workers of this job."""

    def __str__(self) -> str:
        """Say where the workers are, for the line that tells of the start."""


class LocalBackend:
    """Processes of this machine, forked from ``zygote``; none, with ``workers`` 0, means a thread of this process."""

    def __init__(self, workers: int | str, zygote: Zygote | None = None) -> None:
        self.workers, self._zygote = worker_count(workers), zygote

    def launcher(self, spec: JobSpec, program: Program) -> Launcher:
        return make_launcher(program, self.workers, self._zygote, lambda rows: spec_payload(spec, rows))

    def __str__(self) -> str:
        if self.workers == 0:
            return "in this process"
        return "on 1 worker" if self.workers == 1 else f"on {self.workers} workers"


class MpiBackend:
    """The ranks that mpirun has started."""

    def __init__(self, ranks: Ranks) -> None:
        self.workers, self._ranks = ranks.size, ranks
        self._launcher: Launcher | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the other ranks know that they are workers; until then they wait for a word of rank 0."""
        return self._launcher is not None

    @property
    def has_lost(self) -> bool:
        """Whether a rank is gone."""
        return self._launcher is not None and self._launcher.has_lost

    def launcher(self, spec: JobSpec, program: Program) -> Launcher:
        self._launcher = self._ranks.launcher(spec, program)
        return self._launcher

    def __str__(self) -> str:
        from dtrain.comm.mpi import library

        ranks = "1 MPI rank" if self.workers == 1 else f"{self.workers} MPI ranks"
        hosts = "" if self._ranks.hosts == 1 else f" of {self._ranks.hosts} hosts"
        return f"on {ranks}{hosts} ({library()})"


def worker_count(workers: int | str) -> int:
    """The number of workers that a spec or ``--workers`` asks for; auto is one per core that this process may use."""
    if workers != "auto":
        return int(workers)
    if not is_ordered_machine():
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_ordered_machine() -> bool:
    """Whether stores become visible in the order in which they are made, as the barrier in shared memory needs."""
    return platform.machine().lower() in ("x86_64", "amd64")


def make_launcher(program: Program, workers: int, zygote: Zygote | None, payload: Callable[[int], int]) -> Launcher:
    """The launcher for this many local workers; none means a thread of this process."""
    if workers and not is_ordered_machine():
        raise InputError(
            f"workers: processes need an x86-64 processor, whose stores stay in order; this is {platform.machine()}. "
            "Use --workers 0"
        )
    if workers == 0:
        if zygote is not None:
            zygote.close()
        return InProcessLauncher(program)
    return LocalLauncher(payload(max_workers(workers)), zygote)
