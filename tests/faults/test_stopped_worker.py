"""A worker that is stopped (SIGSTOP) is noticed within its deadline, named and replaced; waking it changes nothing."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from dtrain.train.observer import Observer
from tests.support import nothing_left_behind, service_of, spec_of, train, wait_until


class Events(Observer):
    def __init__(self):
        self.count, self.events = 0, []

    def steps(self, records):
        self.count += len(records)

    def event(self, kind, text, **details):
        self.events.append((time.monotonic(), kind, text, details))


def test_a_stopped_worker_is_named_and_replaced_and_its_waking_changes_nothing():
    spec = spec_of(epochs=30)
    alone = train(spec, 0)
    seen = Events()
    service, launcher = service_of(spec, 2, seen, timeout_seconds=0.5)
    stopped = {}

    def stop_one():
        wait_until(lambda: seen.count > 20)
        stopped["worker"] = service.members[1]
        stopped["pid"] = launcher.pid(stopped["worker"])
        stopped["at"] = time.monotonic()
        os.kill(stopped["pid"], signal.SIGSTOP)
        wait_until(lambda: any(kind == "worker_lost" for _, kind, _, _ in seen.events))
        try:
            os.kill(stopped["pid"], signal.SIGCONT)
        except ProcessLookupError:
            stopped["is_gone"] = True
        else:  # dead, and not yet reaped
            stopped["is_gone"] = psutil.Process(stopped["pid"]).status() == psutil.STATUS_ZOMBIE

    thread = threading.Thread(target=stop_one)
    thread.start()
    with nothing_left_behind():
        outcome = service.run()
        thread.join()
    silent = [(at, text) for at, kind, text, _ in seen.events if kind == "worker_silent"]
    assert len(silent) == 1
    at, text = silent[0]
    assert text.startswith(f"worker {stopped['worker']} (rank 1) was silent for ")
    assert "timeout_seconds (now 0.5)" in text
    assert at - stopped["at"] > 0.5
    assert stopped["is_gone"]  # so there is nobody whose late result could be taken
    assert outcome.restarts == 1
    assert outcome.fingerprint == alone.fingerprint
    assert outcome.chain == alone.chain


def test_a_worker_that_is_stopped_and_goes_on_in_time_is_left_alone():
    spec = spec_of(epochs=30)
    seen = Events()
    service, launcher = service_of(spec, 2, seen, timeout_seconds=20.0)

    def pause_one():
        wait_until(lambda: seen.count > 20)
        pid = launcher.pid(service.members[0])
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=pause_one)
    thread.start()
    outcome = service.run()
    thread.join()
    assert outcome.status == "succeeded"
    assert outcome.restarts == 0
    assert outcome.fingerprint == train(spec, 0).fingerprint
