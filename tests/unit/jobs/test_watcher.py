"""What of a run's events stays in its terminal."""

from __future__ import annotations

import pytest

from dtrain.jobs.watcher import Watcher


def test_what_goes_wrong_stays_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher(None)
    watcher.started({"w": 3}, 10, 0, 5)
    watcher.generation(1, (0, 1), 0)
    watcher.event("worker_joined", "worker 1 joined", worker=1, pid=7, host="here")
    watcher.event("worker_silent", "worker 1 (rank 1) was silent", worker=1)
    watcher.event("worker_stack", "worker 1 is sleeping, at model.py:3 in loss", worker=1)
    watcher.event("worker_lost", "worker 1 died", worker=1)
    watcher.event("spike", "step 5: the loss is 9", step=5)
    watcher.event("nonfinite", "step 6: the step is skipped", step=6, is_skipped=True)
    watcher.event("nonfinite", "step 7: in log", step=7, is_skipped=False)  # the error is the run's last word
    watcher.close()
    assert capsys.readouterr().err.splitlines() == [
        "worker 1 (rank 1) was silent",
        "worker 1 is sleeping, at model.py:3 in loss",
        "worker 1 died",
        "step 5: the loss is 9",
        "step 6: the step is skipped",
    ]
