"""Commands for jobs in the background, on this machine or on a Ray cluster, in Ray's words."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dtrain.commands.app import (
    ADDRESS,
    ID,
    JSON,
    SET,
    SPEC,
    WAIT,
    WORKERS,
    app,
    follow_up,
    jobs_at,
    overrides_of,
    say,
    workers_of,
)
from dtrain.jobs.job import show_jobs
from dtrain.jobs.spec import load_spec
from dtrain.monitor.lines import encode


@app.command()
def submit(
    spec: Annotated[str, SPEC],
    name: Annotated[str | None, typer.Option(help="Name of the job; that of the file unless given.")] = None,
    workers: Annotated[str | None, WORKERS] = None,
    overrides: Annotated[list[str] | None, SET] = None,
    wait: Annotated[bool, WAIT] = False,
    address: Annotated[str | None, ADDRESS] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Start a job in the background, on this machine or on a Ray cluster, and print its ID."""
    job = load_spec(spec, overrides_of(overrides, name=name, workers=workers_of(workers)))
    jobs = jobs_at(address)
    follow_up(jobs, jobs.submit(job), wait, as_json, address)


@app.command("list")
def list_jobs(address: Annotated[str | None, ADDRESS] = None, as_json: Annotated[bool, JSON] = False) -> None:
    """List the jobs, the newest last."""
    found = jobs_at(address).all()
    if as_json:
        print(json.dumps([job.to_json() for job in found]))
    elif found:
        show_jobs(found)
    else:
        say("there are no jobs")


@app.command()
def status(
    job_id: Annotated[str, ID],
    address: Annotated[str | None, ADDRESS] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say how a job stands: pending, running, succeeded, failed or stopped."""
    job = jobs_at(address, job_id).get(job_id)
    print(json.dumps(job.to_json()) if as_json else job.sentence())


@app.command()
def logs(
    job_id: Annotated[str, ID],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Print what a job has said; of a run that submit did not start, its events."""
    for piece in jobs_at(address, job_id).log(job_id, follow):
        print(piece, end="", flush=True)


@app.command()
def top(
    job_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The job; the newest that runs unless given.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and leave.")] = False,
    address: Annotated[str | None, ADDRESS] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Show a run on the whole terminal while it lasts: curves, speed, workers, alerts. q quits."""
    from dtrain.jobs import top
    from dtrain.jobs.detached import LocalJobs

    is_single = once or as_json or not top.has_screen()
    jobs = jobs_at(address, job_id)
    source = top.source_of(job_id, jobs, isinstance(jobs, LocalJobs), follow=not is_single)
    if as_json:
        print(json.dumps(json.loads(encode(top.as_plain(source)))))
    elif is_single:
        top.print_frame(source)
    else:
        top.follow(source)


@app.command()
def stop(
    job_id: Annotated[str, ID],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
    address: Annotated[str | None, ADDRESS] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Let a job end its step, write a checkpoint and leave. A second stop ends it at once."""
    jobs = jobs_at(address, job_id)
    job = jobs.get(job_id)
    if job.has_ended:
        say(f"{job.id} has {job.status} already" if job.status != "stopped" else f"{job.id} is stopped already")
    else:
        jobs.stop(job.id)
        if wait:
            while not (job := jobs.get(job.id)).has_ended:
                time.sleep(0.2)
    print(json.dumps(job.to_json()) if as_json else job.sentence())


@app.command()
def fetch(
    job_id: Annotated[str, ID],
    destination: Annotated[Path | None, typer.Argument(help="A new directory; runs/NAME/ID unless given.")] = None,
    checkpoints: Annotated[int, typer.Option(min=0, help="How many of the newest checkpoints to bring.")] = 1,
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Bring the run directory of a job here: its record, its result and its newest checkpoints."""
    print(jobs_at(address, job_id).fetch(job_id, destination, checkpoints))


@app.command(hidden=True)
def pack(
    run_dir: Path,
    checkpoints: Annotated[int, typer.Option(min=0)] = 1,
    hold: Annotated[bool, typer.Option(help="Wait for SIGTERM at the end, then empty standard output's file.")] = False,
) -> None:
    """Write a run directory to standard output, as lines of text: the other half of fetch."""
    from dtrain.jobs import parcel

    if hold:
        parcel.keep_stop_waiting()
    size = parcel.pack(run_dir, checkpoints, print)
    if hold:
        parcel.empty_when_stopped(size)
