"""Figures that are handed out: the textfile of node_exporter, and a push that nobody takes."""

from __future__ import annotations

import http.server
import socket
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dtrain.errors import DtrainError
from dtrain.jobs.run_directory import write_atomically
from dtrain.monitor.discovery import run_labels
from dtrain.monitor.handout import Textfile, push, text_of
from dtrain.monitor.records import StepRecord
from dtrain.monitor.run_metrics import RunMetrics
from dtrain.monitor.table import METRICS

LABELS = run_labels("digits", "r1")


def metrics() -> RunMetrics:
    metrics = RunMetrics()
    metrics.describe_job(name="digits", run="r1", spec_digest="ab", version="0.1.0")
    metrics.started(10)
    metrics.steps([StepRecord(0, 0, 0.5, 2.0, 1.0, 0.1, 32, 1.5, {"w": 1.0}, {0: {"sum": 0.5}})])
    return metrics


def samples(text: bytes) -> dict[str, list]:
    families = text_string_to_metric_families(text.decode())
    return {family.name: family.samples for family in families}


def test_every_series_bears_the_labels_of_the_run() -> None:
    found = samples(text_of(metrics(), LABELS))
    assert set(found) == {metric.name.removesuffix("_total") for metric in METRICS}
    for each in found.values():
        assert all(LABELS.items() <= sample.labels.items() for sample in each)
    (phase,) = found["dtrain_phase_seconds"]
    assert phase.labels == LABELS | {"worker": "0", "phase": "sum"}
    assert found["dtrain_job_info"][0].labels["name"] == "digits"


def test_the_textfile_is_written_again_and_again_and_at_the_end(tmp_path: Path) -> None:
    path, current, written = tmp_path / "run.prom", metrics(), threading.Semaphore(0)

    def write(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        written.release()

    file = Textfile(path, current, LABELS, write, print, every_seconds=0.01)
    for _ in range(3):
        assert written.acquire(timeout=20)
    current.finished("succeeded")
    file.close()
    states = {sample.labels["state"]: sample.value for sample in samples(path.read_bytes())["dtrain_job_state"]}
    assert states["succeeded"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.prom"]


def test_a_textfile_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    tried = threading.Semaphore(0)

    def write(path: Path, content: bytes) -> None:
        tried.release()
        raise DtrainError("the disk is full")

    file = Textfile(tmp_path / "run.prom", metrics(), LABELS, write, told.append, every_seconds=0.01)
    for _ in range(3):
        assert tried.acquire(timeout=20)
    file.close()
    assert told == [f"monitor.textfile: {tmp_path}/run.prom: cannot be written: the disk is full; training goes on"]


def test_a_gateway_that_is_not_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DtrainError) as caught:
        push(f"http://127.0.0.1:{port}", metrics(), LABELS)
    assert str(caught.value) == (
        f"monitor.pushgateway: http://127.0.0.1:{port}: the final push failed: Connection refused"
    )


def test_a_gateway_that_refuses_is_one_line() -> None:
    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_error(403, "Forbidden")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(DtrainError, match=r"the final push failed: Forbidden$"):
            push(f"http://127.0.0.1:{server.server_port}", metrics(), LABELS)
        thread.join()
