"""``dtrain top``: a run on a full screen, as long as it lasts. Reads only, and never disturbs the run.

A run whose directory can be seen is read from its files, whoever runs it and wherever. Of a job on a cluster whose
directory cannot, what its log says is shown: loss, gradient norm and evaluations, but no workers.
"""

from __future__ import annotations

import math
import os
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.job import Jobs
from dtrain.jobs.run_directory import RunDirectory, runs_root
from dtrain.jobs.runs import find_run, run_id
from dtrain.monitor.alerts import alerts
from dtrain.monitor.lines import read_lines
from dtrain.monitor.records import EvalRecord, StepRecord, read_records
from dtrain.monitor.screen import frame
from dtrain.monitor.view import RunView

_REFRESH_SECONDS = 0.5
_STEP = re.compile(r"^epoch (\d+)/\d+  step (\d+)/(\d+)  loss (\S+)  grad norm (\S+)(?:  (\S+) samples/s)?", re.M)
_EVAL = re.compile(r"^epoch (\d+)  step (\d+)  eval loss (\S+)(?:  accuracy (\S+) %)?", re.M)
_SIGNS = {"k": 1e3, "M": 1e6, "G": 1e9}


class Source(Protocol):
    """Where what is known of a run comes from."""

    view: RunView
    note: str

    def read(self) -> None:
        """Bring the view up to date. Raises DtrainError."""


class FilesOfRun:
    """A run by its directory."""

    note = ""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._metrics = self._events = 0
        self.view = self._fresh()

    def _fresh(self) -> RunView:
        """A view with what the job says of the run."""
        spec = self._run.read_job()
        view = RunView(shards=spec.shards)
        view.name = run_id(self._run.path)
        every = spec.checkpoint.every
        if every is not None and every.unit == "seconds":
            view.checkpoint_seconds = float(every.count)
        self._every = every
        return view

    def read(self) -> None:
        run, view = self._run, self.view
        view.status = run.status()  # first, so that nothing is missed of a run that ends meanwhile
        with suppress(FileNotFoundError):
            if run.metrics_file.stat().st_size < self._metrics:  # cut back by a resume
                self._metrics = self._events = 0
                self.view = view = self._fresh()
                view.status = run.status()
        for values, self._events in read_lines(run.events_file, self._events):  # noqa: B020
            view.take_event(values, time.time())
        if self._every is not None and view.steps_per_epoch is not None:
            view.checkpoint_steps = self._every.in_steps(view.steps_per_epoch)
        news = False
        for record, self._metrics in read_records(run.metrics_file, self._metrics):  # noqa: B020
            view.take(record)
            news = True
        if news and view.stepped_at is not None:  # the steps are of the process that runs it now
            with suppress(FileNotFoundError):
                view.stepped_at = max(view.stepped_at, run.metrics_file.stat().st_mtime)
        view.result = None if view.is_running else run.read_result()


class LogOfJob:
    """A job on a cluster by its log, which a thread follows."""

    note = "from its log: its run directory cannot be seen from here"

    def __init__(self, jobs: Jobs, job_id: str, follow: bool) -> None:
        self._jobs, self._id = jobs, job_id
        self.view = RunView()
        self.view.name = job_id
        self._text = ""
        self._lock = threading.Lock()
        if follow:
            threading.Thread(target=self._follow, name="dtrain top", daemon=True).start()
        else:
            self._text = "".join(jobs.log(job_id, follow=False))

    def _follow(self) -> None:
        with suppress(DtrainError):  # its status tells how it ended
            for piece in self._jobs.log(self._id, follow=True):
                with self._lock:
                    self._text += piece

    def read(self) -> None:
        job = self._jobs.get(self._id)
        with self._lock:
            end = self._text.rfind("\n") + 1
            text, self._text = self._text[:end], self._text[end:]
        view = self.view
        view.status, view.steps = job.status, job.steps or view.steps
        view.result = job.result or None
        for line in text.splitlines():
            if step := _STEP.match(line):
                view.steps = int(step[3])
                view.take(_record(step))
                view.stepped_at = time.time()
                if step[6]:
                    view.measured = None, _number(step[6])  # the size of a mini-batch is not known
            elif found := _EVAL.match(line):
                metrics = {"accuracy": float(found[4]) / 100} if found[4] else {}
                view.take(EvalRecord(int(found[2]), int(found[1]), float(found[3]), metrics))


def _record(step: re.Match[str]) -> StepRecord:
    return StepRecord(int(step[2]) - 1, int(step[1]) - 1, float(step[4]), float(step[5]), 1.0, math.nan, 0, 0.0)


def _number(text: str) -> float:
    return float(text.rstrip("kMG")) * _SIGNS.get(text[-1], 1.0)


def source_of(job_id: str | None, jobs: Jobs, is_here: bool, follow: bool) -> Source:
    """Return where a run is read from: its files if they can be seen, else its log.

    Without an ID the newest one that runs, or else the newest. ``is_here`` says that ``jobs`` are those of this
    machine. Raises InputError if there is none.
    """
    if job_id is None:
        found = jobs.all()
        if not found:
            raise InputError("there are no runs" + (f" in {runs_root()}" if is_here else ""))
        job_id = next((job for job in reversed(found) if not job.has_ended), found[-1]).id
    if is_here:
        return FilesOfRun(find_run(job_id))
    job = jobs.get(job_id)
    directory = Path(job.run_directory).expanduser()
    if (directory / "job.yaml").is_file():
        return FilesOfRun(RunDirectory.open(directory))
    return LogOfJob(jobs, job.id, follow)


def as_plain(source: Source) -> dict[str, Any]:
    """The run as plain values, with its alerts."""
    source.read()
    now = time.time()
    found = [{"name": alert.name, "text": alert.text} for alert in alerts(source.view, now)]
    return {**source.view.plain(now), "alerts": found}


def has_screen() -> bool:
    """Whether standard output is a terminal on which the cursor can be moved."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def print_frame(source: Source) -> None:
    """Print one screen of a run on standard output."""
    from rich.console import Console, Group

    source.read()
    console = Console()
    console.print(Group(*_parts(source, console.width, None, console.options.ascii_only)))


def follow(source: Source) -> None:
    """Show a run on the whole terminal until it has ended or q is typed; how it ended is left on the terminal."""
    from rich.console import Console, Group
    from rich.live import Live

    source.read()
    if source.view.is_running:
        console = Console()
        with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
            while source.view.is_running:
                width, height = console.size
                parts = _parts(source, width, height, console.options.ascii_only, "q quits")
                live.update(Group(*parts), refresh=True)
                if _typed(keys) == "q":
                    return
                source.read()
    print_frame(source)


def _parts(source: Source, width: int, height: int | None, is_ascii: bool, hint: str = "") -> list[Any]:
    note = "  ".join(part for part in (source.note, hint) if part)
    return list(frame(source.view, alerts(source.view, time.time()), width, height, is_ascii, note))


@contextmanager
def _keys() -> Iterator[int | None]:
    """Have what is typed read at once and not shown; yields the descriptor, or None where nothing can be typed."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _typed(keys: int | None) -> str:
    """Wait for the next refresh; return what was typed meanwhile, "q" if that is among it."""
    if keys is None:
        time.sleep(_REFRESH_SECONDS)
        return ""
    if not select.select([keys], [], [], _REFRESH_SECONDS)[0]:
        return ""
    typed = os.read(keys, 64).decode(errors="replace")
    return "q" if "q" in typed.lower() or not typed else typed
