"""Another number of workers for a run that lasts: asked for by a file in its run directory, which the run looks for.

So it works for every backend, from every machine that sees the directory, and needs no port.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dtrain.errors import InputError
from dtrain.jobs.run_directory import RunDirectory, write_atomically
from dtrain.train.service import Service

_LOOK_SECONDS = 0.2


def ask_for_workers(run: RunDirectory, workers: int) -> None:
    """Ask the process that runs a directory for so many workers. Raises InputError if it does not run."""
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    if run.status() != "running":
        raise InputError(f"{run.path}: does not run ({run.status()}); start it with dtrain resume --workers {workers}")
    write_atomically(run.workers_file, f"{workers}\n".encode())


@contextmanager
def scalable(run: RunDirectory, service: Service) -> Iterator[None]:
    """While the body lasts, hand what is asked for to the service."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            with suppress(OSError, ValueError):
                workers = int(run.workers_file.read_text())
                run.workers_file.unlink()
                service.resize(workers)

    run.workers_file.unlink(missing_ok=True)
    thread = threading.Thread(target=look, name="dtrain scaling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
