"""Commands that look at a job before it runs, or at a run: validate, check, draw, race, ui and report."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dtrain.commands.app import (
    ID,
    JSON,
    SET,
    SPEC,
    WORKERS,
    app,
    overrides_of,
    say,
    workers_of,
)
from dtrain.errors import InputError
from dtrain.jobs.page import serve_page
from dtrain.jobs.runs import find_run
from dtrain.jobs.spec import load_spec


@app.command()
def validate(
    spec: Annotated[str, SPEC],
    workers: Annotated[str | None, WORKERS] = None,
    overrides: Annotated[list[str] | None, SET] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Check a job as far as that is possible without running it, and say what it needs."""
    from dataclasses import asdict

    from dtrain.jobs.validation import validate as check

    found = check(load_spec(spec, overrides_of(overrides, workers=workers_of(workers))))
    print(json.dumps(asdict(found)) if as_json else found.text())


@app.command()
def check(
    spec: Annotated[str, SPEC],
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Local processes that add gradients.")] = 2,
    overrides: Annotated[list[str] | None, SET] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Check the gradients of a job and their sum over workers in float64; 3 if one is wrong."""
    from dtrain.jobs.checking import check_job

    found = check_job(load_spec(spec, overrides or []), workers)
    print(json.dumps(found.plain()) if as_json else found.table())
    if not found.is_right:
        sys.stdout.flush()
        sys.exit(3)


@app.command()
def draw(
    target: Annotated[str, typer.Argument(help="A job file, module:function, or file.py:function.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The SVG file to write.")] = Path("graph.svg"),
    arguments: Annotated[list[str] | None, typer.Option("--arg", help="An argument of the function: x=-2.")] = None,
    overrides: Annotated[list[str] | None, SET] = None,
    max_nodes: Annotated[int, typer.Option(min=0, help="More operations than this are collapsed.")] = 60,
) -> None:
    """Draw a graph with the value above each edge and the gradient below it, as SVG."""
    from dtrain.jobs.drawing import draw_target

    picture = draw_target(target, arguments or [], overrides or [], max_nodes)
    try:
        output.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written: {error.strerror}") from None
    print(output)


@app.command()
def race(
    target: Annotated[
        str, typer.Argument(help="beale, saddle, valley, noisy-moons, or your own file.py:function of two numbers.")
    ],
    output: Annotated[str | None, typer.Option("--output", "-o", help="A picture, .svg or .png.")] = None,
    animation: Annotated[str | None, typer.Option(help="An animation, .gif.")] = None,
    start: Annotated[str | None, typer.Option(help="Where the rules begin, as x,y.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps they take.")] = None,
    lr: Annotated[list[str] | None, typer.Option("--lr", help="A learning rate, as adam=0.1.")] = None,
    rules: Annotated[str | None, typer.Option(help="Who takes part, as sgd,adam; all seven unless given.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Race the seven update rules over a function, and draw where they went (with the extra plots)."""
    from dtrain.jobs import racing

    course, walks = racing.race(target, start, steps, lr or [], rules)
    print(json.dumps(racing.to_json(course, walks)) if as_json else racing.table(course, walks))
    racing.draw(course, walks, output, animation)
    for path in filter(None, (output, animation)):
        say(path)


@app.command("ui")
def show_ui(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; all below runs/ if none.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="A port of 127.0.0.1; 0 for any free one.")] = None,
) -> None:
    """Serve a page that shows and compares runs, also while they last."""
    serve_page(runs or [], port, say)


@app.command()
def replay(
    job_id: Annotated[str, ID],
    step: Annotated[int, typer.Option(help="The step to run again; the first is 0.")],
    shard: Annotated[int | None, typer.Option(help="One shard of it; the first unless given, all with --save.")] = None,
    edge: Annotated[int | None, typer.Option(help="Print the value and the gradient of this edge.")] = None,
    output: Annotated[str | None, typer.Option("--save", help="Write every edge into this .npz file.")] = None,
) -> None:
    """Run a step of a run again and show the value and the gradient of every edge."""
    from dtrain.jobs import replaying

    then = replaying.moment(find_run(job_id), step)
    shards = [shard] if shard is not None else then.shards() if output else then.shards()[:1]
    found = {each: replaying.edges(replaying.replayed(then, each)) for each in shards}
    say(f"step {step} of {len(then.shards())} shards, from {then.source}")
    for each, seen in found.items():
        print(f"shard {each}\n{replaying.table(seen) if edge is None else replaying.shown(seen, edge)}")
    if output:
        replaying.save(found, Path(output))
        say(output)


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="RUN_A", help="A run: NAME/ID, ID alone, or its directory.")],
    other: Annotated[str, typer.Argument(metavar="RUN_B", help="Another run.")],
    deep: Annotated[bool, typer.Option("--deep/--quick", help="Run the step again to find what differs first.")] = True,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Find the first step at which two runs part, and the tensor, shard and edge; 1 if they do."""
    from dtrain.jobs.comparing import compare

    found = compare(find_run(one), find_run(other), deep)
    print(json.dumps(dataclasses.asdict(found)) if as_json else found.text())
    if found.step is not None:
        sys.exit(1)


@app.command()
def report(job_id: Annotated[str, ID]) -> None:
    """Make report.html of a run again."""
    from dtrain.jobs.reporting import write_report

    print(write_report(find_run(job_id)))
