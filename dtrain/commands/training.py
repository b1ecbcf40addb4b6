"""Commands that train: run, resume, scale and launch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dtrain.commands.app import (
    ADDRESS,
    BACKEND,
    CLUSTER,
    ID,
    JSON,
    QUIET,
    SET,
    SPEC,
    UI,
    WAIT,
    WORKERS,
    app,
    follow_up,
    jobs_at,
    say,
    workers_of,
)
from dtrain.errors import InputError
from dtrain.jobs.backend import worker_count
from dtrain.jobs.build import build
from dtrain.jobs.page import check_page, live_page
from dtrain.jobs.run import check_resumable, resume_job, run_job
from dtrain.jobs.run_directory import RunDirectory, fresh_id, runs_root
from dtrain.jobs.runs import find_run
from dtrain.jobs.spec import JobSpec, load_spec
from dtrain.jobs.start import started
from dtrain.monitor.progress import final_summary


@app.command()
def run(
    context: typer.Context,
    spec: Annotated[str, SPEC],
    workers: Annotated[str | None, WORKERS] = None,
    overrides: Annotated[list[str] | None, SET] = None,
    run_dir: Annotated[str | None, typer.Option(help="Directory of the run; runs/NAME/ID unless given.")] = None,
    backend: Annotated[str, BACKEND] = "auto",
    address: Annotated[str | None, CLUSTER] = None,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
    ui: Annotated[bool, UI] = False,
) -> None:
    """Train a job: on this machine, on the ranks of mpirun, or on a Ray cluster."""
    count = workers_of(workers)
    if backend == "ray":
        job = load_spec(spec, overrides or [])
        program = build(job)
        job, directory = _prepared(job, program.steps, run_dir, ui)
        with live_page(directory, ui, say):
            result = _ray(address, quiet).run(job, program, directory.path, count)
        _finish(result, as_json)
        return
    with started(context.obj, backend, count) as where:
        if where is None:
            return
        job = load_spec(spec, overrides or [])
        program = build(job)
        chosen = where(job)
        job, directory = _prepared(job, program.steps, run_dir, ui)
        with live_page(directory, ui, say):
            result = run_job(job, program, directory, chosen, is_quiet=quiet, on_start=say)
        _finish(result, as_json)


@app.command()
def resume(
    context: typer.Context,
    job_id: Annotated[str, ID],
    workers: Annotated[str | None, WORKERS] = None,
    backend: Annotated[str, BACKEND] = "auto",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Go on in the background, as submit does.")] = False,
    wait: Annotated[bool, WAIT] = False,
    address: Annotated[str | None, ADDRESS] = None,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
    ui: Annotated[bool, UI] = False,
) -> None:
    """Go on with a run from its newest valid checkpoint, with any number of workers."""
    count = workers_of(workers)
    if backend == "ray" and not (detach or wait):
        directory = find_run(job_id)
        check_resumable(directory)
        job = directory.read_job()
        with live_page(directory, ui, say):
            result = _ray(address, quiet).run(job, build(job), directory.path, count, is_resumed=True)
        _finish(result, as_json)
        return
    if detach or wait or address not in (None, "local"):
        follow_up(jobs := jobs_at(address, job_id), jobs.resume(job_id, count), wait, as_json, address)
        return
    with started(context.obj, backend, count) as where:
        if where is not None:
            directory = find_run(job_id)
            check_resumable(directory)
            with live_page(directory, ui, say):
                result = resume_job(directory.path, where, is_quiet=quiet, on_start=say)
            _finish(result, as_json)


@app.command()
def scale(
    job_id: Annotated[str, ID],
    workers: Annotated[int, typer.Argument(help="How many workers the run is to have.")],
) -> None:
    """Give a run that lasts another number of workers; its result does not depend on it."""
    from dtrain.jobs.scaling import ask_for_workers

    run = find_run(job_id)
    ask_for_workers(run, workers)
    say(f"{run.path}: {workers} workers are asked for, from the next step on; see events.jsonl")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def launch(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="mpi", help="What to launch with.")],
    spec: Annotated[str, SPEC],
    ranks: Annotated[int, typer.Option("-n", help="How many ranks.")] = 0,
    max_restarts: Annotated[int, typer.Option(help="How often to go on from the last checkpoint.")] = 0,
    ulfm: Annotated[bool, typer.Option("--ulfm", help="Survive the death of a rank (Open MPI 5).")] = False,
    overrides: Annotated[list[str] | None, SET] = None,
    run_dir: Annotated[str | None, typer.Option(help="Directory of the run; runs/NAME/ID unless given.")] = None,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Start mpirun for a job, and start it again when MPI ends it; what is not known goes to mpirun."""
    from dtrain.jobs.launch import launch_mpi

    if kind != "mpi":
        raise InputError(f"launch: expected mpi, got {kind!r}")
    job = load_spec(spec, overrides or [])
    build(job)
    path = Path(run_dir or runs_root() / job.name / fresh_id()).absolute()
    arguments = ["run", spec, "--run-dir", str(path), *(f"--set={o}" for o in overrides or [])]
    arguments += ["--json"] * as_json + ["--quiet"] * quiet
    count = ranks or int(worker_count("auto"))
    code = launch_mpi(arguments, RunDirectory(path), count, max_restarts, context.args, ulfm, say)
    if code:
        sys.exit(code)


def _prepared(job: JobSpec, steps: int, run_dir: str | None, is_watched: bool) -> tuple[JobSpec, RunDirectory]:
    """The directory of a run that is to begin, with the job; a run that is watched is looked into a few times."""
    if is_watched:
        check_page()
        job = job.looked_into(steps)
    directory = RunDirectory.create(job.name, path=run_dir)
    directory.write_job(job)
    return job, directory


def _ray(address: str | None, is_quiet: bool) -> Any:
    from dtrain.jobs.ray_cluster import RayRun

    return RayRun(address, is_quiet, say)


def _finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
    elif result["status"] == "failed":
        say(final_summary(result, result["run_directory"]))
    else:
        print(final_summary(result, result["run_directory"]))
    if result["status"] == "stopped":
        say(f"go on with: dtrain resume {result['run_directory']}")
    sys.stdout.flush()
    if result["exit_code"]:
        sys.exit(result["exit_code"])
