"""`dtrain run --ui`, `dtrain ui` and `dtrain report` as their user meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import braked_model, command, dtrain, has_stepped, nothing_left_behind, result_of, wait_until

LINK = re.compile(r"(http://127\.0\.0\.1:\d+)/\?token=([\w-]+)")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job that lasts until the file ``brake`` is gone."""
    (tmp_path / "model.py").write_text(braked_model(tmp_path / "brake"))
    keys = {"data": {"name": "digits"}, "optimizer": {"name": "sgd", "lr": 0.1}, "batch": 256, "epochs": 30}
    content = {"name": "braked", "model": {"entry": "model.py"}, **keys, "checkpoint": {"every": 3}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "job.yaml"


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **options
    )


def link_of(process: subprocess.Popen[str]) -> re.Match[str]:
    assert process.stderr is not None
    found = LINK.search(process.stderr.readline())
    assert found is not None
    return found


def asked(link: re.Match[str], path: str, token: str | None = None) -> Any:
    address = f"{link[1]}{path}{'&' if '?' in path else '?'}token={token or link[2]}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.loads(answer.read())


def test_a_run_is_watched_and_found_again_when_it_is_resumed(job: Path) -> None:
    run = job.parent / "run"
    with nothing_left_behind(run):
        process = started("run", job, "-w", 0, "-q", "--ui", "--run-dir", run)
        link = link_of(process)
        wait_until(lambda: has_stepped(run))
        (listed,) = asked(link, "/runs")
        assert listed["status"] == "running"
        shown = asked(link, f"/run?run={listed['id']}")
        assert (shown["status"], shown["steps"]) == ("running", 180)
        assert shown["spec"]["introspect.every"] == "50 steps"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            asked(link, "/runs", "another")
        assert stat.S_IMODE((run / "page.json").stat().st_mode) == 0o600
        wait_until(lambda: any((run / "checkpoints").glob("step-*")))
        process.kill()
        process.communicate()
        process = started("resume", run, "-w", 0, "-q", "--ui")
        again = link_of(process)
        assert again[0] == link[0]
        assert asked(again, "/runs")[0]["status"] == "running"
        (job.parent / "brake").unlink()
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert _is_refused(link)
    assert result_of(run)["fingerprint"] in (run / "report.html").read_text()


def _is_refused(link: re.Match[str]) -> bool:
    try:
        asked(link, "/runs")
    except OSError as error:  # urllib wraps it, unless the connection broke later
        return isinstance(getattr(error, "reason", error), ConnectionRefusedError)
    return False


def test_all_runs_are_served_also_such_as_come_later(job: Path) -> None:
    (job.parent / "brake").unlink()
    environment = {**os.environ, "DTRAIN_RUNS": str(job.parent / "runs")}
    (job.parent / "runs").mkdir()
    process = started("ui", env=environment)
    link = link_of(process)
    assert asked(link, "/runs") == []
    assert dtrain("run", job, "-w", 0, "-q", "--set", "epochs=1", env=environment).returncode == 0
    assert [run["status"] for run in asked(link, "/runs")] == ["succeeded"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    process = started("ui", env=environment)
    assert link_of(process)[0] == link[0]
    process.terminate()
    process.communicate(timeout=30)


def test_a_report_is_made_again_and_one_that_cannot_be_written_fails_no_run(job: Path) -> None:
    (job.parent / "brake").unlink()
    run = job.parent / "run"
    (run / "files").mkdir(parents=True)  # a directory may hold the files that came with a job
    first = dtrain("run", job, "-w", 0, "-q", "--set", "epochs=2", "--run-dir", run)
    assert first.returncode == 0, first.stderr
    page = (run / "report.html").read_text()
    assert 'data-edge="3"' in page
    bar = re.search(r'<rect x="([\d.]+)" y="8" width="([\d.]+)" height="14"', page)  # from its joining to the end
    assert bar is not None
    assert float(bar[1]) + float(bar[2]) == pytest.approx(628.0, abs=0.2)
    assert float(bar[2]) > 20
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    (run / "result.json").unlink()
    resumed = dtrain("resume", run, "-w", 0, "-q")
    assert resumed.returncode == 0
    assert "warning: no report.html" in resumed.stderr
    assert result_of(run)["status"] == "succeeded"
    again = dtrain("report", run)
    assert (again.returncode, again.stdout) == (3, "")
    (run / "report.html").rmdir()
    again = dtrain("report", run)
    assert again.stdout.strip() == str(run / "report.html")
    assert result_of(run)["fingerprint"] in (run / "report.html").read_text()


@pytest.mark.parametrize("arguments", [("ui", "nothing"), ("report", "nothing"), ("ui", "--port", "{taken}")])
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        done = dtrain(*(word.format(taken=taken) for word in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
