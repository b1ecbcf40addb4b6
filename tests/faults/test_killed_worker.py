"""`kill -9` of random workers at random moments: no step is lost, the fingerprint stays, recovery is quick."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest

from dtrain.train.observer import Observer
from tests.faults import deaths, recovery
from tests.faults.recovery import Steps, steps_lost, train_under_fire
from tests.support import ROOT, nothing_left_behind, service_of, spec_of, train, wait_until

pytestmark = pytest.mark.timeout(600)


def assert_undisturbed(spec, workers, kills, seed):
    alone = train(spec, 0)
    with nothing_left_behind():
        outcome, steps, count = train_under_fire(spec, workers, kills, seed)
    assert outcome.status == "succeeded"
    assert (outcome.fingerprint, outcome.chain) == (alone.fingerprint, alone.chain)
    assert outcome.eval == alone.eval
    assert steps_lost(steps.recorded, spec.epochs * 12) == 0
    assert count == kills, "the run was over before all kills were done: make it longer"
    assert outcome.restarts >= kills - 1  # a kill at the very end is not noticed


@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (2, 2), (3, 3)])
def test_random_kills_cost_no_step(workers, seed):
    assert_undisturbed(spec_of(epochs=100), workers, kills=10, seed=seed)


def test_the_death_of_a_worker_that_has_yet_to_begin_is_no_interruption():
    class Told(Observer):
        kinds: ClassVar[list[str]] = []
        members: tuple[int, ...] = ()

        def started(self, *_):
            service.resize(2)

        def generation(self, generation, members, restarts):
            self.members = members

        def steps(self, records):
            if self.members == (0, 2):
                service.request_stop()

        def event(self, kind, text, **details):
            self.kinds.append(kind)

    spec = spec_of(epochs=200)
    told = Told()
    service, launcher = service_of(spec, 1, told)
    start = launcher.start

    def start_and_kill(worker, memory):
        line = start(worker, memory)
        if worker == 1:
            os.kill(wait_until(lambda: launcher.pid(1)), signal.SIGKILL)
        return line

    launcher.start = start_and_kill
    service.run()
    assert told.members == (0, 2)
    assert "worker_lost" in told.kinds
    assert "recovered" not in told.kinds


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_many_random_kills_cost_no_step_and_recovery_is_quick(workers, capsys):
    with nothing_left_behind():
        found = recovery.local(workers, kills=100)
    with capsys.disabled():
        print(f"\n{found.row()}")
    assert len(found.seconds) >= 99  # a kill at the very end is not noticed
    assert found.has_met_target


@pytest.mark.parametrize(
    ("seconds", "lost", "is_equal", "is_met"),
    [
        ([0.4] * 50, 0, True, True),
        ([0.4] * 49 + [0.6], 0, True, False),
        ([0.4], 1, True, False),
        ([0.4], 0, False, False),
    ],
)
def test_a_late_recovery_a_lost_step_and_another_fingerprint_miss_the_target(seconds, lost, is_equal, is_met):
    assert recovery.Recoveries("local", 0.5, seconds, lost, is_equal).has_met_target is is_met


def test_steps_that_are_missing_or_repeated_are_lost():
    assert [steps_lost(recorded, 3) for recorded in ([0, 1, 2], [0, 2], [0, 1, 1, 2], [])] == [0, 1, 1, 3]


def test_the_command_prints_the_table_of_recoveries():
    line = [sys.executable, "-m", "tests.faults.recovery", "local", "--kills", "4"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in done.stdout.splitlines() if row[:1] == "|"]
    assert [row[0] for row in rows[2:]] == ["local, 1 worker", "local, 2 workers", "local, 4 workers"]
    for row in rows[2:]:
        assert (row[1], row[5:7]) == ("4", ["0", "equal"])
        assert 0 < float(row[2]) <= float(row[3])


@pytest.mark.parametrize("phase", ["gradients", "sum", "update"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_inside_each_phase(phase, rank):
    """A worker dies at step 5 with shards, a sum or an update half done, and rubbish in memory where it was at work."""
    spec = spec_of(epochs=1, model__hidden=[256, 128])  # four blocks, so that every rank has something to update
    with nothing_left_behind():
        outcome, is_dead = deaths.run(spec, phase, rank)
    assert is_dead
    assert outcome.restarts == 1
    assert outcome.fingerprint == train(spec, 0).fingerprint


@pytest.mark.parametrize("phase", ["gradients", "sum", "update", "fold"])
def test_a_death_inside_each_phase_with_running_values(phase):
    """The last block is of running values and belongs to rank 1; it dies with half of them, or of its sum, spoilt."""
    spec = spec_of(epochs=1, model__hidden=[256, 128], model__batch_norm=True)
    with nothing_left_behind():
        outcome, is_dead = deaths.run(spec, phase, rank=1)
    assert is_dead
    assert outcome.restarts == 1
    assert outcome.fingerprint == train(spec, 0).fingerprint


def test_random_kills_cost_no_step_of_a_model_with_running_values():
    assert_undisturbed(spec_of(epochs=100, model__batch_norm=True), 2, kills=10, seed=5)


def test_killing_the_prepared_process_kills_all_workers_and_costs_no_step():
    spec = spec_of(epochs=40)
    alone = train(spec, 0)
    steps = Steps()
    service, launcher = service_of(spec, 2, steps)

    def fire():
        while len(steps.recorded) < 20:
            time.sleep(0.001)
        os.kill(launcher.zygote_pid, signal.SIGKILL)

    killer = threading.Thread(target=fire)
    killer.start()
    with nothing_left_behind():
        outcome = service.run()
        killer.join()
    assert outcome.status == "succeeded"
    assert outcome.restarts >= 2
    assert outcome.fingerprint == alone.fingerprint
