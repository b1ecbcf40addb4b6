"""The commands of ``dtrain``, with Ray's words for jobs and ``--json`` for machines."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from dtrain import __version__
from dtrain.errors import InputError
from dtrain.jobs.build import build
from dtrain.jobs.run import resume_job, run_job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import json_schema, load_spec
from dtrain.jobs.start import started
from dtrain.monitor.progress import final_summary

app = typer.Typer(
    help="Train models written in plain NumPy, data-parallel, with the same bits everywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
WORKERS = typer.Option("--workers", "-w", help="Worker processes: a number, auto (one per core), or 0 for none.")
BACKEND = typer.Option(
    "--backend", help="Where the workers are: local, mpi, ray, or auto (mpi if mpirun started this, else local)."
)
JSON = typer.Option("--json", help="Print the result as JSON on standard output, and nothing else there.")
QUIET = typer.Option("--quiet", "-q", help="No progress display.")


@app.command()
def run(
    context: typer.Context,
    spec: Annotated[str, typer.Argument(help="The job: a YAML or TOML file.")],
    workers: Annotated[str | None, WORKERS] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the job: optimizer.lr=0.01.")
    ] = None,
    run_dir: Annotated[str | None, typer.Option(help="Directory of the run; runs/NAME/ID unless given.")] = None,
    backend: Annotated[str, BACKEND] = "auto",
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Train a job: on this machine, on the ranks of mpirun, or on a Ray cluster."""
    with started(context.obj, backend, _workers(workers)) as where:
        if where is None:
            return
        job = load_spec(spec, overrides or [])
        program = build(job)
        chosen = where(job)
        directory = RunDirectory.create(job.name, path=run_dir)
        directory.write_job(job)
        _finish(run_job(job, program, directory, chosen, is_quiet=quiet, on_start=_say), as_json)


@app.command()
def resume(
    context: typer.Context,
    run_dir: Annotated[str, typer.Argument(help="The directory of a run that was stopped or killed.")],
    workers: Annotated[str | None, WORKERS] = None,
    backend: Annotated[str, BACKEND] = "auto",
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Go on with a run from its newest valid checkpoint, with any number of workers."""
    with started(context.obj, backend, _workers(workers)) as where:
        if where is not None:
            _finish(resume_job(run_dir, where, is_quiet=quiet, on_start=_say), as_json)


@app.command()
def status(
    run_dir: Annotated[str, typer.Argument(help="The directory of a run.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say how a run stands: pending, running, succeeded, failed or stopped."""
    directory = RunDirectory.open(run_dir)
    state, result = directory.status(), directory.read_result() or {}
    if as_json:
        print(json.dumps({**result, "status": state, "pid": directory.holder()}))
    else:
        print(f"{state}" + (f" at step {result['step']}" if "step" in result and state != "running" else ""))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job file."""
    print(json.dumps(json_schema(), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _workers(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isascii() or not text.isdigit():
        raise InputError(f"--workers: expected auto or a number of at least 0, got {text!r}")
    return int(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
    elif result["status"] == "failed":
        _say(final_summary(result, result["run_directory"]))
    else:
        print(final_summary(result, result["run_directory"]))
    if result["status"] == "stopped":
        _say(f"go on with: dtrain resume {result['run_directory']}")
    sys.stdout.flush()
    if result["exit_code"]:
        sys.exit(result["exit_code"])
