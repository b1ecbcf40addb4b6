"""`kill -9` of the whole process tree, then `dtrain resume`: the same fingerprint, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import psutil
import pytest
import yaml

from tests.support import (
    DIGITS,
    command,
    dtrain,
    events_of,
    has_stepped,
    nothing_left_behind,
    result_of,
    steps_of,
    wait_until,
)

EPOCHS = 100


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.yaml"
    checkpoint = {"every": "40 steps", "keep": 2}
    content = {**DIGITS, "epochs": EPOCHS, "eval": {"every": "10 epoch"}, "checkpoint": checkpoint}
    path.write_text(yaml.safe_dump(content))
    return path


def kill_tree(process: subprocess.Popen) -> None:
    """Stop the whole tree first, so that nobody sees another die, then kill everybody."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(tree) >= 4  # the coordinator, the prepared process, two workers
    for signal_number in (signal.SIGSTOP, signal.SIGKILL):
        for member in tree:
            with suppress(ProcessLookupError):  # some are there for a moment alone
                os.kill(member.pid, signal_number)
    process.wait(10)
    assert psutil.wait_procs(tree, timeout=10)[1] == []


def test_resume_after_the_death_of_everything(job, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert dtrain("run", job, "--workers", 2, "--run-dir", whole, "-q").returncode == 0
    with nothing_left_behind(run):
        for attempt in range(2):
            arguments = ["run", job, "--run-dir", run] if attempt == 0 else ["resume", run]
            process = subprocess.Popen(command(*arguments, "--workers", 2, "-q"), stderr=subprocess.PIPE)
            seen = sum(e["event"] == "checkpoint" for e in events_of(run))
            wait_until(lambda: sum(e["event"] == "checkpoint" for e in events_of(run)) >= seen + 3)  # noqa: B023
            kill_tree(process)
            process.stderr.close()
            assert not (run / "result.json").exists()
            assert dtrain("status", run).stdout.startswith("failed")
        done = dtrain("resume", run, "--workers", 1, "-q")
        assert done.returncode == 0, done.stderr
    for key in ("fingerprint", "digest_chain", "eval", "step"):
        assert result_of(run)[key] == result_of(whole)[key], key
    assert [s["step"] for s in steps_of(run)] == list(range(EPOCHS * 12))
    assert [s["loss"] for s in steps_of(run)] == [s["loss"] for s in steps_of(whole)]


def test_resume_of_a_run_that_died_before_its_first_checkpoint_starts_anew(job, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("run", job, "--workers", 2, "--run-dir", run, "-q", "--set", "checkpoint.every=null"),
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: has_stepped(run))
    kill_tree(process)
    process.stderr.close()
    done = dtrain("resume", run, "--workers", 2, "-q")
    assert done.returncode == 0, done.stderr
    assert [s["step"] for s in steps_of(run)] == list(range(EPOCHS * 12))


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(job, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("run", job, "--workers", 1, "--run-dir", run, "-q"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: sum(e["event"] == "checkpoint" for e in events_of(run)) >= 3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    newest = sorted((run / "checkpoints").iterdir())[-1]
    file = newest / "parameters.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes(content)
    done = dtrain("resume", run, "--workers", 2)
    assert done.returncode == 0
    assert f"checkpoint {newest.name}: parameters.safetensors has sha256" in done.stderr
    assert [s["step"] for s in steps_of(run)] == list(range(EPOCHS * 12))


def test_the_coordinator_alone_is_killed_and_its_workers_end(job, tmp_path):
    run = tmp_path / "run"
    with nothing_left_behind(run):
        process = subprocess.Popen(
            command("run", job, "--workers", 2, "--run-dir", run, "-q"), stderr=subprocess.DEVNULL
        )
        wait_until(lambda: has_stepped(run))
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(10)
        assert psutil.wait_procs(tree, timeout=10)[1] == []
        assert dtrain("resume", run, "--workers", 2, "-q").returncode == 0
