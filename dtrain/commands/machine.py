"""Commands about dtrain itself and this machine."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from dtrain import __version__
from dtrain.commands.app import (
    JSON,
    app,
)
from dtrain.jobs.spec import json_schema


@app.command()
def doctor(as_json: Annotated[bool, JSON] = False) -> None:
    """Say which of local, MPI and Ray work here, and why not."""
    from dtrain.jobs.doctor import examine

    report = examine()
    print(json.dumps(report.to_json()) if as_json else report.text())
    if not report.is_local_fine:
        sys.exit(3)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job file."""
    print(json.dumps(json_schema(), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
