"""From the command line to the backend: which one is meant, and what the ranks that are not the first one do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.backend import Backend, LocalBackend, MpiBackend
from dtrain.jobs.mpi import Ranks, launched_ranks
from dtrain.jobs.spec import JobSpec
from dtrain.jobs.zygote import Zygote

BACKENDS = ("auto", "local", "mpi", "ray")
Choose = Callable[[JobSpec], Backend]


@contextmanager
def started(zygote: Zygote | None, backend: str, workers: int | str | None) -> Iterator[Choose | None]:
    """Yield what chooses the backend for a job; None on an MPI rank that has been a worker and is done.

    ``workers`` overrides the job's. An error in the body, on rank 0, ends the other ranks too. Raises InputError.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    ranks = launched_ranks()
    if backend == "local" and (ranks or 1) > 1:
        raise InputError(f"--backend: local runs in one process, but mpirun has started {ranks}; leave out one of them")
    if backend == "mpi" or (backend == "auto" and ranks is not None):
        with _mpi(workers) as chosen:
            yield chosen
        return
    if backend == "ray":
        raise LookupError("Ray runs a job elsewhere: see ray_cluster.py")
    yield lambda spec: LocalBackend(spec.workers if workers is None else workers, zygote)


@contextmanager
def _mpi(workers: int | str | None) -> Iterator[Choose | None]:
    ranks = Ranks()
    if not ranks.is_first:
        own = ranks.work()
        yield None
        if own:
            raise SystemExit(own)
        return
    if workers not in (None, "auto", ranks.size):
        ranks.tell({"exit_code": InputError.exit_code})
        raise InputError(f"--workers: under mpirun there are as many workers as ranks: {ranks.size}; leave it out")
    backend = MpiBackend(ranks)
    code: Any = 0
    try:
        yield lambda spec: backend
    except DtrainError as error:
        if not backend.has_begun:
            ranks.tell({"exit_code": error.exit_code})
        raise
    except SystemExit as end:
        code = end.code
        raise
    finally:
        if backend.has_lost and sys.exc_info()[0] in (None, SystemExit):
            ranks.leave(code)
