"""Jobs in the background of this machine: started, listed, followed, stopped, resumed and copied, as real processes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dtrain.comm.memory import VALUE_BYTES
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import parse_spec
from tests.support import DIGITS, braked_model, command, dtrain, nothing_left_behind, result_of, wait_until

LONG: dict[str, Any] = {
    "model": {"entry": "my_model.py"},
    "optimizer": {"name": "momentum", "lr": 0.01},
    "epochs": None,
    "steps": 4000,
    "eval": {"every": 20},
    "checkpoint": {"every": 40},
}
"""Keys of a job that lasts until its brake is released (see ``braked_model``)."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Runs are kept in the test's own folder, and no cluster is known."""
    monkeypatch.chdir(tmp_path)
    for name in ("DTRAIN_RUNS", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def brake(tmp_path):
    return tmp_path / "brake"


@pytest.fixture
def job(tmp_path, brake):
    """Write a job file with these keys changed, and return its path; a model lies beside it."""
    (tmp_path / "my_model.py").write_text(braked_model(brake))

    def write(**changes):
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**DIGITS, **changes}))
        return path

    return write


def status(job_id):
    done = dtrain("status", job_id, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def one_line(done, code):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_job_is_submitted_followed_stopped_and_resumed_to_the_same_fingerprint(job, brake, tmp_path):
    path = job(**LONG)
    with nothing_left_behind(tmp_path):
        started = dtrain("submit", path, "--workers", 2, "--name", "mine")
        assert started.returncode == 0, started.stderr
        job_id = started.stdout.strip()
        run = tmp_path / "runs" / job_id
        assert job_id.startswith("mine/")
        assert f"dtrain logs -f {job_id}" in started.stderr
        follower = subprocess.Popen(command("logs", "-f", run.name), stdout=subprocess.PIPE, text=True)
        state = wait_until(lambda: (s := status(job_id))["step"] and s)
        assert (state["status"], state["steps"], state["exit_code"]) == ("running", 4000, None)
        assert 0 < state["step"] < 4000
        stopped = dtrain("stop", run.name)
        assert stopped.returncode == 0, stopped.stderr
        assert stopped.stdout.startswith("stopped at step ")
        said, _ = follower.communicate(timeout=30)
        assert follower.returncode == 0
        assert "4000 steps of 128 samples in 8 shards on 2 workers" in said
        assert "stopped after" in said
        assert status(run)["exit_code"] == 143
        again = dtrain("stop", job_id)
        assert (again.returncode, again.stderr) == (0, f"{job_id} is stopped already\n")
        brake.unlink()
        resumed = dtrain("resume", run.name, "--detach", "--workers", 1, "--json")
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout)["id"] == job_id
        followed = dtrain("logs", "-f", job_id)
        assert followed.returncode == 0
        assert "resumed at step" in followed.stdout
        assert f"stopped after {result_step(stopped.stdout)} steps" in followed.stdout  # the log of both
    end = status(job_id)
    assert (end["status"], end["step"], end["exit_code"]) == ("succeeded", 4000, 0)
    undisturbed = dtrain("run", path, "--workers", 0, "-q", "--json")
    assert json.loads(undisturbed.stdout)["fingerprint"] == end["fingerprint"]
    assert "has succeeded already" in one_line(dtrain("resume", job_id, "--detach"), 2)


def result_step(sentence):
    return int(sentence.split("step ")[1].split()[0])


def test_waiting_leaves_with_the_jobs_own_exit_code(job):
    good = dtrain("submit", job(epochs=1), "--workers", 1, "--wait")
    assert good.returncode == 0, good.stderr
    assert "succeeded after 12 steps" in good.stdout
    bad = dtrain("submit", job(optimizer={"name": "momentum", "lr": 1e25}), "--workers", 1, "--wait", "--json")
    assert bad.returncode == 3
    result = json.loads(bad.stdout)
    assert (result["status"], result["exit_code"]) == ("failed", 3)
    assert result["error"] in bad.stderr


def test_the_list_is_of_all_runs(job, tmp_path, monkeypatch):
    assert dtrain("list").stderr == "there are no jobs\n"
    monkeypatch.setenv("DTRAIN_RUNS", str(tmp_path / "kept"))
    ids = [dtrain("submit", job(epochs=1), "--name", name, "--wait").stderr.strip() for name in ("a", "b")]
    ran = dtrain("run", job(epochs=1), "--workers", 0, "-q", "--json")
    ids.append("digits/" + Path(json.loads(ran.stdout)["run_directory"]).name)
    heading, *rows = dtrain("list").stdout.splitlines()
    assert heading.split() == ["id", "status", "step", "loss", "age"]
    assert [row.split()[:3] for row in rows] == [[i, "succeeded", "12/12"] for i in ids]
    listed = json.loads(dtrain("list", "--json").stdout)
    assert [(j["id"], j["status"], j["step"]) for j in listed] == [(i, "succeeded", 12) for i in ids]
    assert listed[0]["loss"] == pytest.approx(float(rows[0].split()[3]), abs=1e-4)
    assert "succeeded at step 12 of 12" in dtrain("logs", ids[-1]).stdout
    controller, terminal = pty.openpty()
    shown = subprocess.run(command("list"), stdout=terminal, check=True, env={**os.environ, "COLUMNS": "100"})
    os.close(terminal)
    table = os.read(controller, 65536).decode()
    os.close(controller)
    assert shown.returncode == 0
    assert "\x1b[" in table
    assert all(i in table for i in ids)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--set", "optimizr.lr=1"], "did you mean optimizer?"),
        ({}, ["--set", "model.hiden=[3]"], "hiden"),
        ({}, ["--workers", "two"], "--workers: expected auto or a number"),
        ({}, ["--name", "a/b"], "name"),
        ({"model": {"entry": "wrong.py"}}, [], "wrong.py:10"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(job, tmp_path, changes, arguments, message):
    (tmp_path / "wrong.py").write_text(braked_model(tmp_path / "unused", features=63))
    path = job(**changes)
    for verb in ("submit", "validate"):
        if verb == "submit" or "--name" not in arguments:
            assert message in one_line(dtrain(verb, path, *arguments), 2)
    assert not (tmp_path / "runs").exists()


def test_a_job_that_cannot_start_says_why(job, tmp_path):
    """What is wrong only in the process that runs it."""
    path = job(model={"entry": "my_model.py"})
    with open(tmp_path / "my_model.py", "a") as file:
        file.write("import sys\nif 'resume' in sys.argv:\n    raise RuntimeError('no licence')\n")
    line = one_line(dtrain("submit", path), 2)
    assert "RuntimeError: no licence" in line
    assert line.startswith("dtrain: model.entry")


def test_a_model_is_resumed_with_what_it_imports(job, tmp_path):
    """Model and helper are copies of when the job was submitted."""
    path = job(**{**LONG, "model": {"entry": "code/my_model.py"}})
    (tmp_path / "code").mkdir()
    (tmp_path / "my_model.py").rename(tmp_path / "code" / "helper.py")
    (tmp_path / "code" / "my_model.py").write_text("from helper import init, loss, metrics\n")
    run = tmp_path / "runs" / dtrain("submit", path, "--workers", 1).stdout.strip()
    dtrain("stop", run)
    (tmp_path / "code" / "helper.py").write_text("raise SystemExit('edited')")
    resumed = dtrain("resume", run, "--detach")
    assert resumed.returncode == 0, resumed.stderr
    wait_until(lambda: status(run)["step"])
    assert dtrain("stop", run).stdout.startswith("stopped at step")


def test_a_killed_job_has_failed_and_is_resumed(job, brake, tmp_path):
    run = tmp_path / "runs" / dtrain("submit", job(**LONG), "--workers", 2).stdout.strip()
    wait_until(lambda: list((run / "checkpoints").glob("step-*")))
    os.kill(status(run)["pid"], signal.SIGKILL)
    wait_until(lambda: status(run)["status"] == "failed")
    assert (status(run)["exit_code"], status(run)["error"]) == (3, "it ended without a result")
    assert dtrain("stop", run).stderr.endswith("has failed already\n")
    brake.unlink()
    done = dtrain("resume", run, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "succeeded"


def test_who_waits_may_leave_and_the_job_goes_on(job):
    waiting = subprocess.Popen(
        command("submit", job(**LONG), "--workers", 1, "--wait"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    job_id = waiting.stderr.readline().strip()
    waiting.stdout.readline()
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert said == f"\nthe job goes on; stop it with dtrain stop {job_id}\n"
    assert status(job_id)["status"] == "running"
    assert dtrain("stop", job_id).stdout.startswith("stopped at step")


def test_stop_without_waiting_returns_at_once(job, tmp_path):
    run = tmp_path / "runs" / dtrain("submit", job(**LONG), "--workers", 1).stdout.strip()
    assert dtrain("stop", run, "--no-wait").stdout.startswith("running")
    wait_until(lambda: status(run)["status"] == "stopped")


@pytest.fixture
def held(tmp_path):
    """A run that this process holds."""
    run = RunDirectory.create("held", root=tmp_path / "runs")
    run.write_job(parse_spec({**DIGITS, "name": "held"}, base_dir=tmp_path))
    run.acquire()
    yield run
    run.release()


def test_a_log_is_followed_through_truncation_to_the_end_of_the_job(held):
    held.log_file.write_text("first\n")
    follower = subprocess.Popen(command("logs", "-f", held.id), stdout=subprocess.PIPE, text=True)
    assert follower.stdout.readline() == "first\n"
    with open(held.log_file, "a") as log:
        log.write("second, and longer\n")
    assert follower.stdout.readline() == "second, and longer\n"
    held.log_file.write_text("anew\n")
    assert follower.stdout.readline() == "anew\n"
    with open(held.log_file, "a") as log:
        log.write("last words")
    held.release()
    assert follower.communicate(timeout=20)[0] == "last words"
    assert follower.returncode == 0


def test_the_events_of_a_run_without_a_log_are_followed_to_its_end(held):
    held.append_event("started", steps=36, step=0)
    follower = subprocess.Popen(command("logs", "-f", held.id), stdout=subprocess.PIPE, text=True)
    assert follower.stdout.readline().startswith(
        f"held/{held.id} was not started by dtrain submit: what it said is in "
    )
    assert follower.stdout.readline().endswith("Z started: steps 36, step 0\n")
    held.append_event("worker_lost", text="worker 1 was killed by signal 9", worker=1)
    assert follower.stdout.readline().endswith("Z worker_lost: worker 1 was killed by signal 9\n")
    held.append_event("checkpoint", step=24)
    held.release()
    *events, end = follower.communicate(timeout=20)[0].splitlines()
    assert [line.partition("Z ")[2] for line in events] == ["checkpoint: step 24"]
    assert "failed" in end
    assert follower.returncode == 0


def test_a_run_of_another_host_is_named_and_left_alone(held):
    """An MPI run, whose rank 0 holds the lock, may be on another host of a shared disk."""
    held.lock_file.write_text("4711\nnode7\n")
    line = one_line(dtrain("stop", held.id), 2)
    assert line == f"dtrain: held/{held.id}: process 4711 on node7 runs it; stop it there: kill -TERM 4711"
    state = status(held.id)
    assert (state["status"], state["pid"], state["host"]) == ("running", 4711, "node7")
    assert "process 4711 on node7 runs it" in one_line(dtrain("resume", held.id, "--detach"), 2)
    held.lock_file.write_text("4711\n")  # as dtrain 0.1 wrote it
    assert status(held.id)["pid"] == 4711


def test_unknown_and_ambiguous_ids(job, tmp_path):
    for verb in ("status", "logs", "stop", "resume", "fetch"):
        assert "no such run in runs" in one_line(dtrain(verb, "nobody"), 2)
    for name in ("a", "b"):
        run = RunDirectory.create(name, path=tmp_path / "runs" / name / "same")
        run.write_job(parse_spec({**DIGITS, "name": name}, base_dir=tmp_path))
    assert "several runs have this id: a/same, b/same; say which" in one_line(dtrain("status", "same"), 2)
    assert dtrain("status", "b/same").stdout == "pending\n"
    assert "was never started; start it with dtrain resume b/same" in one_line(dtrain("stop", "b/same"), 2)


def test_a_run_is_copied_with_its_newest_checkpoint(job, tmp_path):
    path = job(epochs=2, checkpoint={"every": 6, "keep": 3})
    job_id = dtrain("submit", path, "--wait", "--workers", 1).stderr.strip()
    assert "is on this machine already" in one_line(dtrain("fetch", job_id), 2)
    assert dtrain("fetch", job_id, "copy", "--checkpoints", 2).stdout == "copy\n"
    copy = tmp_path / "copy"
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["step-00000018", "step-00000024"]
    assert result_of(copy) == result_of(tmp_path / "runs" / job_id)
    assert status(copy)["status"] == "succeeded"
    assert "copy: is there already" in one_line(dtrain("fetch", job_id, "copy"), 2)


def test_validate_says_what_a_job_needs_and_runs_nothing(job, tmp_path):
    done = dtrain("validate", job(), "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sizes = 64 * 48 + 48 + 48 * 32 + 32 + 32 * 10 + 10
    assert (found["parameters"], found["steps"], found["train_samples"], found["workers"]) == (sizes, 36, 1437, 2)
    assert found["shard_samples"] == [16, 4, 3]  # of a batch of 128, and of the last one of 29
    assert 8 * 4 * sizes < found["shared_bytes"] < 8 * VALUE_BYTES  # without sums over shards
    assert f"{sizes:,} float32 in 6 arrays" in dtrain("validate", job()).stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brake", "job.yaml", "my_model.py"]


def test_the_doctor_finds_what_is_installed(monkeypatch):
    report = json.loads(dtrain("doctor", "--json").stdout)
    states = {(c["part"], c["name"]): c["state"] for c in report["checks"]}
    assert report["local"] is True
    assert states["local", "numerics"] == states["local", "memory"] == "ok"
    assert {"mpi4py", "mpiexec"} <= {name for part, name in states if part == "mpi"}
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    done = dtrain("doctor")
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        assert line.split()[0] in ("ok", "missing", "broken")


def test_a_cluster_that_is_not_there_is_one_line(job, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    for arguments in (["submit", job()], ["list"], ["status", "x"]):
        line = one_line(dtrain(*arguments), 2)
        assert "127.0.0.1:1: cannot be reached: Connection refused" in line
    assert dtrain("list", "--address", "local").stderr == "there are no jobs\n"
    code = "import sys; sys.modules['ray'] = None; from dtrain.cli import main; main()"
    done = subprocess.run(
        [command()[0], "-c", code, "list", "--address", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Ray is not installed here; install it with pip install 'dtrain[ray]'" in one_line(done, 2)
