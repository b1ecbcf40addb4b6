"""One fingerprint for a job whose shards sum something in the middle of a step: workers, small batches, a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.comm.threads import one_blas_thread
from dtrain.jobs.backend import make_launcher
from dtrain.jobs.build import build
from dtrain.jobs.payload import spec_payload
from dtrain.train.checkpoint import Checkpoint, CheckpointStore
from dtrain.train.numerics import numerics_class
from dtrain.train.observer import Observer
from dtrain.train.service import Outcome, RunSettings, Service
from tests.support import nothing_left_behind, spec_of, train

SPEC = spec_of(model__batch_norm="synchronised", epochs=2)  # the last batch of an epoch has 29 samples


@pytest.fixture(scope="module")
def alone() -> Outcome:
    return train(SPEC, 0)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_workers_change_the_speed_and_never_the_result(workers: int, alone: Outcome) -> None:
    with nothing_left_behind():
        outcome = train(SPEC, workers)
    assert outcome.status == "succeeded"
    assert (outcome.fingerprint, outcome.chain) == (alone.fingerprint, alone.chain)
    assert (outcome.eval, outcome.train_loss) == (alone.eval, alone.train_loss)


def test_a_batch_with_fewer_samples_than_shards() -> None:
    spec = spec_of(model__batch_norm="synchronised", epochs=1, batch=1433)  # four are left
    assert train(spec, 3).fingerprint == train(spec, 0).fingerprint


def test_it_is_another_result_than_that_of_shards_and_learns(alone: Outcome) -> None:
    assert alone.fingerprint != train(spec_of(model__batch_norm=True, epochs=2), 0).fingerprint
    assert train(spec_of(model__batch_norm="synchronised", epochs=8), 0).eval["accuracy"] > 0.8


def test_a_stop_and_a_resume_with_other_workers_change_nothing(tmp_path: Path, alone: Outcome) -> None:
    store = CheckpointStore(tmp_path)

    def run(workers: int, restore: Checkpoint | None, observer: Observer | None) -> Service:
        program = build(SPEC)
        launcher = make_launcher(program, workers, None, lambda rows: spec_payload(SPEC, rows))
        return Service(program, RunSettings(workers), launcher, numerics_class(), store, restore, observer)

    class Stop(Observer):
        def steps(self, records):
            if records[-1].step >= 5:
                first.request_stop()

    with one_blas_thread():
        first = run(2, None, Stop())
        stopped = first.run()
        assert stopped.status == "stopped"
        assert 5 < stopped.step < 24
        outcome = run(3, store.latest(), None).run()
    assert (outcome.fingerprint, outcome.chain) == (alone.fingerprint, alone.chain)
