"""The live page and the report in a real browser: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from dtrain.jobs.backend import LocalBackend
from dtrain.jobs.build import build
from dtrain.jobs.dashboard import Dashboard
from dtrain.jobs.run import run_job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import parse_spec
from dtrain.monitor.page_server import PageServer

TOKEN = "a-token-of-the-tests-1234"
JOB: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [16]},
    "data": {"name": "digits"},
    "optimizer": {"name": "adam", "lr": 2e-3},
    "batch": 128,
    "steps": 40,
    "eval": {"every": 8},
    "introspect": {"every": 20},
    "monitor": {"metrics_port": None},
}
MODEL = """
import numpy as np

def init(rng):
    return {"w": rng.standard_normal((64, 10)) * 0.1, "scale": np.full(1, 0.2)}

def loss(params, batch):
    s = batch["x"] @ params["w"] * np.sqrt(params["scale"])
    s = s - np.max(s, axis=1, keepdims=True)
    return np.log(np.sum(np.exp(s), axis=1)) - s[np.arange(len(batch["y"])), batch["y"]] + 3 * params["scale"]
"""


def made(path: Path, **changed: Any) -> Path:
    spec = parse_spec({**JOB, **changed})
    directory = RunDirectory.create(spec.name, path=path)
    directory.write_job(spec)
    run_job(spec, build(spec), directory, LocalBackend(0), is_quiet=True)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that succeed and differ in lr, and two that fail with a value that is not finite: looked into then, and
    some steps before."""
    folder = tmp_path_factory.mktemp("runs")
    made(folder / "digits" / "one")
    made(folder / "digits" / "two", optimizer={"name": "adam", "lr": 5e-4})
    (folder / "model.py").write_text(MODEL)
    made(
        folder / "nan" / "three",
        model={"entry": str(folder / "model.py")},
        optimizer={"name": "sgd", "lr": 0.05},
        introspect={"every": 1},
    )
    made(
        folder / "nan" / "four",
        model={"entry": str(folder / "model.py")},
        optimizer={"name": "sgd", "lr": 0.05},
    )
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[PageServer]:
    with served(*(root / name for name in ("digits/one", "digits/two", "nan/three", "nan/four"))) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """The browser, whose pages share a cache."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("these tests need Debian's Chromium: apt-get install chromium", pytrace=False)
    quiet = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    with sync_playwright() as playwright:
        options = ["--no-sandbox", *(f"--{option}" for option in quiet.split())]
        opened = playwright.chromium.launch(executable_path=chromium, args=options)
        yield opened.new_context(viewport={"width": 1300, "height": 900})
        opened.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """A page that says nothing on its console and asks nobody but the server."""
    opened = browser.new_page()
    opened.set_default_timeout(30_000)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    opened.close()
    assert [line for line in said if "ERR_CONNECTION" not in line and "ERR_INCOMPLETE" not in line] == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "file://", "data:", "blob:"))] == []


@contextmanager
def served(*runs: Path, port: int = 0) -> Iterator[PageServer]:
    listening = socket.create_server(("127.0.0.1", port))
    with PageServer(Dashboard([str(run) for run in runs]), listening, TOKEN) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.stop()


def link(server: PageServer, *runs: Path) -> str:
    return f"{server.link}#" + "&".join(f"run={quote(str(run), safe='')}" for run in runs)


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["type"] == kind]


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def chart(page: Page, panel: str) -> list[dict[str, Any]]:
    """What plotly draws in a panel, once it does."""
    place = page.locator(f"#panel-{panel} .chart")
    place.locator(".main-svg").first.wait_for()
    drawn: list[dict[str, Any]] = place.evaluate(
        "chart => chart.data.map(({name, x, y, z}) => ({name, x: [...(x ?? [])], y: [...(y ?? [])], z}))"
    )
    return drawn


def test_the_curves_are_those_of_the_files(page: Page, root: Path, server: PageServer) -> None:
    run = root / "digits" / "one"
    steps, evaluations = lines_of(run, "step"), lines_of(run, "eval")
    page.goto(link(server, run))
    train, test = chart(page, "loss")
    assert (train["x"], train["y"]) == ([s["step"] for s in steps], [s["loss"] for s in steps])
    assert (test["x"], test["y"]) == ([e["step"] for e in evaluations], [e["loss"] for e in evaluations])
    assert [e["metrics"]["accuracy"] for e in evaluations] == chart(page, "metrics")[0]["y"]
    assert [s["gradient_norm"] for s in steps] == chart(page, "gradient")[0]["y"]
    assert [s["learning_rate"] for s in steps] == chart(page, "rate")[0]["y"]
    page.locator("#panel-loss summary").click()
    rows = page.locator("#panel-loss table tbody tr").all_inner_texts()
    assert rows[7].split("\t") == [str(steps[-1]["step"]), "train loss", repr(steps[-1]["loss"])]
    fingerprint = json.loads((run / "result.json").read_text())["fingerprint"]
    assert fingerprint in page.locator("#standing").inner_text()
    page.locator("#connection", has_text="live").wait_for()


def test_a_link_with_another_token_shows_nothing(browser: BrowserContext, root: Path) -> None:
    page = browser.new_page()
    with served(root / "digits" / "one") as server:
        answer = page.goto(server.link.replace(TOKEN, "b" * 24))
        assert answer is not None
        assert answer.status == 401
        assert page.locator("#panels").count() == 0
        assert "digits" not in page.content()
        page.close()


def test_runs_are_compared(page: Page, root: Path, server: PageServer) -> None:
    one, two = root / "digits" / "one", root / "digits" / "two"
    page.goto(link(server, one))
    chart(page, "loss")
    page.get_by_label(f"compare {two}").check()
    rows = page.locator("#differences tbody tr")
    rows.first.wait_for()
    keys = [row.split("\t")[0] for row in rows.all_inner_texts()]
    assert keys == ["optimizer.lr", "fingerprint"]
    assert rows.first.inner_text().split("\t")[1:] == ["0.002", "0.0005"]
    until(lambda: len(chart(page, "loss")) == 4)
    names = [trace["name"] for trace in chart(page, "loss")]
    assert names == ["one train loss", "one eval loss", "two train loss", "two eval loss"]
    assert chart(page, "loss")[2]["y"] == [s["loss"] for s in lines_of(two, "step")]


def test_an_edge_of_the_graph_tells_its_figures(page: Page, root: Path, server: PageServer) -> None:
    run = root / "digits" / "one"
    looks = [json.loads(line) for line in (run / "introspection.jsonl").read_text().splitlines()]
    page.goto(link(server, run))
    mark = page.locator("#picture text.value[data-edge]").first
    mark.wait_for()
    mark.focus()
    page.keyboard.press("Enter")
    number = int(mark.get_attribute("data-edge") or "")
    told = page.locator("#detail .value").inner_text()
    value = looks[-1]["edges"][number]["value"]
    assert float(told.split("norm ")[1].split(",")[0]) == pytest.approx(value["norm"], rel=1e-4)
    assert page.locator("#detail .value .bars i").count() == len(value["counts"])
    boxes = [box["label"] for box in looks[0]["graph"]["boxes"]]
    parameter = looks[-1]["parameters"][0]["name"]
    edge = next(i for i, (a, _) in enumerate(looks[0]["graph"]["edges"]) if boxes[a] == parameter)
    page.locator("#edge").select_option(str(edge))
    page.locator("#detail", has_text="worker 0 (shards 0–7)").wait_for()
    assert "100.0 %" in page.locator("#detail").inner_text()
    page.locator("#look").fill("0")
    page.locator("#look-step", has_text="after 0 steps").wait_for()
    page.locator("#picture", has_text="after 0 steps").wait_for()


def test_a_failed_run_says_why_and_where(page: Page, root: Path, server: PageServer) -> None:
    run = root / "nan" / "three"
    page.goto(link(server, run))
    page.locator("#origins", has_text="the value of sqrt at model.py:8").wait_for()
    assert "the loss is nan" in page.locator("#standing .error").inner_text()
    assert page.locator("#picture .origin").count() == 1
    assert page.locator("#picture path.not-finite").count() > 3
    assert page.locator("#origins").inner_text().startswith("Not finite")
    assert "No evaluation yet." in page.locator("#panel-metrics").inner_text()


def test_the_line_of_an_error_is_marked_in_a_look_before_it(page: Page, root: Path, server: PageServer) -> None:
    page.goto(link(server, root / "nan" / "four"))
    page.locator("#origins", has_text="The run has ended at model.py:8").wait_for()
    assert page.locator("#picture .origin .label").all_text_contents() == ["@", "√", "×"]  # of that line


def test_a_page_goes_on_after_the_server_was_away(page: Page, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(root / "digits" / "one", run)
    size = (run / "metrics.jsonl").stat().st_size
    line = {**lines_of(run, "step")[-1], "step": 40, "loss": 0.125}
    with served(run) as server:
        port = server.server_address[1]
        page.goto(link(server, run))
        assert len(chart(page, "loss")[0]["x"]) == 40
        page.locator("#connection", has_text="live").wait_for()
    page.locator("#connection", has_text="again").wait_for()
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    asked: list[Callable[[], dict[str, str]]] = []
    page.on("request", lambda request: asked.append(request.all_headers) if "/stream" in request.url else None)
    with served(run, port=port):
        until(lambda: len(chart(page, "loss")[0]["x"]) == 41)
        assert chart(page, "loss")[0]["y"][-1] == 0.125
        assert asked[-1]()["last-event-id"] == str(size)


def test_a_page_follows_a_resume_that_cuts_the_log(page: Page, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(root / "digits" / "one", run)
    with served(run) as server:
        page.goto(link(server, run))
        chart(page, "loss")
        page.locator("#connection", has_text="live").wait_for()
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:20]))
        until(lambda: len(chart(page, "loss")[0]["x"]) < 21)


def test_it_can_be_used_on_a_phone_and_with_the_keyboard(
    browser: BrowserContext, root: Path, server: PageServer
) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.goto(link(server, root / "digits" / "one"))
    chart(page, "loss")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the run"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # automatic → light
    assert page.evaluate(ground) != dark
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, [tabindex="0"], [role=img]')].filter((e) =>
           e.checkVisibility() && !e.closest('.js-plotly-plot .plotly') && !(e.getAttribute('aria-label') ||
           e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    page.close()


def test_the_report_stands_alone(page: Page, root: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for run, words in (
        (root / "digits" / "one", ["succeeded", "optimizer:", "dtrain run", "evaluation"]),
        (root / "nan" / "three", ["failed", "the loss is nan", "The value of sqrt"]),
    ):
        address = (run / "report.html").as_uri()
        page.goto(address)
        assert asked == [address]
        asked.clear()
        text = page.locator("body").inner_text()
        result = json.loads((run / "result.json").read_text())
        assert all(word.lower() in text.lower() for word in [*words, result["fingerprint"]])
        assert page.locator("svg.plot").count() >= 5
        assert page.locator("svg.graph [data-edge]").count() > 5
        assert page.evaluate("document.documentElement.scrollWidth") <= 1300
        assert (run / "report.html").stat().st_size < 1_000_000
