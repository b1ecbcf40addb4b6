"""What the live page and the report show of a run, from the files of its run directory alone.

So one implementation serves runs on this machine, of mpirun and of Ray, running and ended, as long as their directory
can be read; and nothing of it is in the way of training.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.document import read_document
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.runs import all_runs, describe, find_run, run_id
from dtrain.monitor.history import POINTS, Follower, History, Table
from dtrain.monitor.lines import read_lines
from dtrain.monitor.timeline import timeline


class RunView:
    """One run as it is shown. Any thread may call it."""

    def __init__(self, run: RunDirectory, result: Mapping[str, Any] | None = None) -> None:
        """Look at nothing yet. ``result`` is how the run ended, where that is known before its lock is free."""
        self.run, self._result = run, result
        self.id = run_id(run.path)
        self._lock = threading.Lock()
        self._history = History(run.metrics_file)
        self._events_follower, self._looks_follower = Follower(run.events_file), Follower(run.introspection_file)
        self._events: list[dict[str, Any]] = []
        self._looks: list[tuple[int, int]] = []  # the step of each, and the byte where its line begins
        self._ratios = Table()

    def changed(self) -> tuple[Any, ...]:
        """A value that is another one when there is something new; cheap."""
        return (self._stamp("metrics_file"), self._stamp("events_file"), self._stamp("result_file"), self.run.status())

    def _stamp(self, name: str) -> tuple[int, int] | None:
        try:
            found = os.stat(getattr(self.run, name))
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def view(self, most: int = POINTS) -> dict[str, Any]:
        """All that is shown, as plain values: what `History.view` and `timeline` return, and how the run stands."""
        with self._lock:
            self._history.update()
            return {**self._standing(), **self._history.view(0, most), "spec": self.spec()}

    def news(self, position: int, most: int = POINTS // 4) -> dict[str, Any] | None:
        """As ``view`` without the spec, of what came after this byte of metrics.jsonl; None if no line ends there."""
        with self._lock:
            self._history.update()
            since = self._history.lines_until(position)
            return None if since is None else {**self._standing(), **self._history.view(since, most)}

    def spec(self) -> dict[str, Any]:
        """The job by its keys, joined by dots; lists as text."""
        try:
            document = read_document(self.run.job_file)
        except DtrainError:
            return {}
        return dict(_flat("", document)) if isinstance(document, dict) else {}

    def look(self, number: int) -> dict[str, Any]:
        """One line of introspection.jsonl, by its number in what ``view`` calls `looks`. Raises InputError."""
        with self._lock:
            self._read_looks()
            if not 0 <= number < len(self._looks):
                raise InputError(f"{self.id}: there is no look {number}")
            starts = [start for _, start in self._looks[: number + 1]]
        found: dict[str, Any] = {}
        for start in reversed(starts):  # a line without a graph has that of the one before
            values, _ = next(read_lines(self.run.introspection_file, start), ({}, 0))
            found = found or values
            if "graph" in values:
                return {**found, "graph": values["graph"]}
        return found

    def _standing(self) -> dict[str, Any]:
        job = describe(self.run)
        if self._result is not None:
            job = replace(job, status=self._result["status"], step=self._result["step"], result=self._result)
        if self._events_follower.rewind():
            self._events.clear()
        self._events += (values for values, _ in self._events_follower.lines())
        self._read_looks()
        return {
            **asdict(job),
            "name": self.run.path.parent.name if "/" in self.id else self.run.id,
            "id": self.id,
            "timeline": timeline(self._events, job.status == "running"),
            "looks": [step for step, _ in self._looks],
            "ratios": self._ratios.thinned(0),
        }

    def _read_looks(self) -> None:
        if self._looks_follower.rewind():
            self._looks, self._ratios = [], Table()
        start = self._looks_follower.position
        for values, end in self._looks_follower.lines():
            step = int(values.get("step", 0))
            self._looks.append((step, start))
            moved = {p["name"]: p["update_to_weight"] for p in values.get("parameters", ())}
            self._ratios.append(end, step, {name: ratio for name, ratio in moved.items() if ratio is not None})
            start = end


class Dashboard:
    """The runs that a page may show: those named, or all below ``runs_root()``, also such as come later."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Raise InputError for a run that does not exist."""
        self._given = [find_run(name) for name in names]
        self._views: dict[str, RunView] = {}
        self._ended: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def runs(self) -> list[dict[str, Any]]:
        """How each run stands, the newest first."""
        listed = []
        for run in self._given or all_runs():
            name = run_id(run.path)
            with suppress(OSError):
                mark = run.result_file.stat().st_mtime_ns if run.result_file.exists() else None
                known = self._ended.get(name)
                if known is None or mark is None or known[0] != mark:
                    job = describe(run)
                    known = (mark, {"id": name, **{k: v for k, v in asdict(job).items() if k in _LISTED}})
                    if mark is not None and job.has_ended:
                        self._ended[name] = known
                listed.append(known[1])
        return listed[::-1]

    def find(self, name: str) -> RunView | None:
        """The run of that name, if it is one of those shown."""
        with self._lock:
            if name not in self._views:
                found = [run for run in self._given or all_runs() if run_id(run.path) == name]
                if not found:
                    return None
                self._views[name] = RunView(found[0])
            return self._views[name]


_LISTED = ("status", "step", "steps", "loss", "started")


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [
            pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else str(key), inner)
        ]
    return [(prefix, str(value) if isinstance(value, list) else value)]
