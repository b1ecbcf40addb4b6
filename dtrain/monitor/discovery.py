"""How Prometheus finds a run: the list of its targets, as `http_sd_configs` and `file_sd_configs` read it.

The list holds no token. What it says of the run becomes labels of all its series, the same that go with a push and a
textfile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping


def run_labels(name: str, run: str) -> dict[str, str]:
    """The labels that tell a run from others: the job's name and the run's id."""
    return {"dtrain_job": name, "dtrain_run": run}


def targets(address: str, labels: Mapping[str, str]) -> bytes:
    """The list as JSON: one target, ``address`` being host:port, with its labels."""
    return json.dumps([{"targets": [address], "labels": dict(labels)}]).encode()
