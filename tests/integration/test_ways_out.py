"""How the figures of a run leave it, through the real Prometheus and Pushgateway; and scrapers that hang."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtrain.errors import InputError
from dtrain.jobs.backend import LocalBackend
from dtrain.jobs.build import build
from dtrain.jobs.exposure import exposed
from dtrain.jobs.run import run_job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import parse_spec
from dtrain.jobs.watcher import Watcher
from dtrain.monitor.endpoint import MetricsEndpoint
from dtrain.monitor.exporter import Handler
from dtrain.monitor.run_metrics import RunMetrics
from dtrain.train.observer import Observer
from tests.support import DIGITS, command, events_of, has_stepped, popen, result_of, spec_of, train, wait_until

TOOLS = {"prometheus": "prometheus", "promtool": "prometheus", "prometheus-pushgateway": "prometheus-pushgateway"}


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            pytest.fail(f"{tool} is needed: apt-get install {package}", pytrace=False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def get(url: str, **query: str) -> Any:
    address = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def gateway(ended: None) -> str:
    """A Pushgateway."""
    url = f"127.0.0.1:{free_port()}"
    popen(["prometheus-pushgateway", "--persistence.file=", f"--web.listen-address={url}"])
    wait_until(lambda: answers(f"http://{url}/-/ready"))
    return f"http://{url}"


@pytest.fixture
def start_prometheus(ended: None, tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    def start(discovery: dict[str, Any]) -> str:
        configuration = tmp_path / "prometheus.yml"
        token = {"authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")}}
        jobs = [
            {"job_name": kind, "scrape_interval": "1s", **token, kind: sources} for kind, sources in discovery.items()
        ]
        configuration.write_text(yaml.safe_dump({"scrape_configs": jobs}))
        url = f"127.0.0.1:{free_port()}"
        checked = subprocess.run(["promtool", "check", "config", configuration], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        popen(
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={tmp_path / 'series'}",
                f"--web.listen-address={url}",
            ]
        )
        wait_until(lambda: answers(f"http://{url}/-/ready"))
        return f"http://{url}"

    return start


def test_a_run_is_found_scraped_pushed_and_left_in_files(
    gateway: str, start_prometheus: Callable[[dict[str, Any]], str], tmp_path: Path
) -> None:
    """The run itself is started last: Prometheus finds it by its file."""
    port = free_port()
    monitor = {
        "metrics_port": port,
        "token_file": "token",
        "sd_directory": "targets",
        "pushgateway": gateway,
        "textfile": "node/digits.prom",
        "tensorboard": True,
    }
    job, run = tmp_path / "digits.yaml", tmp_path / "run"
    job.write_text(yaml.safe_dump({**DIGITS, "name": "digits", "epochs": 100_000, "monitor": monitor}))
    (tmp_path / "token").write_text("0123456789abcdef")
    (tmp_path / "targets").mkdir()
    http_source = {
        "url": f"http://127.0.0.1:{port}/sd",
        "refresh_interval": "1s",
        "authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")},
    }
    file_source = {"files": [str(tmp_path / "targets" / "*.json")], "refresh_interval": "1s"}
    prometheus = start_prometheus({"http_sd_configs": [http_source], "file_sd_configs": [file_source]})
    process = popen(command("run", job, "--workers", 1, "--run-dir", run, "-q"))
    wait_until(lambda: has_stepped(run))
    labels = {"dtrain_job": "digits", "dtrain_run": "run"}
    (told,) = (tmp_path / "targets").iterdir()
    assert told.name == "digits-run.json"
    assert json.loads(told.read_text()) == [{"targets": [f"127.0.0.1:{port}"], "labels": labels}]

    def scraped() -> dict[str, dict[str, str]]:
        found = get(f"{prometheus}/api/v1/query", query="dtrain_steps_total > 0")["data"]["result"]
        return {series["metric"]["job"]: series["metric"] for series in found}

    wait_until(lambda: set(scraped()) == {"http_sd_configs", "file_sd_configs"}, 30)
    assert all(labels.items() <= series.items() for series in scraped().values())
    process.send_signal(2)
    assert process.wait(60) == 130
    assert list((tmp_path / "targets").iterdir()) == []

    textfile = (tmp_path / "node" / "digits.prom").read_text()
    linted = subprocess.run(["promtool", "check", "metrics"], input=textfile, capture_output=True, text=True)
    assert (linted.returncode, linted.stderr) == (0, "")
    assert 'dtrain_job_state{dtrain_job="digits",dtrain_run="run",state="stopped"} 1.0' in textfile
    (group,) = get(f"{gateway}/api/v1/metrics")["data"]
    assert group["labels"] == {"job": "dtrain", **labels}
    step = result_of(run)["step"]
    (pushed,) = group["dtrain_step"]["metrics"]
    assert float(pushed["value"]) == step
    states = {each["labels"]["state"]: each["value"] for each in group["dtrain_job_state"]["metrics"]}
    assert states["stopped"] == "1"

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["type"] == "step"}
    reader = EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    points = reader.Scalars("train/loss")
    assert points
    assert {e.step: e.value for e in points} == pytest.approx({e.step: losses[e.step] for e in points}, rel=1e-6)
    assert not [e for e in events_of(run) if e["event"] == "handout_failed"]


def run_here(tmp_path: Path, **monitor: Any) -> list[str]:
    """Run a short job in this process; returns the lines that it said."""
    spec = parse_spec({**DIGITS, "epochs": 1, "monitor": monitor}, base_dir=tmp_path)
    directory = RunDirectory.create("job", path=tmp_path / "run")
    directory.write_job(spec)
    said: list[str] = []
    result = run_job(spec, build(spec), directory, LocalBackend(0), is_quiet=True, on_start=said.append)
    assert (result["status"], result["exit_code"]) == ("succeeded", 0)
    return said


def test_a_push_that_fails_is_a_warning_and_no_error(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    said = run_here(tmp_path, pushgateway=url)
    warning = f"monitor.pushgateway: {url}: the final push failed: Connection refused"
    assert said[-1] == warning
    assert [e["text"] for e in events_of(tmp_path / "run") if e["event"] == "handout_failed"] == [warning]


@pytest.mark.parametrize("key", ["sd_directory", "textfile"])
def test_a_folder_that_cannot_be_is_one_line_before_the_run_starts(key: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(
        InputError, match=rf"^monitor\.{key}: {tmp_path}/taken.*: cannot be made: .*; name another folder$"
    ):
        run_here(tmp_path, **{key: "taken/x.prom"})
    assert events_of(tmp_path / "run") == []


def test_a_run_that_breaks_off_is_left_behind_as_failed(tmp_path: Path) -> None:
    spec = parse_spec({**DIGITS, "monitor": {"textfile": "run.prom"}}, base_dir=tmp_path)
    metrics = RunMetrics()
    metrics.started(10)

    def break_off(directory: RunDirectory) -> None:
        with exposed(spec, metrics, directory, print):
            raise RuntimeError

    with RunDirectory.create("job", path=tmp_path / "run") as directory, pytest.raises(RuntimeError):
        break_off(directory)
    assert 'state="failed"} 1.0' in (tmp_path / "run.prom").read_text()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[str]]]:
    """Scrapers that hang in the middle of an answer until the event is set; the list says what happened, in order."""
    released, order = threading.Event(), []
    answer = Handler._answer

    def slow(self: Handler, *arguments: Any) -> None:
        order.append("hangs")
        released.wait(60)
        order.append("goes on")
        answer(self, *arguments)

    monkeypatch.setattr(Handler, "_answer", slow)
    yield released, order
    released.set()


def test_scrapers_that_hang_never_hold_up_a_step(hanging: tuple[threading.Event, list[str]]) -> None:
    """Some never finish their request, some are stuck within the answer; all still hang when the run is over."""
    released, order = hanging
    spec = spec_of(epochs=2)
    alone = train(spec, 0)
    watcher = Watcher(None, is_quiet=True)

    class Told(Observer):
        def steps(self, records: Any) -> None:
            watcher.steps(records)
            order.append("step")

    with MetricsEndpoint(watcher.metrics) as endpoint:
        clients = [socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) for _ in range(6)]
        for client in clients[:3]:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127")
        for client in clients[3:]:
            client.sendall(f"GET /metrics?token={endpoint.token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        wait_until(lambda: order.count("hangs") == 3)
        outcome = train(spec, 2, Told())
        order.append("over")
        released.set()
        for client in clients[3:]:
            assert client.makefile("rb").readline().startswith(b"HTTP/1.0 200")
        for client in clients:
            client.close()
    assert outcome.fingerprint == alone.fingerprint
    assert order[:3] == ["hangs"] * 3
    assert order.index("over") > order.index("step")
    assert order.index("goes on") > order.index("over")


def test_a_full_set_of_figures_is_put_down_while_a_scraper_reads(hanging: tuple[threading.Event, list[str]]) -> None:
    """The lock of the figures is free while an answer hangs."""
    released, order = hanging
    watcher = Watcher(None, is_quiet=True)
    with MetricsEndpoint(watcher.metrics) as endpoint:
        client = socket.create_connection(("127.0.0.1", endpoint.port), timeout=20)
        client.sendall(f"GET /metrics?token={endpoint.token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        wait_until(lambda: "hangs" in order)
        watcher.metrics.finished("succeeded")  # would wait for ever
        order.append("put down")
        released.set()
        client.close()
    assert order[:2] == ["hangs", "put down"]
