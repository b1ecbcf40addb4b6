"""The documentation says what the code does: tables are compared with the code's, and every block of code is run."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import io
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import yaml

import dtrain
from dtrain import errors
from dtrain.comm.memory import Dimensions, RunMemory
from dtrain.commands import app
from dtrain.data.catalog import SOURCES
from dtrain.graph.operators import FUNCTIONS, METHODS, REDUCTIONS, SPECIAL, UFUNCS
from dtrain.jobs.backend import LocalBackend
from dtrain.jobs.build import build
from dtrain.jobs.document import parse_yaml
from dtrain.jobs.fit import FitResult
from dtrain.jobs.run import run_job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import json_schema, load_spec, parse_spec
from dtrain.monitor import alerts, progress
from dtrain.monitor.lines import read_lines
from dtrain.monitor.records import EvalRecord, StepRecord, from_values, to_line
from dtrain.monitor.table import to_markdown
from dtrain.nn import LOSSES, MODELS
from dtrain.optim import RULES, SCHEDULES
from dtrain.train.numerics import numerics_class

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MINIMAL = {"model": {"name": "softmax"}, "data": {"name": "digits"}, "optimizer": {"name": "sgd", "lr": 0.1}}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# --- reading the pages -----------------------------------------------------------------------------------------------


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" is a fence without one."""
    return [code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if kind == language]


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {heading!r}"
    return found[1]


def tables(text: str) -> dict[str, list[list[str]]]:
    """The tables by the first cell of their heading, as rows of cells."""
    result: dict[str, list[list[str]]] = {}
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for found in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in found.splitlines()]
        result[head[0]] = rows
    return result


def code_in(cell: str) -> str:
    found = re.fullmatch(r"`(.+?)`", cell)
    assert found, f"expected `code`, got {cell}"
    return found[1]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def matches(pattern: str, text: str) -> bool:
    """Whether a message is the documented one, in which … stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), text, re.S) is not None


# --- every page ------------------------------------------------------------------------------------------------------


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of python are run in order, in one namespace; those of pycon must print what they show."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    records = [line for code in blocks(text, "json") for line in code.splitlines() if '"type"' in line]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in records))
    samples = np.random.default_rng(0).standard_normal((40, 64))
    space: dict[str, Any] = {"dtrain": dtrain, "np": np, "x": samples, "y": np.arange(40) % 10}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    for language, code in re.findall(r"^```(python|pycon)\n(.*?)^```$", text, re.M | re.S):
        if language == "python":
            exec(compile(code, "block.py", "exec"), space)
            if callable(space.get("init")):
                space["params"] = space["init"](np.random.default_rng(0))
            continue
        example = doctest.DocTestParser().get_doctest(code, space, page.name, str(page), 0)
        report = io.StringIO()
        assert runner.run(example, out=report.write, clear_globs=False).failed == 0, report.getvalue()
        assert example.examples
        space.update(example.globs)
    if page.name == "README.md":
        assert isinstance(space["result"], FitResult)


@each_page
def test_yaml_blocks_are_jobs(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for code in blocks(text, "python"):
        if named := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / named[1]).write_text(code)
    if not (tmp_path / "my_model.py").exists():
        (tmp_path / "my_model.py").write_text("def init(rng): ...\ndef loss(params, batch): ...\n")
    found = [code for code in blocks(text, "yaml") if not code.startswith("# prometheus.yml")]
    if page.name in ("README.md", "models.md", "jobs.md"):
        assert found
    for code in found:
        (tmp_path / "job.yaml").write_text(code)
        spec = load_spec(tmp_path / "job.yaml")
        if spec.data.name not in ("npz", "npy"):
            build(spec)


@each_page
def test_commands_exist(page: Path) -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in "".join(blocks(page.read_text(encoding="utf-8"), "")).splitlines():
        if called := re.search(r"(?:^|/)dtrain (\w+)(.*)", line.partition("#")[0]):
            parameters = commands[called[1]].params
            known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
            assert set(re.findall(r"(?<!\S)\[?(--[\w-]+)", called[2])) <= known


# --- models.md -------------------------------------------------------------------------------------------------------


def resolve(name: str) -> Any:
    found: Any = np
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def test_covered_functions_are_those_of_the_tables() -> None:
    text = section(text_of("models.md"), "Covered functions")
    listed = [name for name in names_in(text) if name.startswith("np.")]
    assert len(listed) == len(set(listed))
    reductions = {f"np.{ufunc.__name__}.reduce" for ufunc in REDUCTIONS}
    assert {name for name in listed if name.endswith(".reduce")} == reductions
    objects = {id(resolve(name)): name for name in listed if not name.endswith(".reduce")}
    tables_have = {id(function): function.__name__ for function in [*UFUNCS, *FUNCTIONS]}
    assert {name for key, name in objects.items() if key not in tables_have} == set(), "listed, but not covered"
    assert {name for key, name in tables_have.items() if key not in objects} == set(), "covered, but not listed"


def test_covered_methods_are_those_of_the_table() -> None:
    listed = re.findall(r"`\.(\w+)`", section(text_of("models.md"), "Covered functions"))
    assert sorted(listed) == sorted(set(METHODS) - {"getitem", "setitem", "in_place"})


def test_covered_functions_of_scipy_are_those_of_the_tables() -> None:
    importlib.import_module("dtrain.graph.ops.special")  # fills SPECIAL
    text = section(text_of("models.md"), "Covered functions")
    ufuncs, _, modules = text.partition("**scipy.special**")[2].partition("**dtrain.scipy**")
    listed = re.findall(r"`(\w+)`", ufuncs)
    aliases = {"digamma": "psi", "jn": "jv"}
    assert [name for name in aliases if name in listed] == list(aliases)
    assert sorted(set(listed) - set(aliases)) == sorted(u.__name__.lstrip("_") for u in SPECIAL)
    rows = dict(re.findall(r"^\| `dtrain\.scipy\.(\w+)` \| (.*) \|$", modules, re.M))
    assert sorted(rows) == sorted(dtrain.scipy.__all__)
    methods = {"pdf", "logpdf", "cdf", "sf", "logcdf", "logsf", "pmf", "logpmf", "entropy"}
    for name, cell in rows.items():
        module = importlib.import_module(f"dtrain.scipy.{name}")
        assert sorted(set(re.findall(r"`(\w+)`", cell)) - methods) == sorted(module.__all__)


def test_functions_beside_numpy_exist() -> None:
    for name in re.findall(r"`dtrain\.([\w.]+)", text_of("models.md")):
        found: Any = dtrain
        for part in name.split("."):
            found = getattr(found, part)


ALTERNATIVES = tables(section(text_of("models.md"), "Not covered yet"))["Instead of"]


@pytest.mark.parametrize(("refused", "instead"), ALTERNATIVES, ids=[row[0] for row in ALTERNATIVES])
def test_alternatives_compute_the_same_and_are_recorded(refused: str, instead: str) -> None:
    x = np.array([[1.5, 2.25, 3.0], [0.75, 5.5, 2.0], [4.0, 0.5, 1.25]])

    def function(cell: str) -> Any:
        return eval(f"lambda x: {code_in(cell)}", {"np": np})

    np.testing.assert_allclose(function(instead)(x), function(refused)(x), rtol=1e-12)
    with pytest.raises(errors.TraceError):
        dtrain.trace(function(refused), x)
    recorded = dtrain.trace(function(instead), x).outputs[0]
    np.testing.assert_allclose(recorded.value, function(refused)(x), rtol=1e-12)


def run_in_function(code: str) -> Any:
    try:
        body = ast.unparse(ast.Return(ast.parse(code, mode="eval").body))
    except SyntaxError:
        body = code
    space: dict[str, Any] = {"np": np, "dropout": dtrain.graph.dropout}
    exec(compile(f"def f(x):\n    {body}\n", "model.py", "exec"), space)
    return space["f"]


RECORDED_ERRORS = tables(section(text_of("models.md"), "Errors"))["In a recorded function"]
JOB_ERRORS = tables(section(text_of("models.md"), "Errors"))["`loss` returns"]


@pytest.mark.parametrize(("code", "message"), RECORDED_ERRORS, ids=[row[0] for row in RECORDED_ERRORS])
def test_errors_of_recording_have_the_documented_text(code: str, message: str) -> None:
    with pytest.raises(errors.DtrainError) as raised:
        dtrain.trace(run_in_function(code_in(code)), np.ones((3, 3)))
    said = f"{type(raised.value).__name__}: {raised.value}".replace("`", "")
    assert matches(code_in(message), said), said
    assert "dropout" in code or "model.py:2" in said


@pytest.mark.parametrize(("code", "message"), JOB_ERRORS, ids=[row[0] for row in JOB_ERRORS])
def test_errors_of_a_job_have_the_documented_text(code: str, message: str) -> None:
    loss = eval(f"lambda params, batch: {code_in(code)}", {"np": np})
    with pytest.raises(errors.DtrainError) as raised:
        dtrain.fit(
            loss, {"w": np.zeros((3, 2))}, {"x": np.ones((8, 3))}, batch=8, shards=2, workers=0, steps=1, progress=False
        )
    assert matches(code_in(message), str(raised.value)), str(raised.value)


# --- jobs.md ---------------------------------------------------------------------------------------------------------


def type_words(node: dict[str, Any]) -> str:
    """A JSON Schema's type in the words of the page."""
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return " or ".join(node["enum"])
    if "anyOf" in node:
        if any("\\d" in kind.get("pattern", "") for kind in node["anyOf"]):
            is_of_time = any("hour" in kind.get("pattern", "") for kind in node["anyOf"])
            return "interval or null" if is_of_time else "interval (steps or epochs) or null"
        return " or ".join(type_words(kind) for kind in node["anyOf"])
    kind = node["type"]
    if "maximum" in node:
        return f"{kind} {node['minimum']} to {node['maximum']}"
    if "minimum" in node:
        return f"{kind} ≥ {node['minimum']}"
    return f"{kind} > {node['exclusiveMinimum']}" if "exclusiveMinimum" in node else str(kind)


def spec_rows() -> Iterator[tuple[str, str, str]]:
    """(key, type, default) of every key of a job, in the schema's order; defaults as the written job has them."""
    schema = json_schema()
    values = parse_spec({**MINIMAL, "batch": 1, "epochs": 1}).model_dump(mode="json")
    values.update(epochs=None, name="file's name", base_dir="file's folder")

    def walk(node: dict[str, Any], written: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
        for key, inner in node["properties"].items():
            reference = inner.get("$ref")
            if reference is not None:
                yield from walk(schema["$defs"][reference.rsplit("/", 1)[1]], written[key], f"{prefix}{key}.")
                continue
            value = written[key]
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            default = "required" if key in node.get("required", ()) else shown
            yield f"{prefix}{key}", type_words(inner), "null" if f"{prefix}{key}" == "model.name" else default

    yield from walk(schema, values, "")


def test_every_key_of_a_job_is_listed_with_type_and_default() -> None:
    rows = tables(section(text_of("jobs.md"), "Keys"))["Key"]
    assert [(code_in(key), kind, default.strip("`")) for key, kind, default, _ in rows] == list(spec_rows())
    assert all(meaning for *_, meaning in rows)


def test_what_decides_the_result_is_what_the_digest_covers() -> None:
    sentence = re.search(r"\*\*What decides the result\*\*(.*?)\. A model file", text_of("jobs.md"), re.S)
    assert sentence is not None
    job = {**MINIMAL, "batch": 8, "epochs": 2}
    changes = {
        "name": "other",
        "seed": 1,
        "model": {"name": "svm"},
        "data": {"name": "spiral"},
        "loss": "hinge",
        "optimizer": {"name": "sgd", "lr": 0.2},
        "batch": 9,
        "shards": 4,
        "epochs": 3,
        "dtype": "float64",
        "workers": 2,
        "overlap": True,
        "eval": {"every": 5},
        "checkpoint": {"keep": 1},
        "introspect": {"every": 2},
        "on_nonfinite": "skip",
        "timeout_seconds": 1.0,
        "startup_timeout_seconds": 9.0,
        "monitor": {"metrics_port": None},
        "base_dir": "elsewhere",
    }
    digest = parse_spec(job).digest()
    decisive = {key for key, value in changes.items() if parse_spec({**job, key: value}).digest() != digest}
    assert set(changes) | {"steps"} == set(json_schema()["properties"])
    assert set(names_in(sentence[1])) == decisive | {"steps"}


def option_words(cls: type, changed: dict[str, Any], left_out: tuple[str, ...] = ()) -> list[str]:
    """The options of a dataclass as the page writes them: `name: default` (range or choices)."""
    words = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in left_out:
            continue
        default = changed.get(field.name, field.default)
        text = f"`{field.name}`"
        if default is not dataclasses.MISSING:
            value = json.dumps(list(default) if isinstance(default, tuple) else default).strip('"')
            text = f"`{field.name}: {value}`"
        about = [f"{word} {bound:g}" for word, bound in field.metadata.get("bounds", {}).items()]
        if typing.get_origin(hints[field.name]) is typing.Literal:
            about = [str(a).lower() if isinstance(a, bool) else a for a in typing.get_args(hints[field.name])]
        words.append(f"{text} ({', '.join(about)})" if about else text)
    return words


def test_models_are_listed_with_their_options_and_loss() -> None:
    rows = tables(section(text_of("jobs.md"), "Models"))["`model.name`"]
    expected = [[f"`{n}`", ", ".join(option_words(cls, {})), f"`{cls.default_loss}`"] for n, cls in MODELS.items()]
    assert [row[:3] for row in rows] == expected


def test_losses_are_listed() -> None:
    rows = tables(section(text_of("jobs.md"), "Losses"))["`loss`"]
    assert [code_in(row[0]) for row in rows] == list(LOSSES)


def test_rules_are_listed_with_their_options() -> None:
    found = tables(section(text_of("jobs.md"), "Optimizers"))
    expected = [[f"`{name}`", ", ".join(option_words(cls, changed))] for name, (cls, changed) in RULES.items()]
    assert found["`optimizer.name`"] == expected
    assert [code_in(row[0]) for row in found["Rule"]] == list(RULES)


def test_schedules_are_listed_with_their_options() -> None:
    rows = tables(section(text_of("jobs.md"), "Schedules"))["`optimizer.schedule.name`"]
    expected = [[f"`{n}`", ", ".join(option_words(cls, {}, ("base",))) or "none"] for n, cls in SCHEDULES.items()]
    assert [row[:2] for row in rows] == expected


def test_sources_are_listed_with_their_options() -> None:
    rows = tables(section(text_of("jobs.md"), "Data sources"))["`data.name`"]
    expected = []
    for name, entry in SOURCES.items():
        paths = [f"`{p}` (path)" if required else f"`{p}: null` (path)" for p, required in entry.paths.items()]
        expected.append([f"`{name}`", ", ".join([*paths, *option_words(entry.options, {})])])
    assert [row[:2] for row in rows] == expected


def test_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DtrainError)]
    rows = tables(section(text_of("jobs.md"), "Exit codes"))["Code"]
    listed = {int(code) for row in rows for code in names_in(row[0])}
    assert listed == {0, 1, 130, 143} | {kind.exit_code for kind in kinds}  # 1: what `dtrain diff` says


def test_arguments_of_fit_are_listed_with_their_defaults() -> None:
    text = section(text_of("jobs.md"), "From Python")
    parameters = inspect.signature(dtrain.fit).parameters.values()
    expected = [(p.name, "required" if p.default is p.empty else str(p.default)) for p in parameters]
    assert [(code_in(row[0]), row[1].strip("`")) for row in tables(text)["Argument"]] == expected
    sentence = re.search(r"The result has (.*?)\. Errors", text, re.S)
    assert sentence is not None
    assert set(names_in(sentence[1])) == {field.name for field in dataclasses.fields(FitResult)}


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
