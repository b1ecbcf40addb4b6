"""The lock and the files of a run directory between real processes."""

import subprocess
import sys

import pytest

from dtrain.errors import InputError
from dtrain.jobs.run_directory import RunDirectory, write_atomically
from dtrain.jobs.spec import parse_spec

JOB = {
    "model": {"name": "softmax"},
    "data": {"name": "digits"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "batch": 32,
    "steps": 10,
}
HOLD = """
import sys
from dtrain.jobs.run_directory import RunDirectory
run = RunDirectory.open(sys.argv[1])
run.acquire()
run.write_endpoint("http://127.0.0.1:1/metrics", "t")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create("digits", root=tmp_path / "runs")
    run.write_job(parse_spec(JOB, base_dir=tmp_path))
    yield run
    run.release()


@pytest.fixture
def holder(run):
    """Another process that holds the run until it is killed or its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_one_process_at_a_time(run, holder):
    with pytest.raises(InputError) as caught:
        run.acquire()
    pid = holder.pid
    assert str(caught.value) == f"{run.path}: process {pid} runs it; wait for it, or stop it with kill -INT {pid}"
    assert (run.status(), run.holder()) == ("running", pid)
    assert run.read_endpoint() == {"url": "http://127.0.0.1:1/metrics", "token": "t", "pid": pid}


def test_a_killed_process_leaves_no_lock_and_no_endpoint(run, holder):
    (run.path / ".result.json.tmp").write_text("{")
    holder.kill()
    holder.wait()
    assert (run.status(), run.holder(), run.read_endpoint()) == ("failed", None, None)
    with run:
        assert run.status() == "running"
        assert not run.endpoint_file.exists()
        assert not (run.path / ".result.json.tmp").exists()


def test_children_do_not_inherit_the_lock(run):
    run.acquire()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    run.release()
    assert run.holder() is None
    child.communicate(b"\n")


def test_readers_asking_all_the_time_do_not_keep_a_runner_out(run):
    code = "import sys\nfrom dtrain.jobs.run_directory import RunDirectory\nr = RunDirectory.open(sys.argv[1])\n"
    code += "print('up', flush=True)\nwhile True: r.status()"
    readers = [subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE) for _ in range(1)]
    try:
        for reader in readers:
            reader.stdout.readline()
        for _ in range(20):
            run.acquire()
            run.release()
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"x" * 100_000)
    code = (
        "import sys\nfrom pathlib import Path\nfrom dtrain.jobs.run_directory import write_atomically\n"
        "for i in range(100): write_atomically(Path(sys.argv[1]), bytes([i]) * 100_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while writer.poll() is None:
        content = path.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1
    assert writer.returncode == 0
    assert path.read_bytes() == bytes([99]) * 100_000
