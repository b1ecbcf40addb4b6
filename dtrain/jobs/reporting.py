"""Writes ``report.html`` of a run from its directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain import __version__
from dtrain.errors import InputError
from dtrain.jobs.dashboard import RunView
from dtrain.jobs.run_directory import RunDirectory, write_atomically
from dtrain.monitor.report import POINTS, report_html


def write_report(
    run: RunDirectory, result: Mapping[str, Any] | None = None, picture: Mapping[str, Any] | None = None
) -> Path:
    """Write the report and return its path.

    ``result`` is how the run ended, for whoever runs it still; ``picture`` a description of its graph, in the place of
    the last look into it. Raises DtrainError if it cannot be written, InputError for a run that has not begun.
    """
    shown = RunView(run, result)
    view = shown.view(POINTS)
    if view["status"] == "pending":
        raise InputError(f"{run.path}: has not begun; there is nothing to report")
    if picture is None and view["looks"]:
        picture = shown.look(len(view["looks"]) - 1)
    job = run.job_file.read_text(encoding="utf-8")
    write_atomically(run.report_file, report_html(view, job, picture, __version__).encode())
    return run.report_file
