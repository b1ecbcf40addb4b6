"""One fingerprint per job with tables: whatever the workers, the hosts, the deaths and the stops."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import yaml

from dtrain.jobs.spec import JobSpec, parse_spec
from dtrain.train.observer import Observer
from tests.backends import run_mpi
from tests.faults import deaths
from tests.support import (
    dtrain,
    stop_and_resume,
    train,
)

SIZES = {"tables": 5, "rows": 400}
JOB: dict[str, Any] = {
    "name": "clicks",
    "model": {"name": "dlrm", **SIZES, "width": 6, "bottom": [8], "top": [12]},
    "data": {"name": "clicks", **SIZES, "samples": 600, "features": 3, "held_out": 61},
    "optimizer": {"name": "adagrad", "lr": 0.05, "clip_norm": 0.3},
    "batch": 128,
    "shards": 8,
    "epochs": 3,  # 539 samples: the last batch of an epoch has 27
}
JOBS: dict[str, dict[str, Any]] = {
    "adagrad": {"batch": 107, "shards": 7},  # 539 = 5·107 + 4: three shards of the last batch are empty
    "adam": {"optimizer": {"name": "adam", "lr": 0.01, "clip_value": 0.001, "weight_decay": 1e-3}},
    "float64": {"dtype": "float64", "optimizer": {"name": "momentum", "lr": 0.05}},
}
WORKERS = [*(("adagrad", w) for w in (1, 2, 3, 4, 8)), ("adam", 3), ("float64", 2)]


def spec_of(**changes: Any) -> JobSpec:
    return parse_spec({**JOB, **changes})


@cache
def alone(name: str) -> Any:
    """The outcome of a job in this process."""
    return train(spec_of(**JOBS[name]), 0)


@pytest.mark.parametrize(("name", "workers"), WORKERS)
def test_workers_change_the_speed_and_never_the_result(name, workers):
    outcome = train(spec_of(**JOBS[name]), workers)
    assert outcome.status == "succeeded"
    assert (outcome.fingerprint, outcome.chain) == (alone(name).fingerprint, alone(name).chain)
    assert outcome.eval == alone(name).eval


def test_what_was_planted_is_learnt():
    sizes = {"tables": 5, "rows": 20}
    data = {**JOB["data"], **sizes, "samples": 6000, "held_out": 1000}
    outcome = train(spec_of(model={"name": "dlrm", **sizes}, data=data, epochs=2), 0)
    assert outcome.eval["loss"] < 0.6
    assert outcome.eval["accuracy"] > 0.7


def test_the_norms_of_tables_are_part_of_the_gradients():
    seen = []

    class Watch(Observer):
        def steps(self, records):
            seen.extend(records)

    train(spec_of(), 0, Watch())
    told = [r for r in seen if r.parameter_norms is not None]
    assert told
    assert min(r.clip_scale for r in seen) < 1.0
    for record in told:
        assert record.parameter_norms["tables"] > 0
        squares = sum(norm**2 for norm in record.parameter_norms.values())
        assert squares == pytest.approx(record.gradient_norm**2, rel=1e-9)


def test_what_is_told_of_sampled_steps_is_the_same_for_any_number_of_workers():
    found = []
    for workers in (0, 3):
        seen = []

        class Watch(Observer):
            def steps(self, records):
                seen.extend(records)  # noqa: B023

        train(spec_of(epochs=2), workers, Watch(), norms_every=1)
        found.append([(r.weight_norms, r.update_norms, r.noise) for r in seen])
    assert found[0] == found[1]
    weights, updates, noise = found[0][0]
    assert 0 < updates["tables"] < weights["tables"]
    assert noise["scale"] > 0


@pytest.mark.parametrize(
    ("phase", "rank"), [("gradients", 1), ("row sum", 0), ("row sum", 1), ("rows", 0), ("rows", 1)]
)
def test_a_death_inside_each_phase(phase, rank):
    """A worker dies at step 5 with its part half done, and rubbish where it was at work."""
    outcome, is_dead = deaths.run(spec_of(**JOBS["adam"]), phase, rank)
    assert is_dead
    assert outcome.restarts == 1
    assert outcome.fingerprint == alone("adam").fingerprint


def test_a_stop_and_a_resume_with_other_workers_change_nothing(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**JOB, "epochs": 100, "eval": {"every": "50 epoch"}}))
    whole, run = tmp_path / "whole", tmp_path / "run"
    stop_and_resume(job, whole, run, (1, 2, 3), 100 * 5)


@pytest.mark.parametrize(("ranks", "ranks_per_host"), [(2, 1), (5, 2)])
def test_between_hosts_the_result_is_the_same(tmp_path, ranks, ranks_per_host):
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**JOB, **JOBS["adagrad"]}))
    done = run_mpi("mpich", ranks, "run", job, "--run-dir", tmp_path / "run", "-q", "--json",
                   ranks_per_host=ranks_per_host)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])["fingerprint"] == alone("adagrad").fingerprint


def test_the_gradients_of_a_job_with_tables_are_checked(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**JOB, "data": {**JOB["data"], "samples": 100, "held_out": 0}}))
    done = dtrain("check", job, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert found["right"]
    assert "tables" in {row["name"] for row in found["gradients"]}
    assert found["all_reduce"]["relative_error"] < 1e-12
