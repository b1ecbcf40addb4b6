"""How many workers a run has, and where."""

from __future__ import annotations

import platform

import pytest

from dtrain.errors import InputError
from dtrain.jobs.backend import make_launcher, worker_count


def test_auto_is_one_per_core_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5})
    assert worker_count("auto") == 3
    assert worker_count(0) == 0
    assert worker_count(9) == 9


def test_processors_with_weak_ordering_run_in_this_process(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert worker_count("auto") == 0
    with pytest.raises(InputError, match=r"need an x86-64 processor.*this is aarch64\. Use --workers 0"):
        make_launcher(None, 2, None, lambda m: -1)
