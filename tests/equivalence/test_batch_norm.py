"""One fingerprint per job with running statistics: whatever the workers, the optimizer, the deaths and the stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from dtrain.nn.running import Running
from dtrain.train.observer import Observer
from tests.support import (
    DIGITS,
    dtrain,
    nothing_left_behind,
    result_of,
    spec_of,
    steps_of,
    stop_and_resume,
    train,
)

JOBS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": {"name": "momentum", "lr": 0.05, "clip_norm": 0.5, "weight_decay": 1e-3}},
    "adam": {"optimizer": {"name": "adam", "lr": 2e-3, "clip_norm": 1.0, "clip_value": 0.01}},
    "float64": {"dtype": "float64", "epochs": 1},
    "seven shards": {"shards": 7, "batch": 100, "epochs": 1},  # batches of 100 and of 37: shards of 15, 14, 6 and 5
    "several blocks": {"model__hidden": [256, 128], "epochs": 1},
}
OF_LAYER = {"layers.0.mean", "layers.0.var", "layers.1.mean", "layers.1.var"}


@pytest.fixture(scope="module", params=sorted(JOBS))
def job(request):
    """A job with a ragged last batch, dropout, clipping and batch norm, and its outcome in this process."""
    spec = spec_of(model__batch_norm=True, **JOBS[request.param])
    return spec, train(spec, 0)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_change_the_speed_and_never_the_result(job, workers):
    spec, alone = job
    with nothing_left_behind():
        outcome = train(spec, workers)
    assert outcome.status == "succeeded"
    assert (outcome.fingerprint, outcome.chain) == (alone.fingerprint, alone.chain)
    assert outcome.eval == alone.eval
    assert outcome.train_loss == alone.train_loss


def test_the_statistics_have_moved_and_are_part_of_the_result(job):
    _, alone = job
    for layer in alone.parameters["layers"][:-1]:
        assert isinstance(layer["mean"], Running)
        assert np.abs(layer["mean"]).min() > 0
        assert (layer["var"] > 0).all()
        assert (layer["var"] != 1).all()


def test_clipping_is_on_and_gradient_norms_are_those_of_parameters():
    seen = []

    class Watch(Observer):
        def started(self, names, steps, first_step, steps_per_epoch):
            self.names = names

        def steps(self, records):
            seen.extend(records)

    watch = Watch()
    train(spec_of(model__batch_norm=True, **JOBS["momentum"]), 0, watch)
    assert min(r.clip_scale for r in seen) < 1.0
    told = [r for r in seen if r.parameter_norms is not None]
    for record in told:
        assert set(record.parameter_norms) == set(watch.names)
        assert not OF_LAYER & set(watch.names)
        squares = sum(norm**2 for norm in record.parameter_norms.values())
        assert squares == pytest.approx(record.gradient_norm**2, rel=1e-9)
    assert told


def test_batch_norm_makes_another_result_and_learns():
    plain, normal = (train(spec_of(model__batch_norm=on, epochs=8), 2) for on in (False, True))
    assert plain.fingerprint != normal.fingerprint
    assert normal.eval["accuracy"] > 0.8


def test_a_stop_and_a_resume_with_other_workers_change_nothing(tmp_path):
    """Ctrl-C with 2 workers, go on with 3: statistics come from the checkpoint."""
    job = tmp_path / "job.yaml"
    model = {**DIGITS["model"], "batch_norm": True}
    job.write_text(yaml.safe_dump({**DIGITS, "model": model, "epochs": 200, "eval": {"every": "10 epoch"}}))
    whole, run = tmp_path / "whole", tmp_path / "run"
    stop_and_resume(job, whole, run, (2, 2, 3), 200 * 12)
    assert [s["loss"] for s in steps_of(run)] == [s["loss"] for s in steps_of(whole)]


def test_a_batch_that_leaves_a_shard_with_one_sample_is_refused_before_the_first_step(tmp_path):
    job = tmp_path / "job.yaml"
    model = {**DIGITS["model"], "batch_norm": True}
    job.write_text(yaml.safe_dump({**DIGITS, "model": model, "batch": 131}))  # 1437 = 10·131 + 127; 127 in 8 shards
    assert dtrain("run", job, "--workers", 2, "--run-dir", tmp_path / "good", "-q").returncode == 0
    done = dtrain("run", job, "--workers", 2, "--run-dir", tmp_path / "bad", "-q", "--set", "batch=1430")  # 7 are left
    assert done.returncode == 2
    assert "mlp.py:" in done.stderr
    assert "shard 0 of step 1 has one value for a variance; choose batch and shards" in done.stderr
    assert "Traceback" not in done.stderr
    assert result_of(tmp_path / "bad")["step"] == 0
