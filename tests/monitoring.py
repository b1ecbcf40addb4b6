"""Prometheus, Alertmanager and Pushgateway, the real ones, on loopback, with the files of deploy/."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.grafana.panels import DASHBOARDS
from tests.support import ROOT, free_ports, wait_until

DEPLOY = ROOT / "deploy"


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """The text with each key, which must be in it, replaced by its value."""
    for old, new in changes.items():
        assert old in text, f"{old} is not in the file any more"
        text = text.replace(old, new)
    return text


def get(url: str) -> Any:
    """The JSON that a server answers with."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def query(prometheus: str, expr: str) -> list[dict[str, Any]]:
    """The series that an expression has now."""
    found: list[dict[str, Any]] = get(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expr})}")["data"][
        "result"
    ]
    return found


def wait_for_data(prometheus: str, without: tuple[str, ...] = (), seconds: float = 30.0) -> None:
    """Wait until every query of the dashboards and every recorded rule has a series, but for those that name one of
    ``without``."""
    values = {"$name": ".*", "$run": ".*", "$__rate_interval": "5s"}
    panels = [panel for board in DASHBOARDS for _, panels in board.rows for panel in panels]
    exprs = [re.sub(r"\$\w+", lambda found: values[found[0]], one.expr) for p in panels for one in p.queries]
    rules = yaml.safe_load((DEPLOY / "prometheus/rules/dtrain.yml").read_text())["groups"][0]["rules"]
    exprs += [rule["record"] for rule in rules if "record" in rule]
    assert len(exprs) > 40
    exprs = [expr for expr in exprs if not any(word in expr for word in without)]
    deadline = time.monotonic() + seconds
    while missing := [expr for expr in exprs if not query(prometheus, expr)]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)


def answers(url: str) -> bool:
    """Whether a server is up."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass(frozen=True)
class Monitoring:
    """Where they are, and the folder and the token for the runs that they watch."""

    prometheus: str
    alertmanager: str
    pushgateway: str
    targets: Path
    token: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What a job says under ``monitor`` to be watched."""
        return {"token_file": str(self.token), "sd_directory": str(self.targets), "pushgateway": self.pushgateway}

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression now."""
        return query(self.prometheus, expr)

    def alerts(self) -> set[tuple[str, str]]:
        """The alerts that have come to Alertmanager and are not resolved: their name, and the run."""
        found = get(f"{self.alertmanager}/api/v2/alerts?active=true&inhibited=true")
        return {(a["labels"]["alertname"], a["labels"].get("run", a["labels"].get("dtrain_run", ""))) for a in found}

    def wait_for(self, alert: str, run: str, seconds: float = 30.0) -> None:
        """Wait until an alert on a run has come to Alertmanager."""
        try:
            wait_until(lambda: (alert, run) in self.alerts(), seconds)
        except AssertionError:
            rules = get(f"{self.prometheus}/api/v1/rules?type=alert")["data"]["groups"][0]["rules"]
            (rule,) = [rule for rule in rules if rule["name"] == alert]
            raise AssertionError(f"{alert} of {run} has not come: {self.alerts()}; {rule}") from None


@contextmanager
def started(command: list[str], log: Path, url: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server that runs in the block, from when it answers at ``url``."""
    assert shutil.which(command[0]), (
        f"{command[0]} is missing: apt-get install prometheus prometheus-alertmanager prometheus-pushgateway"
    )
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, **options)
    try:
        wait_until(lambda: process.poll() is not None or answers(url), 30)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def monitoring(folder: Path, config: Mapping[str, str], rules: Mapping[str, str]) -> Iterator[Monitoring]:
    """All three, with changes to what prometheus.yml and the rules say."""
    here, there, pushes = free_ports(3)
    targets, token = folder / "targets", folder / "metrics_token"
    targets.mkdir()
    token.write_text("6" * 64)
    (folder / "rules").mkdir()
    text = (DEPLOY / "prometheus/rules/dtrain.yml").read_text()
    (folder / "rules/dtrain.yml").write_text(replaced(text, rules))
    changes = {
        "/var/lib/dtrain/targets": str(targets),
        "/run/secrets/metrics_token": str(token),
        "alertmanager:9093": f"127.0.0.1:{there}",
        "127.0.0.1:9090": f"127.0.0.1:{here}",
        "pushgateway:9091": f"127.0.0.1:{pushes}",
        **config,
    }
    text = (DEPLOY / "prometheus/prometheus.yml").read_text()
    (folder / "prometheus.yml").write_text(replaced(text, changes))
    found = Monitoring(*(f"http://127.0.0.1:{port}" for port in (here, there, pushes)), targets, token)
    with ExitStack() as stack:
        pushgateway = ["prometheus-pushgateway", "--persistence.file=", f"--web.listen-address=127.0.0.1:{pushes}"]
        stack.enter_context(started(pushgateway, folder / "pushgateway.log", f"{found.pushgateway}/-/ready"))
        alertmanager = [
            "prometheus-alertmanager",
            f"--config.file={DEPLOY / 'alertmanager/alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{there}",
            "--cluster.listen-address=",
        ]
        stack.enter_context(started(alertmanager, folder / "alertmanager.log", f"{found.alertmanager}/-/ready"))
        prometheus = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{here}",
        ]
        stack.enter_context(started(prometheus, folder / "prometheus.log", f"{found.prometheus}/-/ready"))
        yield found
