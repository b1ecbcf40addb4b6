"""The rules and configurations of Prometheus and Alertmanager by their own tools; the dashboards by the table."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.generate import FOLDER, SOURCE, build, metrics_of
from deploy.grafana.panels import DASHBOARDS
from dtrain.monitor.table import BY_NAME, METRICS

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules/dtrain.yml"
TESTS = DEPLOY / "prometheus/tests/dtrain.yml"
ALL_RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule["alert"] for rule in ALL_RULES if "alert" in rule]


def run(*command: object) -> str:
    """What a tool of Debian's packages says, which must be content."""
    name = str(command[0])
    assert shutil.which(name), f"{name} is missing: apt-get install prometheus prometheus-alertmanager"
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- Prometheus and Alertmanager -------------------------------------------------------------------------------------


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    run("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml")
    assert f"{len(ALL_RULES)} rules found" in run("promtool", "check", "rules", RULES)


def test_amtool_takes_the_configuration() -> None:
    run("amtool", "check-config", DEPLOY / "alertmanager/alertmanager.yml")


def test_every_alert_fires_where_it_should_and_nowhere_else() -> None:
    run("promtool", "test", "rules", TESTS)
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    for alert in ALERTS:
        assert {bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert} == {True, False}, alert


def test_the_tests_of_the_rules_notice_alerts_that_never_fire(tmp_path: Path) -> None:
    document = yaml.safe_load(RULES.read_text())
    for rule in document["groups"][0]["rules"]:
        if "alert" in rule:
            rule["expr"] = f"({rule['expr']}) and on () vector(1) > 1"
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "rules/dtrain.yml").write_text(yaml.safe_dump(document))
    shutil.copy(TESTS, tmp_path / "tests")
    command = ["promtool", "test", "rules", tmp_path / "tests/dtrain.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert set(re.findall(r"alertname: (\w+)", done.stderr)) == set(ALERTS)


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.get("alert", rule.get("record")))
def test_rules_are_about_metrics_that_there_are(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"\bdtrain_\w+", re.sub(r"\b\w+:\w+(:\w+)?", "", rule["expr"])))
    assert names - {"dtrain_run"} <= BY_NAME.keys()  # but for the label
    recorded = set(re.findall(r"\b\w+:\w+(?::\w+)?", rule["expr"]))
    assert recorded <= {other.get("record") for other in ALL_RULES}


def test_every_alert_is_explained() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    assert re.findall(r"^\| `(Dtrain\w+)` \|", text, re.M) == ALERTS


# --- Grafana ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.name)
def test_the_dashboards_are_those_that_are_generated(board: Any) -> None:
    assert (FOLDER / f"{board.name}.json").read_text() == build(board), "python -m deploy.grafana.generate"


def test_there_is_no_other_dashboard() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {board.name for board in DASHBOARDS}


def test_every_metric_is_on_a_panel() -> None:
    shown = {name for board in DASHBOARDS for _, panels in board.rows for p in panels for name in metrics_of(p)}
    assert shown == {metric.name for metric in METRICS}


def test_panels_are_told_apart_lie_beside_each_other_and_ask_the_provisioned_source() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert SOURCE.uid in {source["uid"] for source in sources if source["type"] == "prometheus"}
    for board in DASHBOARDS:
        document = json.loads(build(board))
        panels = document["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells
            if panel["type"] != "row":
                assert panel["datasource"] == {"type": "prometheus", "uid": SOURCE.uid}
                assert panel["description"]


def test_grafana_is_told_where_the_dashboards_are() -> None:
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/dtrain.yml").read_text())["providers"][0]
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / Path(home).name).exists()
    assert home.startswith(f"{provider['options']['path']}/")
