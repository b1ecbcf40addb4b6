"""One fingerprint per job: whatever the number of workers, in processes or in this one, stopped and resumed or not."""

from __future__ import annotations

import signal
import subprocess

import pytest
import yaml

from dtrain.train.observer import Observer
from tests.support import (
    DIGITS,
    command,
    dtrain,
    events_of,
    nothing_left_behind,
    result_of,
    spec_of,
    steps_of,
    train,
    wait_until,
)

OPTIMIZERS = {
    "momentum": {"name": "momentum", "lr": 0.05, "clip_norm": 0.5, "schedule": {"name": "cosine", "warmup_steps": 4}},
    "adam": {"name": "adam", "lr": 2e-3, "clip_norm": 1.0},
}


@pytest.fixture(scope="module", params=sorted(OPTIMIZERS))
def job(request):
    """A job with a ragged last batch, dropout and clipping, and its fingerprint and chain in this process."""
    spec = spec_of(optimizer=OPTIMIZERS[request.param])
    outcome = train(spec, 0)
    return spec, outcome


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 8])
def test_workers_change_the_speed_and_never_the_result(job, workers):
    spec, alone = job
    with nothing_left_behind():
        outcome = train(spec, workers)
    assert outcome.status == "succeeded"
    assert (outcome.fingerprint, outcome.chain) == (alone.fingerprint, alone.chain)
    assert outcome.eval == alone.eval
    assert outcome.train_loss == alone.train_loss


def test_a_convolutional_network_has_one_fingerprint():
    """Shards of 16, 4 and 3 samples: three graphs, each with its own blocks of convolution and pooling."""
    model = {"name": "convnet", "filters": [4, 8], "hidden": [16]}
    spec = spec_of(model=model, epochs=1)
    alone = train(spec, 0)
    assert alone.status == "succeeded"
    assert [train(spec, workers).fingerprint for workers in (1, 2)] == [alone.fingerprint] * 2


def test_more_workers_than_shards(job):
    spec, alone = job
    assert train(spec, 10).fingerprint == alone.fingerprint


def test_clipping_is_on_in_these_jobs():
    """The matrix above would say little if the gradient never reached the bound."""
    clipped = []

    class Watch(Observer):
        def steps(self, records):
            clipped.extend(record.clip_scale for record in records)

    train(spec_of(optimizer=OPTIMIZERS["momentum"]), 0, Watch())
    assert min(clipped) < 1.0


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"shards": 4}, {"batch": 127}, {"model__dropout": 0.1}, {"optimizer__lr": 0.0021}]
)
def test_what_is_part_of_the_job_changes_the_fingerprint(change):
    assert train(spec_of(epochs=1, **change), 0).fingerprint != train(spec_of(epochs=1), 0).fingerprint


@pytest.mark.parametrize("batch", [5, 1437])
def test_fewer_samples_than_shards_and_the_whole_set_in_one_batch(batch):
    spec = spec_of(epochs=None, steps=4, batch=batch)
    assert train(spec, 3).fingerprint == train(spec, 0).fingerprint


def test_float64_jobs_have_one_fingerprint_too():
    spec = spec_of(epochs=1, dtype="float64")
    outcome = train(spec, 3)
    assert outcome.fingerprint == train(spec, 0).fingerprint
    assert outcome.parameters["layers"][0]["w"].dtype == "float64"


def test_a_stop_in_the_middle_of_an_epoch_and_a_resume_with_other_workers_change_nothing(tmp_path):
    """Ctrl-C at some step, then resume with 1 worker, then again with 3: the same end, each step recorded once."""
    job = tmp_path / "job.yaml"
    # 12 steps an epoch; long enough to be interrupted twice
    job.write_text(yaml.safe_dump({**DIGITS, "epochs": 300, "eval": {"every": "10 epoch"}}))
    whole = tmp_path / "whole"
    assert dtrain("run", job, "--workers", 2, "--run-dir", whole, "-q").returncode == 0
    run = tmp_path / "run"
    with nothing_left_behind(run):
        stopped_at = []
        for arguments in (["run", job, "--workers", 2, "--run-dir", run], ["resume", run, "--workers", 3]):
            process = subprocess.Popen(command(*arguments, "-q"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            count = len(stopped_at) + 1
            wait_until(lambda: sum(e["event"] == "first_step" for e in events_of(run)) == count)  # noqa: B023
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            assert process.returncode == 130
            result = result_of(run)
            assert result["status"] == "stopped"
            stopped_at.append(result["step"])
        assert 0 < stopped_at[0] < stopped_at[1] < 300 * 12
        done = dtrain("resume", run, "--workers", 1, "-q")
        assert done.returncode == 0, done.stderr
    for key in ("fingerprint", "digest_chain", "eval", "train_loss", "step"):
        assert result_of(run)[key] == result_of(whole)[key], key
    assert [s["step"] for s in steps_of(run)] == list(range(300 * 12))
    assert [s["loss"] for s in steps_of(run)] == [s["loss"] for s in steps_of(whole)]
