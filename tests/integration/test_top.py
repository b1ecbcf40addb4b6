"""`dtrain top`: one screen of a run that has ended, a run that lasts on a pseudo-terminal, and a job by its log."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dtrain.errors import InputError
from dtrain.jobs.job import Job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.top import FilesOfRun, LogOfJob, as_plain, source_of
from dtrain.monitor.progress import Progress
from dtrain.monitor.records import EvalRecord, StepRecord
from tests.support import DIGITS, alive, braked_model, command, dtrain, has_stepped, result_of, steps_of, wait_until


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The directory of a short run."""
    folder = tmp_path_factory.mktemp("top")
    (folder / "job.yaml").write_text(yaml.safe_dump({**DIGITS, "epochs": 1}))
    done = dtrain("run", folder / "job.yaml", "--workers", 2, "--run-dir", folder / "run", "-q")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_run_that_has_ended(ended):
    done = dtrain("top", ended, "--once", env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    last, result = steps_of(ended)[-1], result_of(ended)
    lines = done.stdout.splitlines()
    assert lines[0] == f"succeeded  {ended}"
    assert lines[1].endswith("step 12/12  epoch 1/1  100 %")
    assert lines[2].startswith(f"loss      {last['loss']:.4f}")
    assert (
        lines[2]
        .rstrip()
        .endswith(f"accuracy {100 * result['eval']['accuracy']:.2f} %  eval loss {result['eval']['loss']:.4f}")
    )
    assert lines[3].startswith(f"grad norm {last['gradient_norm']:.4f}")
    assert [line.split()[:2] for line in lines if line.strip()[:1].isdigit() and ":" not in line] == [
        ["0", "0"],
        ["1", "1"],
    ]
    assert "\x1b" not in done.stdout


def test_the_same_as_json(ended):
    done = dtrain("top", ended, "--json")
    plain = json.loads(done.stdout)
    last, result = steps_of(ended)[-1], result_of(ended)
    assert (plain["status"], plain["step"], plain["steps"]) == ("succeeded", 12, 12)
    assert (plain["loss"], plain["gradient_norm"]) == (last["loss"], last["gradient_norm"])
    assert plain["eval"] == result["eval"]
    assert plain["alerts"] == []
    assert [w["rank"] for w in plain["workers"]] == [0, 1]
    assert [w["shards"] for w in plain["workers"]] == [4, 4]
    assert all(w["host"] and w["phase_seconds"]["forward"] > 0 for w in plain["workers"])


def test_a_run_that_is_resumed_meanwhile_is_read_anew(ended, tmp_path):
    """Its record is cut back to the checkpoint, and a new process has not made a step yet."""
    run = RunDirectory(Path(shutil.copytree(ended, tmp_path / "run")))
    source = FilesOfRun(run)
    source.read()
    assert (source.view.step, len(source.view.loss.points(99))) == (12, 12)
    assert source.view.stepped_at == run.metrics_file.stat().st_mtime
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    run.metrics_file.write_bytes(b"".join(lines[:5]))
    run.append_event("started", steps=12, step=5, steps_per_epoch=12)
    source.read()
    assert (source.view.step, len(source.view.loss.points(99))) == (5, 5)
    assert (source.view.stepped_at, source.view.members) == (None, ())
    run.metrics_file.write_bytes(b"".join(lines[:7]))
    run.append_event("first_step", step=5)
    source.read()
    assert (source.view.step, len(source.view.loss.points(99))) == (7, 7)
    assert source.view.stepped_at is not None
    assert source.view.stepped_at >= run.metrics_file.stat().st_mtime


def test_a_run_that_is_not_there(tmp_path):
    for arguments in (["nowhere"], []):
        done = dtrain("top", *arguments, env=os.environ | {"DTRAIN_RUNS": str(tmp_path)})
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "no such run" in done.stderr or "there are no runs" in done.stderr


# --- on a terminal ---------------------------------------------------------------------------------------------------


class Screen:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments, columns=100, lines=30):
        self._controller, terminal = pty.openpty()
        self.resize(columns, lines)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
        )
        self._terminal = terminal
        self.text = ""

    def resize(self, columns, lines):
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys):
        os.write(self._controller, keys.encode())

    def read(self):
        while select.select([self._controller], [], [], 0.01)[0]:
            self.text += os.read(self._controller, 1 << 16).decode(errors="replace")
        return self.text

    def newest(self):
        """The screen that was drawn last, line by line."""
        drawn = re.split(r"\x1b\[H", self.read())[-1]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).replace("\r", "").split("\n")

    def wait_for(self, text, seconds=60.0):
        wait_until(lambda: text in self.read(), seconds)

    def is_echoing(self):
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._controller)
        os.close(self._terminal)


@contextmanager
def screen(*arguments, **options) -> Iterator[Screen]:
    made = Screen(*arguments, **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def lasting(tmp_path):
    """The directory of a run that lasts until ``brake`` beside it is removed."""
    model = tmp_path / "model.py"
    model.write_text(braked_model(tmp_path / "brake"))
    job = {**DIGITS, "model": {"entry": "model.py"}, "epochs": None, "steps": 400, "eval": {"every": 1}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    line = command("run", tmp_path / "job.yaml", "--workers", 2, "--run-dir", tmp_path / "run", "-q")
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: has_stepped(tmp_path / "run"))
        yield tmp_path / "run"
    finally:
        process.terminate()
        (tmp_path / "brake").unlink(missing_ok=True)
        process.wait(60)


def test_a_run_that_lasts_is_followed_to_its_end_and_q_leaves_it_alone(lasting):
    with screen("top", lasting) as top, screen("top", lasting) as other:
        top.wait_for("q quits")
        assert "\x1b[?1049h" in top.text  # the alternate screen
        wait_until(lambda: not top.is_echoing())
        (victim, pid), *_ = alive(lasting).items()
        os.kill(pid, signal.SIGKILL)
        top.wait_for(f"worker_lost: worker {victim} died")
        first = re.search(r"step (\d+)/400", "\n".join(top.newest()))
        top.resize(40, 12)
        wait_until(lambda: len(top.newest()) == 12 and max(map(len, top.newest())) <= 40)
        other.wait_for("q quits")
        other.type("xq")
        assert other.process.wait(30) == 0
        assert other.is_echoing()
        assert other.read().rstrip().endswith("\x1b[?25h\x1b[?1049l")  # and nothing is left
        lasting.with_name("brake").unlink()
        assert top.process.wait(60) == 0
        assert top.is_echoing()
        left = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", top.read().split("\x1b[?1049l")[1])
        assert "succeeded" in left
        assert "step 400/400" in left
        assert first is not None


# --- a job by its log ------------------------------------------------------------------------------------------------


def log_of_a_job():
    """What a run says where it has no terminal, in two pieces that part in the middle of a line."""
    now, stream = [0.0], io.StringIO()
    with Progress(40, 10, stream=stream, clock=lambda: now[0], plain_seconds=0.0) as progress:
        for step in range(9):
            progress.update(StepRecord(step, 0, 2.5 - step / 8, 0.5, 1.0, 0.1, 150, 0.1))
            now[0] += 0.125
        progress.update(EvalRecord(9, 0, 1.1, {"accuracy": 0.625}))
        progress.note("worker 1 died")
    text = f"dtrain 0.1.0 starts in /there\n{stream.getvalue()}"
    return [text[:200], text[200:]]


class Jobs:
    """One job somewhere else."""

    def __init__(self, run_directory="~/dtrain-runs/digits/1", status="running"):
        self.job = Job("digits-1", status, str(run_directory), steps=40)

    def all(self):
        return [self.job]

    def get(self, job_id):
        assert job_id == "digits-1"
        return self.job

    def log(self, job_id, follow, start=0):
        return iter(log_of_a_job())


@pytest.mark.parametrize("follow", [False, True])
def test_a_job_whose_directory_cannot_be_seen_is_told_from_its_log(follow):
    source = source_of(None, Jobs(), is_here=False, follow=follow)
    assert isinstance(source, LogOfJob)
    deadline = time.monotonic() + 30
    while source.view.eval is None and time.monotonic() < deadline:
        plain = as_plain(source)
    assert (plain["run"], plain["status"], plain["step"], plain["steps"]) == ("digits-1", "running", 9, 40)
    assert (plain["loss"], plain["gradient_norm"], plain["samples_per_second"]) == (1.5, 0.5, 1200.0)
    assert plain["eval"] == {"loss": 1.1, "accuracy": 0.625}
    assert source.view.loss.points(9) == [2.5 - step / 8 for step in range(9)]
    assert plain["workers"] == []


def test_a_job_whose_directory_can_be_seen_is_read_from_it(ended):
    plain = as_plain(source_of("digits-1", Jobs(ended, "succeeded"), is_here=False, follow=True))
    assert (plain["step"], len(plain["workers"])) == (12, 2)


def test_there_is_no_job(tmp_path, monkeypatch):
    jobs = Jobs()
    monkeypatch.setattr(jobs, "all", list)
    with pytest.raises(InputError, match="there are no runs"):
        source_of(None, jobs, is_here=False, follow=True)
