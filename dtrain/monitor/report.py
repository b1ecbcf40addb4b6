"""``report.html``: a run told on one page that needs nothing else, to be kept or sent."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from dtrain.graph.drawing.figures import drawn
from dtrain.monitor.curves import Line, curves, heat_map, stacked_bars, time_line

POINTS = 500
"""About how many points of a curve there are."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { max-width: 72rem; margin: auto; padding: 1rem; } h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1rem; }
.panel { margin: 0 0 1rem; } .grid .panel { margin: 0; } .scroll { max-height: none; }
pre { overflow: auto; font-size: .85rem; }
.plot { width: 100%; height: auto; font: 11px ui-sans-serif, system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
.rule { stroke: var(--grid); fill: none; } .cross { fill: var(--bad); text-anchor: middle; font-size: 14px; }
"""


def report_html(view: Mapping[str, Any], job: str, picture: Mapping[str, Any] | None, version: str) -> str:
    """Return the page. ``view`` is what `jobs.dashboard.RunView.view` returns, ``job`` the content of job.yaml,
    ``picture`` what `described` returned of the graph, if it is known, with its `step`."""
    result = dict(view["result"] or {})
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    error = result.get("error") or view["details"].get("error")
    parts = [
        f'<h1>{escape(view["id"])} <span class="status {view["status"]}">{escape(view["status"])}</span></h1>',
        f'<p class="question">Written by dtrain {escape(version)}, {made}.</p>',
        f'<p class="error" role="alert">{escape(str(error))}</p>' if error else "",
        _panel("Result", "", _table([("", "")], _result_rows(view, result), is_headed=False)),
        f'<div class="grid">{"".join(_charts(view))}</div><p></p>',
        _graph(picture),
        _evaluations(view),
        _panel("Events", "", _table(["seconds", "event", ""], _event_rows(view))),
        _panel("How to reproduce it", "", _reproduced(view, result)),
        _panel("The job", "", f'<pre tabindex="0">{escape(job)}</pre>'),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(view['id'])} · dtrain</title><style>{_styles()}{_STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _styles() -> str:
    """The style of the live page, dark where the reader's system is."""
    style = (Path(__file__).parent / "page" / "page.css").read_text(encoding="utf-8")
    dark = re.search(r':root\[data-theme="dark"\] (\{.*?\})', style, re.S)
    assert dark is not None
    return f"{style}@media (prefers-color-scheme: dark) {{ :root {dark[1]} }}"


def _panel(title: str, question: str, content: str) -> str:
    if not content:
        return ""
    asked = f'<p class="question">{escape(question)}</p>' if question else ""
    return f'<section class="panel"><h2>{escape(title)}</h2>{asked}{content}</section>\n'


def _result_rows(view: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("status", view["status"]), ("steps", f"{view['step']} of {view['steps']}")]
    if result.get("train_loss") is not None:
        rows.append(("train loss", _number(result["train_loss"])))
    rows += [(f"test {name}", _number(value)) for name, value in (result.get("eval") or {}).items()]
    for name, key in (("seconds", "seconds"), ("workers replaced", "restarts"), ("fingerprint", "fingerprint")):
        if result.get(key) is not None:
            rows.append((name, str(result[key])))
    rows += [(name, str(result[name])) for name in ("numerics", "digest_chain", "job_digest") if result.get(name)]
    return [*rows, ("run directory", view["run_directory"])]


def _charts(view: Mapping[str, Any]) -> list[str]:
    series, evaluations = view["series"], view["evaluations"]

    def line(key: str, name: str) -> list[Line]:
        return [(name, series[key]["step"], series[key]["value"])] if key in series else []

    tests: list[Line] = [(f"test {n}", found["step"], found["value"]) for n, found in evaluations.items()]
    rates, tables = view["rates"], {"update_to_weight": view["ratios"], **view["tables"]}
    losses = [*line("loss", "train loss"), *(test for test in tests if test[0] == "test loss")]
    others = [test for test in tests if test[0] != "test loss"]
    found = [
        ("Loss", "Does it learn, and does it generalise?", curves(losses, _about(losses))),
        ("Evaluation", "How good is it on samples it has not seen?", curves(others, _about(others))),
        (
            "Gradient norm",
            "Do gradients explode or vanish?",
            curves(n := line("gradient_norm", "norm"), _about(n), is_log=True),
        ),
        ("Learning rate", "What did the schedule give?", curves(n := line("learning_rate", "rate"), _about(n))),
        (
            "Throughput",
            "How fast was it?",
            curves(n := [("samples a second", rates["step"], rates["samples"])], _about(n)),
        ),
        (
            "Phases of the workers",
            "Where did the time go? The last lines that tell it.",
            stacked_bars(
                {f"worker {w}": phases for w, phases in view["phases"].items()}, "seconds by worker and phase"
            ),
        ),
        (
            "Workers",
            "Who took part and when? ▲ joined, ✖ lost, ▽ left.",
            time_line(view["timeline"], "workers over time"),
        ),
    ]
    for key, title, question in (
        ("parameter_norms", "Gradient norm by parameter", "In which layer?"),
        ("update_to_weight", "Update to weight", "How far did a step move each parameter? About 0.001 is usual."),
    ):
        if (table := tables.get(key)) and table["step"]:
            found.append(
                (title, question, heat_map(table["names"], table["step"], table["values"], f"{title} over the steps"))
            )
    return [_panel(*entry) for entry in found]


def _about(lines: Sequence[Line]) -> str:
    return "; ".join(
        f"{name}: {_number(values[-1])} at step {steps[-1]}" for name, steps, values in lines if len(steps)
    )


def _graph(picture: Mapping[str, Any] | None) -> str:
    if picture is None or not picture.get("graph"):
        return _panel(
            "The graph", "", "<p class='empty'>The run was not looked into, and is too short to be at its end.</p>"
        )
    title = f"The loss of the first shard after {picture['step']} steps"
    lines = [
        f"The {o['what']} of {o['op']} at {o['line']} is the first that is not finite." for o in picture["origins"]
    ]
    told = "".join(f'<p class="error">{escape(line)}</p>' for line in lines)
    question = "What flows along each edge: the norm of the value above, of its gradient below."
    return _panel("The graph", question, f'{told}<div class="scroll" tabindex="0">{drawn(picture, title)}</div>')


def _evaluations(view: Mapping[str, Any]) -> str:
    found = view["evaluations"]
    if not found:
        return _panel("Evaluations", "", "<p class='empty'>There was none.</p>")
    names = list(found)
    by_step: dict[int, dict[str, float]] = {}
    for name in names:
        for step, value in zip(found[name]["step"], found[name]["value"], strict=True):
            by_step.setdefault(step, {})[name] = value
    steps = sorted(by_step)[-30:]
    rows = [(str(s), *(_number(by_step[s][n]) if n in by_step[s] else "" for n in names)) for s in steps]
    return _panel("Evaluations", "", _table(["step", *names], rows))


def _event_rows(view: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    events = view["timeline"]["events"]
    start = events[0]["time"] if events else 0.0
    return [(f"{e['time'] - start:.1f}", e["event"].replace("_", " "), e["text"]) for e in events[-100:]]


def _reproduced(view: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    path = shlex.quote(f"{view['run_directory']}/job.yaml")
    steps = (
        "<p>The job below is whole; the same bits come out for any number of workers.</p>"
        f"<pre>dtrain run {escape(path)}</pre>"
    )
    if result.get("fingerprint"):
        steps += (
            f"<p>After {view['step']} steps the fingerprint must be</p><pre>{escape(result['fingerprint'])}</pre>"
            f"<p>on a machine of the numerics class {escape(str(result.get('numerics', '')))}.</p>"
        )
    return steps


def _table(heads: Sequence[Any], rows: Sequence[Sequence[str]], *, is_headed: bool = True) -> str:
    head = "".join(f'<th scope="col">{escape(str(h))}</th>' for h in heads)
    body = "".join(
        "<tr>"
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if is_headed else ''}<tbody>{body}</tbody></table>"


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int | str) else f"{float(value):.6g}"
