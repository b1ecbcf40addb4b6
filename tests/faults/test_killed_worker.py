"""`kill -9` of random workers at random moments: no step is lost, the fingerprint stays, recovery is quick."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress

import pytest

from dtrain.train.observer import Observer
from tests.faults import deaths
from tests.support import nothing_left_behind, service_of, spec_of, train

pytestmark = pytest.mark.timeout(600)


class Steps(Observer):
    """Checks that steps come in order without a gap, and measures the time from a kill to the next committed step."""

    def __init__(self) -> None:
        self.next_step = 0
        self.killed_at: float | None = None
        self.recovery_seconds: list[float] = []

    def steps(self, records):
        assert [r.step for r in records] == list(range(self.next_step, self.next_step + len(records)))
        self.next_step += len(records)
        if self.killed_at is not None:
            self.recovery_seconds.append(time.monotonic() - self.killed_at)
            self.killed_at = None


def train_under_fire(spec, workers, kills, seed):
    """Train while a random member is killed again and again, ``kills`` times; return the outcome and what was seen."""
    steps = Steps()
    service, launcher = service_of(spec, workers, steps)
    rng = random.Random(seed)
    count, target = 0, 1

    def fire():
        nonlocal count, target
        while service.is_running and count < kills:
            time.sleep(rng.uniform(0.0, 0.002))
            members = service.members
            if steps.killed_at is not None or not members or steps.next_step < target:
                continue
            target = steps.next_step + rng.randrange(1, 50)
            pid = launcher.pid(rng.choice(members))
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    steps.killed_at = time.monotonic()
                    count += 1

    killer = threading.Thread(target=fire)
    killer.start()
    outcome = service.run()
    killer.join()
    return outcome, steps, count


def assert_undisturbed(spec, workers, kills, seed):
    alone = train(spec, 0)
    with nothing_left_behind():
        outcome, steps, count = train_under_fire(spec, workers, kills, seed)
    assert outcome.status == "succeeded"
    assert (outcome.fingerprint, outcome.chain) == (alone.fingerprint, alone.chain)
    assert outcome.eval == alone.eval
    assert steps.next_step == spec.epochs * 12
    assert count == kills, "the run was over before all kills were done: make it longer"
    assert outcome.restarts >= kills - 1  # a kill at the very end is not noticed
    return sorted(steps.recovery_seconds)


@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (2, 2), (3, 3)])
def test_random_kills_cost_no_step(workers, seed):
    assert_undisturbed(spec_of(epochs=100), workers, kills=10, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_many_random_kills_cost_no_step_and_recovery_is_quick(workers, capsys):
    times = assert_undisturbed(spec_of(epochs=900, optimizer__name="momentum"), workers, kills=100, seed=7 + workers)
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    with capsys.disabled():
        print(f"\n{len(times)} kills of {workers} workers: recovery median {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")
    assert p99 < 0.5


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
        while steps.next_step < 20:
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
