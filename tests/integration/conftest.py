"""Fixtures that the tests of several backends share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.simulate import Hosts
from tests.support import DIGITS, dtrain, ending, result_of


@pytest.fixture(scope="session")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that lasts for some seconds, with a checkpoint every second."""
    path = tmp_path_factory.mktemp("long") / "long.yaml"
    path.write_text(yaml.safe_dump({**DIGITS, "epochs": 600, "checkpoint": {"every": "1s"}, "eval": {"every": None}}))
    return path


@pytest.fixture(scope="session")
def undisturbed(long_job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the long job in two processes of this machine."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert dtrain("run", long_job, "-w", 2, "-q", "--run-dir", run).returncode == 0
    return result_of(run)


@pytest.fixture
def ended() -> Iterator[None]:
    """End what the test has started with ``popen`` and left."""
    with ending():
        yield


@pytest.fixture(scope="session")
def root() -> None:
    """Simulated hosts need it."""
    if os.geteuid() != 0:
        pytest.fail("these tests need root: use sudo, or leave them out with DTRAIN_NO_ROOT=1", pytrace=False)


@pytest.fixture(scope="module")
def hosts(root: None) -> Iterator[Hosts]:
    """Three simulated hosts, the same for all tests of a file."""
    with Hosts(3) as made:
        yield made
