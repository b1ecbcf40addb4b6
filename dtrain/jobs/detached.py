"""Jobs on this machine that go on when their terminal is closed: started in a session of their own, watched by files.

What is started is ``dtrain resume`` of a run directory that holds nothing but its job. Invariant: the kernel's lock on
the directory says who runs it; no daemon and no table of processes is kept anywhere.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.job import Job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.runs import all_runs, describe, find_run
from dtrain.jobs.spec import JobSpec
from dtrain.jobs.validation import validate

_POLL_SECONDS = 0.05
_PENDING_SECONDS = 10.0  # how long a log that is followed waits for its job to start
_COMMAND = """
import importlib.util, sys
found = importlib.util.spec_from_file_location(
    "dtrain", {folder!r} + "/__init__.py", submodule_search_locations=[{folder!r}])
sys.modules["dtrain"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["dtrain"])
from dtrain.cli import main
main()
"""  # the dtrain of this process, whatever the current directory and whichever one is installed


class LocalJobs:
    """The runs below ``runs_root()``, and any run directory by its path."""

    def submit(self, spec: JobSpec) -> Job:
        validate(spec)
        directory = RunDirectory.create(spec.name)
        directory.write_job(spec)
        return _start(directory, None)

    def all(self) -> Sequence[Job]:
        return [describe(run) for run in all_runs()]

    def get(self, job_id: str) -> Job:
        return describe(find_run(job_id))

    def log(self, job_id: str, follow: bool, start: int = 0) -> Iterator[str]:
        run = find_run(job_id)
        if not run.log_file.exists():
            raise InputError(
                f"{job_id}: there is no {run.log_file.name}, because the run was not started by dtrain submit; "
                f"its figures are in {run.metrics_file}"
            )
        return _follow(run, follow, start)

    def stop(self, job_id: str) -> None:
        run = find_run(job_id)
        process = run.process()
        for _ in range(20):  # a lock that was just taken may not yet say by whom
            if process is None or process.pid:
                break
            time.sleep(_POLL_SECONDS)
            process = run.process()
        if process is None:
            if run.status() == "pending":
                raise InputError(f"{job_id}: was never started; start it with dtrain resume {job_id}")
            return
        if not process.is_here:
            raise InputError(f"{job_id}: {process} runs it; stop it there: kill -TERM {process.pid}")
        try:
            os.kill(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            raise InputError(f"{job_id}: {process} runs it and belongs to another user") from None

    def resume(self, job_id: str, workers: int | str | None) -> Job:
        run = find_run(job_id)
        job = describe(run)
        if job.status == "succeeded":
            raise InputError(f"{job_id}: has succeeded already; start it anew with dtrain submit")
        if job.status == "running":
            raise InputError(f"{job_id}: {run.process()} runs it; wait for it, or stop it with dtrain stop {job_id}")
        return _start(run, workers)

    def fetch(self, job_id: str, destination: Path | None, checkpoints: int) -> Path:
        from dtrain.jobs.parcel import copy_run

        run = find_run(job_id)
        if destination is None:
            raise InputError(f"{job_id}: is on this machine already, in {run.path}; name a directory to copy it to")
        copy_run(run.path, destination, checkpoints)
        return destination


def _start(run: RunDirectory, workers: int | str | None) -> Job:
    """Run a directory in a session of its own; return when it has begun, or raise what it said when it could not."""
    arguments = ["resume", str(run.path)] + ([] if workers is None else ["--workers", str(workers)])
    before = run.read_result()
    code = _COMMAND.format(folder=str(Path(__file__).resolve().parents[1]))
    with open(run.log_file, "ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while run.holder() != process.pid:
        if process.poll() is not None:
            if process.returncode == 0 or run.read_result() != before:  # it was quick
                break
            error = DtrainError(_last_line(run.log_file, start) or f"{run.path}: the job did not start")
            error.exit_code = max(process.returncode, 2)
            raise error
        time.sleep(_POLL_SECONDS / 5)
    return replace(describe(run), log_start=start)


def _last_line(log: Path, start: int) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        lines = file.read().split("\n")
    return next((line for line in reversed(lines) if line), "").removeprefix("dtrain: ")


def _follow(run: RunDirectory, follow: bool, start: int) -> Iterator[str]:
    """Yield the log from byte ``start`` on; one that is cut short is read anew from its beginning."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    deadline = time.monotonic() + _PENDING_SECONDS
    position = start
    while True:
        # Asked before the file is read, so that the last words of a job that ends in between are not missed.
        status = run.status() if follow else "ended"
        is_last = status not in ("running", "pending") or (status == "pending" and time.monotonic() > deadline)
        with contextlib.suppress(FileNotFoundError), open(run.log_file, "rb") as file:
            if os.fstat(file.fileno()).st_size < position:
                position = 0
            file.seek(position)
            while data := file.read(1 << 16):
                position += len(data)
                yield decoder.decode(data)
        if is_last:
            return
        time.sleep(_POLL_SECONDS)
