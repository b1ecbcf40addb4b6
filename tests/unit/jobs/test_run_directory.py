"""The run directory: its files, its lock, and where a reader is told the run stands."""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat

import pytest
import yaml

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.run_directory import Holder, RunDirectory, write_atomically
from dtrain.jobs.spec import load_spec, parse_spec
from dtrain.monitor.lines import read_lines

JOB = {
    "model": {"name": "softmax"},
    "data": {"name": "digits"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "batch": 32,
    "steps": 10,
}


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create("digits", root=tmp_path / "runs")
    run.write_job(parse_spec(JOB, base_dir=tmp_path))
    yield run
    run.release()


def test_a_fresh_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [RunDirectory.create("digits") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    for run in runs:
        assert run.path.parent == tmp_path / "runs" / "digits"
        assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", run.id)
        assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "lock"]
        assert run.status() == "pending"


def test_a_directory_of_ones_own(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create("x", path=tmp_path / "empty").path == tmp_path / "empty"
    assert RunDirectory.create("x", path=tmp_path / "deep" / "new").path == tmp_path / "deep" / "new"


def test_nothing_is_overwritten(tmp_path, run):
    with pytest.raises(InputError, match=r"holds a run already; go on with dtrain resume .*, or name another$"):
        RunDirectory.create("x", path=run.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"full: is not empty; name another directory for the run$"):
        RunDirectory.create("x", path=tmp_path / "full")
    with pytest.raises(InputError, match=r"thesis\.tex: cannot make the run directory: File exists$"):
        RunDirectory.create("x", path=tmp_path / "full" / "thesis.tex")


def test_what_is_no_run_directory(tmp_path):
    with pytest.raises(InputError, match=r"gone: not a run directory: no such directory; expected one that dtrain run"):
        RunDirectory.open(tmp_path / "gone")
    with pytest.raises(InputError, match=r": not a run directory: has no job\.yaml; expected one that dtrain run"):
        RunDirectory.open(tmp_path)


def test_the_job_comes_back_and_is_itself_a_job_file(run, tmp_path):
    spec = RunDirectory.open(run.path).read_job()
    assert spec == parse_spec(JOB, base_dir=tmp_path)
    assert load_spec(run.job_file) == spec


def test_a_damaged_job_is_named(run):
    run.job_file.write_text("batch: [\n")
    with pytest.raises(InputError, match=r"job\.yaml:2: not valid YAML"):
        run.read_job()
    run.job_file.write_text("- 1\n")
    with pytest.raises(InputError, match=r"job\.yaml: damaged; expected a mapping$"):
        run.read_job()


@pytest.mark.parametrize("attribute", [None, "Net"])
def test_the_users_model_is_kept_as_it_was(tmp_path, attribute):
    model = tmp_path / "my_model.py"
    model.write_text("x = 1\n")
    entry = f"my_model.py:{attribute}" if attribute else "my_model.py"
    spec = parse_spec(JOB | {"model": {"entry": entry, "width": 3}}, base_dir=tmp_path)
    digest = spec.digest()
    run = RunDirectory.create("x", root=tmp_path / "runs")
    run.write_job(spec)
    model.write_text("x = 2\n")
    again = run.read_job()
    assert again.entry().file == run.path / "model" / "my_model.py"
    assert again.entry().file.read_text() == "x = 1\n"
    assert (again.entry().attribute, again.model.options) == (attribute, {"width": 3})
    assert (again.base_dir, again.digest()) == (str(tmp_path), digest)
    model.unlink()
    assert run.read_job() == again


def test_a_model_that_is_gone(tmp_path):
    spec = parse_spec(JOB | {"model": {"entry": "gone.py"}}, base_dir=tmp_path, check_files=False)
    run = RunDirectory.create("x", root=tmp_path / "runs")
    with pytest.raises(InputError, match=r"gone\.py: model\.entry cannot be copied: No such file or directory$"):
        run.write_job(spec)
    assert not run.job_file.exists()


def test_one_object_at_a_time_in_a_process(run, monkeypatch):
    monkeypatch.setattr("dtrain.jobs.run_directory._READER_SECONDS", 0.0)
    other = RunDirectory.open(run.path)
    with run:
        run.acquire()  # holding it already is no mistake
        assert other.status() == run.status() == "running"
        with pytest.raises(InputError, match=f"process {os.getpid()} runs it"):
            other.acquire()
        assert other.status() == "running"  # asking did not let go
    with other:
        assert run.holder() == os.getpid()


def test_another_reader_is_no_runner(run):
    with run.lock_file.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert run.status() == "pending"


def test_the_status_through_a_life(run):
    assert run.status() == "pending"
    with run:
        assert run.status() == "running"
        run.write_result({"status": "stopped", "step": 3})
        assert run.status() == "running"
    assert run.status() == "stopped"
    with run:
        run.discard_result()
        run.discard_result()
    assert run.status() == "failed"  # it went on and ended without a word
    with run:
        run.write_result({"status": "succeeded"})
    assert run.status() == "succeeded"


def test_the_result_is_strict_json(run):
    run.write_result({"status": "failed", "train_loss": float("nan"), "eval": {"loss": float("inf")}})
    text = run.result_file.read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "status": "failed",
        "train_loss": "NaN",
        "eval": {"loss": "Infinity"},
    }
    assert run.read_result() == json.loads(text)
    run.result_file.write_text("{torn")
    assert run.read_result() is None


def test_the_endpoint_is_for_the_owner_only(run):
    mask = os.umask(0)
    try:
        with run:
            run.write_endpoint("http://127.0.0.1:1/metrics", "secret")
            assert stat.S_IMODE(run.endpoint_file.stat().st_mode) == 0o600
            assert run.read_endpoint()["token"] == "secret"
    finally:
        os.umask(mask)
    assert not run.endpoint_file.exists()


def test_events_are_lines(run):
    with run:
        run.append_event("worker_lost", worker=3, reason="killed")
    RunDirectory.open(run.path).append_event("resumed")
    events = [values for values, _ in read_lines(run.events_file)]
    assert [event["event"] for event in events] == ["worker_lost", "resumed"]
    assert (events[0]["worker"], events[0]["reason"]) == (3, "killed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", events[0]["time"])


def test_a_full_disk_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, hard))
    try:
        with pytest.raises(DtrainError, match=r"a\.json: cannot be written: File too large; make room or give access$"):
            write_atomically(path, b"newer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.json", b"old")]


def test_the_process_that_holds_the_lock_is_named(run, monkeypatch):
    monkeypatch.setattr("dtrain.jobs.run_directory._READER_SECONDS", 0.0)
    other = RunDirectory.open(run.path)
    with other:
        other.lock_file.write_text("4321\n")
        assert run.holder() == 4321
        with pytest.raises(InputError) as caught:
            run.acquire()
        assert str(caught.value) == f"{run.path}: process 4321 runs it; wait for it, or stop it with kill -INT 4321"
        other.lock_file.write_text("")
        with pytest.raises(InputError, match="process unknown runs it; wait for it, or stop it with Ctrl-C"):
            run.acquire()
        assert run.status() == "running"


def test_the_lock_says_which_process_of_which_host(run):
    assert run.process() is None
    run.acquire()
    assert run.lock_file.read_text() == f"{os.getpid()}\n{socket.gethostname()}\n"
    assert (run.process(), run.process().is_here) == (Holder(os.getpid(), socket.gethostname()), True)
    other = RunDirectory.open(run.path)
    assert other.process() == run.process()
    run.lock_file.write_text("4711\nnode7\n")
    assert (str(other.process()), other.process().is_here) == ("process 4711 on node7", False)
    for text, pid in (("4711\n", 4711), ("4711", 4711), ("", 0), ("half\n", 0)):  # by dtrain 0.1; not yet written
        run.lock_file.write_text(text)
        assert (other.process(), other.process().is_here) == (Holder(pid, ""), True)


def test_files_that_came_with_a_job_are_where_its_paths_start(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.files.mkdir(parents=True)
    run = RunDirectory.create("x", path=run.path)
    run.write_job(parse_spec(JOB, base_dir=tmp_path / "gone"))
    assert yaml.safe_load(run.job_file.read_text())["base_dir"] == "files"
    moved = RunDirectory(run.path.rename(tmp_path / "moved"))
    assert moved.read_job().base_dir == str(moved.files)


def test_a_model_is_kept_with_the_python_files_beside_it(tmp_path, monkeypatch):
    for name in ("my_model.py", "helper.py", "locked.py", "notes.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "dangling.py").symlink_to("nowhere")
    copy = shutil.copyfile

    def refuse(source, target):
        if source.name == "locked.py":
            raise PermissionError(13, "Permission denied")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", refuse)
    run = RunDirectory.create("x", root=tmp_path / "runs")
    run.write_job(parse_spec(JOB | {"model": {"entry": "my_model.py"}}, base_dir=tmp_path))
    assert sorted(path.name for path in (run.path / "model").iterdir()) == ["helper.py", "my_model.py"]
    assert run.read_job().model.entry == str(run.path / "model" / "my_model.py")
