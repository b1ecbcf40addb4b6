"""How a run is named, and how it stands, from its files alone."""

import json
import os

import pytest

from dtrain.errors import InputError
from dtrain.jobs.run_directory import RunDirectory, runs_root
from dtrain.jobs.runs import all_runs, describe, find_run, run_id
from dtrain.jobs.spec import parse_spec

JOB = {
    "model": {"name": "softmax"},
    "data": {"name": "digits"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "batch": 32,
    "steps": 10,
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make runs by name/id below a root of their own."""
    monkeypatch.setenv("DTRAIN_RUNS", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)

    def run(name, identity):
        directory = RunDirectory.create(name, path=runs_root() / name / identity)
        directory.write_job(parse_spec({**JOB, "name": name}, base_dir=tmp_path))
        return directory

    return run


def test_the_root_is_the_environments_or_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("DTRAIN_RUNS", raising=False)
    assert str(runs_root()) == "runs"
    monkeypatch.setenv("DTRAIN_RUNS", "~/kept")
    assert runs_root() == runs_root().home() / "kept"
    monkeypatch.setenv("DTRAIN_RUNS", str(tmp_path))
    assert RunDirectory.create("a").path.parent == tmp_path / "a"


def test_a_run_is_found_by_id_by_name_and_id_and_by_path(make, tmp_path):
    run, elsewhere = make("a", "20260101-000000-abcdef"), RunDirectory.create("b", path=tmp_path / "mine")
    elsewhere.write_job(parse_spec(JOB))
    for name in (run.id, f"a/{run.id}", str(run.path), os.path.relpath(run.path)):
        assert find_run(name).path == run.path
    assert find_run("mine").path == tmp_path / "mine"
    assert run_id(run.path) == f"a/{run.id}"
    assert run_id(elsewhere.path) == str(tmp_path / "mine")


@pytest.mark.parametrize("name", ["", ".", "..", "a", "a/", "/", "x/../a/one", "one/", "*", "a/*"])
def test_other_names_find_nothing(make, name):
    make("a", "one")
    with pytest.raises(InputError) as caught:
        find_run(name)
    assert "\n" not in str(caught.value)


def test_an_id_of_two_runs_is_ambiguous(make):
    make("b", "same"), make("a", "same")
    with pytest.raises(InputError, match=r"^same: several runs have this id: a/same, b/same; say which$"):
        find_run("same")
    assert find_run("b/same").path.parent.name == "b"


def test_the_list_is_in_the_order_of_time(make):
    runs = [make("b", "1"), make("a", "3"), make("a", "2")]
    for age, run in enumerate(reversed(runs)):
        os.utime(run.job_file, (1e9 - age, 1e9 - age))
    (runs_root() / "a" / "no-run").mkdir()
    assert [run.path for run in all_runs()] == [run.path for run in runs]


def test_a_run_is_described_from_what_is_there(make):
    run = make("a", "one")
    job = describe(run)
    assert (job.id, job.status, job.step, job.steps, job.loss, job.exit_code) == (
        "a/one",
        "pending",
        None,
        None,
        None,
        None,
    )
    assert job.sentence() == "pending"
    with run:
        run.append_event("started", steps=10, step=0)
        record = {"type": "step", "step": 6, "loss": 0.25}
        run.metrics_file.write_text(f'{json.dumps(record)}\n{{"type": "eval", "step": 7}}\n{{"type": "st')
        job = describe(run)
        assert (job.status, job.step, job.steps, job.loss, job.exit_code) == ("running", 7, 10, 0.25, None)
        assert job.to_json()["pid"] == os.getpid()
        assert job.sentence() == "running at step 7 of 10, loss 0.2500"
    job = describe(run)
    assert (job.status, job.step, job.exit_code) == ("failed", 7, 3)  # it died without a word
    run.write_result({"status": "stopped", "step": 8, "train_loss": 0.125, "exit_code": 143, "fingerprint": "ab"})
    job = describe(run)
    assert (job.status, job.step, job.loss, job.exit_code) == ("stopped", 8, 0.125, 143)
    assert job.to_json()["fingerprint"] == "ab"


def test_the_newest_step_is_found_at_the_end_of_a_long_log(make):
    run = make("a", "one")
    lines = (json.dumps({"type": "step", "step": step, "loss": 1.0, "pad": "x" * 100}) for step in range(5000))
    run.metrics_file.write_text("".join(f"{line}\n" for line in lines))
    assert describe(run).step == 5000
