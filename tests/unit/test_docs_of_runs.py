"""The documentation says what a run leaves: its files, records, events, metrics, panels and memory."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dtrain.comm.memory import Dimensions, RunMemory
from dtrain.jobs.backend import LocalBackend
from dtrain.jobs.build import build
from dtrain.jobs.document import parse_yaml
from dtrain.jobs.run import run_job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import load_spec, parse_spec
from dtrain.monitor import alerts, progress
from dtrain.monitor.lines import read_lines
from dtrain.monitor.records import EvalRecord, StepRecord, from_values, to_line
from dtrain.monitor.table import to_markdown
from dtrain.train.numerics import numerics_class
from tests.pages import ROOT, blocks, code_in, names_in, section, tables, text_of

MINIMAL = {"model": {"name": "softmax"}, "data": {"name": "digits"}, "optimizer": {"name": "sgd", "lr": 0.1}}


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of the model of models.md, by the job of models.md."""
    folder = tmp_path_factory.mktemp("documented")
    text = text_of("models.md")
    (folder / "blobs.py").write_text(blocks(text, "python")[0])
    (folder / "job.yaml").write_text(blocks(text, "yaml")[0])
    spec = load_spec(folder / "job.yaml", ["epochs=2", "monitor.metrics_port=null", "introspect.every=5"])
    directory = RunDirectory.create(spec.name, path=folder / "run")
    directory.write_job(spec)
    result = run_job(spec, build(spec), directory, LocalBackend(0), is_quiet=True)
    assert result["status"] == "succeeded", result["error"]
    return folder / "run"


def test_keys_of_introspection_are_listed(run: Path) -> None:
    text = section(text_of("jobs.md"), "The run directory")
    listed = [name for row in tables(text)["Key of introspection.jsonl"] for name in names_in(row[0])]
    (line, _), *_ = read_lines(run / "introspection.jsonl")
    assert sorted(listed) == sorted(line)
    for key in (*line["parameters"][0], *line["parameters"][0]["gradient"], *line["layers"][0]):
        assert f"`{key}`" in text + text_of("models.md")


def test_files_of_a_run_are_listed(run: Path) -> None:
    rows = tables(section(text_of("jobs.md"), "The run directory"))["File"]
    # there while it runs, or only if it was submitted or watched
    others = ["endpoint.json", "files", "log.txt", "page.json", "tensorboard", "workers"]
    assert sorted(code_in(row[0]) for row in rows) == sorted([*(p.name for p in run.iterdir()), *others])


def test_keys_of_the_result_are_listed(run: Path) -> None:
    rows = tables(section(text_of("jobs.md"), "The run directory"))["Key of result.json"]
    result = json.loads((run / "result.json").read_text())
    assert sorted(name for row in rows for name in names_in(row[0])) == sorted(result)


def test_keys_of_the_records_are_listed(run: Path) -> None:
    found = tables(section(text_of("metrics.md"), "metrics.jsonl"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skipped = json.loads(to_line(StepRecord(0, 0, 0.0, 0.0, 1.0, 0.1, 1, 0.0, {}, {}, "0", True)))
    for kind, heading, others in (("step", "Key of a step", {"is_skipped"}), ("eval", "Key of an evaluation", set())):
        keys = {key for line in lines if line["type"] == kind for key in line}
        assert {code_in(row[0]) for row in found[heading]} == keys | others
    assert "is_skipped" in skipped
    assert not any("is_skipped" in line for line in lines)


def test_example_records_are_records(run: Path) -> None:
    records = [json.loads(line) for line in blocks(section(text_of("metrics.md"), "metrics.jsonl"), "json")[0].split()]
    for values in records:
        record = from_values(values)
        assert isinstance(record, StepRecord | EvalRecord)
        assert list(json.loads(to_line(record))) == list(values)
    assert {values["type"] for values in records} == {"step", "eval"}


def emitted_events() -> dict[str, set[str]]:
    """Every kind of event that the code writes, with its keys, from the calls themselves."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "dtrain").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("event", "_event") and node.args and isinstance(node.args[0], ast.Constant):
                keys = {keyword.arg for keyword in node.keywords if keyword.arg}
                found[node.args[0].value] = keys | ({"text"} if node.func.attr == "event" else set())
    return found


def test_events_are_listed_with_their_keys(run: Path) -> None:
    text = section(text_of("metrics.md"), "events.jsonl")
    listed = {code_in(row[0]): set(names_in(row[1])) for row in tables(text)["Event"]}
    assert listed == emitted_events()
    written = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for values in [*written, *map(json.loads, blocks(text, "json")[0].splitlines())]:
        assert set(values) == {"time", "event"} | listed[values["event"]]


def test_alerts_are_listed_with_their_thresholds() -> None:
    rows = tables(section(text_of("jobs.md"), "Watching a run"))["Alert"]
    assert [code_in(row[0]) for row in rows] == list(alerts.NAMES)
    stated = {code_in(row[0]): re.findall(r"\d+(?:\.\d+)?", row[1]) for row in rows}
    assert stated == {
        "stalled": [f"{alerts.STALLED_SECONDS:g}", str(alerts.STALLED_STEPS), "50"],
        "nonfinite": [str(alerts.TOLD_STEPS)],
        "skipped": ["50"],
        "spike": [str(alerts.TOLD_STEPS)],
        "straggler": [str(alerts.STRAGGLER)],
        "checkpoint_stale": [str(alerts.STALE)],
        "workers_lost": [str(alerts.LOST), f"{alerts.LOST_SECONDS / 60:g}"],
    }


def test_readme_shows_the_summary_that_a_run_prints(run: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = next(code for code in blocks(text, "") if code.startswith("succeeded"))
    said = progress.final_summary(json.loads((run / "result.json").read_text()))
    assert [line[:14] for line in shown.splitlines()[1:]] == [line[:14] for line in said.splitlines()[1:]]
    steps = build(load_spec(ROOT / "examples" / "digits.yaml")).steps
    assert shown.startswith(f"succeeded after {steps} steps in ")


# --- dashboard.md, metrics.md and design.md ---------------------------------------------------------------------------


def test_metrics_are_those_of_the_table() -> None:
    assert f"\n{to_markdown()}\n" in section(text_of("metrics.md"), "Prometheus")


def test_panels_of_the_page_are_listed_with_their_questions() -> None:
    rows = tables(section(text_of("dashboard.md"), "What each panel answers"))["Panel"]
    code = (ROOT / "dtrain" / "monitor" / "page" / "charts.js").read_text(encoding="utf-8")
    panels = re.findall(r'title: "([^"]+)", question: "([^"]+)"', code)
    assert len(panels) > 10
    assert [(row[0], row[1]) for row in rows][: len(panels)] == panels


def test_the_prometheus_file_scrapes_the_port_of_the_job() -> None:
    first, second = blocks(section(text_of("metrics.md"), "Scraping"), "yaml")
    (scrape,) = yaml.safe_load(first)["scrape_configs"]
    port = parse_spec(parse_yaml(second, "job")).monitor.metrics_port  # type: ignore[arg-type]
    assert scrape["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]
    assert scrape["authorization"] == {"type": "Bearer", "credentials_file": "dtrain.token"}
    assert scrape.get("metrics_path", "/metrics") == "/metrics"


def test_the_memory_of_a_run_is_listed() -> None:
    program = build(parse_spec({**MINIMAL, "batch": 8, "steps": 1}))
    layout = program.layout(program.initial_parameters())
    memory = RunMemory(Dimensions(layout, ("velocity",), 8, 2))
    try:
        parts = {name for name, value in vars(memory).items() if isinstance(value, np.ndarray)}
    finally:
        memory.close()
    rows = tables(section(text_of("design.md"), "The memory of a run"))["Part"]
    assert sorted(name for row in rows for name in names_in(row[0])) == sorted(parts)


def test_the_numerics_class_is_listed() -> None:
    sentence = section(text_of("design.md"), "The numerics class").split(". The class")[0]
    assert set(names_in(sentence)) == set(numerics_class())
