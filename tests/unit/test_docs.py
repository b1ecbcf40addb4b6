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

import dtrain
from dtrain import errors
from dtrain.commands import app
from dtrain.data.catalog import SOURCES
from dtrain.graph.operators import FUNCTIONS, METHODS, REDUCTIONS, SPECIAL, UFUNCS
from dtrain.jobs.build import build
from dtrain.jobs.fit import FitResult
from dtrain.jobs.spec import json_schema, load_spec, parse_spec
from dtrain.nn import LOSSES, MODELS
from dtrain.optim import RULES, SCHEDULES
from tests.pages import ROOT, blocks, code_in, matches, names_in, section, tables, text_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MINIMAL = {"model": {"name": "softmax"}, "data": {"name": "digits"}, "optimizer": {"name": "sgd", "lr": 0.1}}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


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
