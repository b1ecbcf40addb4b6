"""A worker that hangs in the user's model: rank, phase and line are told before it is replaced, and the result is the
same."""

from __future__ import annotations

import pytest

from dtrain.errors import WorkerError
from dtrain.train.observer import Observer
from tests.support import nothing_left_behind, service_of, spec_of, train

MODEL = """
import os
import signal
import time

import numpy as np

import dtrain

calls = 0


def stall():
    try:
        os.close(os.open(os.environ["DTRAIN_TEST_FUSE"], os.O_CREAT | os.O_EXCL))
    except (FileExistsError, KeyError):
        return
    how = os.environ["DTRAIN_TEST_STALL"]
    if how == "sleep":
        time.sleep(1e6)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    while how == "spin":
        pass
    while how == "wait" and not os.path.exists(os.environ["DTRAIN_TEST_FUSE"] + ".released"):
        time.sleep(0.01)


def brake(x):
    global calls
    calls += 1
    if calls == 40:
        stall()
    return x * 1.0


@dtrain.primitive(brake, shape=lambda x: x.shape)
def passed_on(g, out, x):
    return g * 1.0


def init(rng):
    return {"w": rng.standard_normal((64, 10)) * 0.01}


def loss(params, batch):
    scores = passed_on(batch["x"] @ params["w"])
    scores = scores - np.max(scores, axis=1, keepdims=True)
    return np.log(np.sum(np.exp(scores), axis=1)) - scores[np.arange(len(batch["y"])), batch["y"]]
"""


class Events(Observer):
    def __init__(self):
        self.events = []

    def event(self, kind, text, **details):
        self.events.append((kind, text, details))

    def only(self, kind):
        ((_, text, details),) = [e for e in self.events if e[0] == kind]
        return text, details


def line_of(text):
    return f"hangs.py:{MODEL[: MODEL.index(text)].count(chr(10)) + 1} in stall"


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    model = tmp_path_factory.mktemp("model") / "hangs.py"
    model.write_text(MODEL)
    return spec_of(model={"entry": str(model)}, epochs=1)


@pytest.fixture(scope="module")
def alone(spec):
    """The outcome of a run in which nobody hangs."""
    return train(spec, 1)


@pytest.fixture
def fuse(tmp_path, monkeypatch):
    """The file that the one worker makes that hangs."""
    monkeypatch.setenv("DTRAIN_TEST_FUSE", str(tmp_path / "fuse"))
    return tmp_path / "fuse"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("sleep", f"is sleeping, at {line_of('time.sleep(1e6)')}"),
        ("spin", "is running, at hangs.py:"),
        ("stop", "is stopped"),
    ],
)
def test_who_hangs_is_named_with_its_phase_and_line_and_replaced(spec, alone, fuse, how, said, monkeypatch):
    monkeypatch.setenv("DTRAIN_TEST_STALL", how)
    seen = Events()
    with nothing_left_behind():
        service, _ = service_of(spec, 2, seen, timeout_seconds=0.5)
        outcome = service.run()
    text, silent = seen.only("worker_silent")
    assert f"worker {silent['worker']} (rank {silent['rank']}) was silent for " in text
    assert f" at step {silent['step']}, in the phase gradients; it is replaced" in text
    assert silent["phase"] == "gradients"
    assert silent["rank"] in (0, 1)
    assert 0.5 < silent["seconds"] < 10
    text, found = seen.only("worker_stack")
    assert found["worker"] == silent["worker"]
    assert text.startswith(f"worker {silent['worker']} {said}")
    if how == "stop":
        assert (found["state"], found["line"], found["stack"]) == ("T (stopped)", "", "")
    else:
        assert "in stall" in found["line"]
        assert 'hangs.py", line' in found["stack"]
        assert "in brake" in found["stack"]
    kinds = [kind for kind, _, _ in seen.events]
    assert kinds.index("worker_silent") < kinds.index("worker_stack") < kinds.index("worker_lost")
    assert outcome.restarts == 1
    assert (outcome.status, outcome.fingerprint, outcome.chain) == ("succeeded", alone.fingerprint, alone.chain)


def test_a_worker_that_is_a_thread_ends_the_run_and_its_line_is_told(spec, fuse, monkeypatch):
    monkeypatch.setenv("DTRAIN_TEST_STALL", "wait")
    monkeypatch.setattr("dtrain.train.membership.FAREWELL_SECONDS", 0.1)  # a thread does not listen
    seen = Events()
    try:
        outcome = train(spec, 0, seen, timeout_seconds=0.3)
    finally:
        fuse.with_name("fuse.released").touch()
    assert outcome.status == "failed"
    assert isinstance(outcome.error, WorkerError)
    assert "it cannot be replaced" in str(outcome.error)
    assert str(outcome.error).endswith("in stall")
    assert "in stall" in seen.only("worker_stack")[1]["line"]
