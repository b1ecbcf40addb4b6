"""What a Ray job runs, in a real shell and without Ray."""

from __future__ import annotations

import os
import subprocess

import pytest

from dtrain import __version__
from dtrain.jobs import ray_jobs
from dtrain.jobs.ray_jobs import entrypoint
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import parse_spec
from tests.support import DIGITS, command, wait_until


@pytest.fixture
def shell(tmp_path):
    """Run a shell line as Ray does, with a dtrain that says its arguments, or none."""

    def run(line: str, version: str | None = __version__, **environment: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "dtrain"
        script.unlink(missing_ok=True)
        if version is not None:
            script.write_text(f'#!/bin/sh\n[ "$1" = version ] && echo {version} && exit\necho "pid $$: $*"; exit 5\n')
            script.chmod(0o755)
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / "job.yaml").write_text("x: 1\n")
        where = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(tmp_path / "home dir"), **environment}
        return subprocess.run(
            ["/bin/sh", "-c", line], cwd=tmp_path / "work", env=where, capture_output=True, text=True, check=False
        )

    return run


def test_a_job_runs_in_its_directory_with_its_files_and_its_own_exit_code(shell, tmp_path):
    line = entrypoint("a/1", ray_jobs.run_command(), ray_jobs.PREPARE)
    assert "\n" not in line
    done = shell(line)
    run = tmp_path / "home dir" / "dtrain-runs" / "a" / "1"
    assert done.returncode == 5
    assert done.stdout.splitlines()[0] == f"dtrain {__version__} starts in {run}"
    assert f"run job.yaml --run-dir {run} --json" in done.stdout.splitlines()[1]
    assert os.listdir(run / "files") == ["job.yaml"]
    elsewhere = shell(entrypoint("a/1", ray_jobs.run_command(3, is_resumed=True)), DTRAIN_RUNS="/data")
    assert "resume /data/a/1 --json" in elsewhere.stdout
    assert elsewhere.stdout.endswith("--workers 3\n")


@pytest.mark.parametrize(("version", "said"), [("9.9.9", "9.9.9"), (None, "not found")])
def test_another_version_or_none_runs_nothing(shell, tmp_path, version, said):
    done = shell(entrypoint("a/1", ray_jobs.run_command(), ray_jobs.PREPARE), version)
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"dtrain is not {__version__} here: ")
    assert said in line
    assert not (tmp_path / "home dir").exists()


def test_the_shell_becomes_the_job_so_that_a_signal_reaches_it(tmp_path):
    script = tmp_path / "dtrain"
    script.write_text(f'#!/bin/sh\n[ "$1" = version ] && echo {__version__} && exit\nexec sleep 60\n')
    script.chmod(0o755)
    process = subprocess.Popen(
        entrypoint("a/1", ray_jobs.run_command()),
        shell=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "starts in" in process.stdout.readline()
    process.terminate()
    assert process.wait(10) == -15


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_log_that_carried_a_parcel_is_emptied_when_the_receiver_says_so(tmp_path, when):
    """The receiver's signal may come while the last line is still being written."""
    run = RunDirectory.create("a", path=tmp_path / "run")
    run.write_job(parse_spec(DIGITS, base_dir=tmp_path))
    run.metrics_file.write_bytes(bytes(30_000))
    with open(tmp_path / "log", "a") as log:
        process = subprocess.Popen(command("pack", run.path, "--hold"), stdout=log, stderr=log)
    wait_until(lambda: (tmp_path / "log").stat().st_size > (0 if when == "before" else 20_000))
    if when == "after":
        wait_until(lambda: "dtrain parcel ends" in (tmp_path / "log").read_text())
    process.terminate()
    assert process.wait(30) == 0
    assert (tmp_path / "log").stat().st_size == 0
