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
from typing import Any

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.job import Job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.runs import all_runs, describe, find_run, run_id
from dtrain.jobs.spec import JobSpec
from dtrain.jobs.validation import validate
from dtrain.monitor.lines import read_lines

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
        return _follow(run, follow, start) if run.log_file.exists() else _tell_events(run, follow)

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


def _rounds(run: RunDirectory, follow: bool) -> Iterator[None]:
    """Yield whenever the files of a run are to be read: once, or until it has ended."""
    deadline = time.monotonic() + _PENDING_SECONDS
    while True:
        # Asked before the files are read, so that the last words of a job that ends in between are not missed.
        status = run.status() if follow else "ended"
        is_last = status not in ("running", "pending") or (status == "pending" and time.monotonic() > deadline)
        yield
        if is_last:
            return
        time.sleep(_POLL_SECONDS)


def _follow(run: RunDirectory, follow: bool, start: int) -> Iterator[str]:
    """Yield the log from byte ``start`` on; one that is cut short is read anew from its beginning."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    position = start
    for _ in _rounds(run, follow):
        with contextlib.suppress(FileNotFoundError), open(run.log_file, "rb") as file:
            if os.fstat(file.fileno()).st_size < position:
                position = 0
            file.seek(position)
            while data := file.read(1 << 16):
                position += len(data)
                yield decoder.decode(data)


def _tell_events(run: RunDirectory, follow: bool) -> Iterator[str]:
    """Yield where a run without a log has said what it said, a line for each of its events, and how it stands."""
    yield (
        f"{run_id(run.path)} was not started by dtrain submit: what it said is in its terminal, or where mpirun's or "
        "the scheduler's output goes. Its events:\n"
    )
    position = 0
    for _ in _rounds(run, follow):
        for values, position in read_lines(run.events_file, position):  # noqa: B007, B020
            yield _sentence(values)
    yield describe(run).sentence() + "\n"


def _sentence(event: dict[str, Any]) -> str:
    """One line: when, what, and its text, or else its values."""
    values = {name: value for name, value in event.items() if name not in ("time", "event")}
    text = values.get("text") or ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{event.get('time')} {event.get('event')}: {text}\n"
