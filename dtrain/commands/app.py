"""The application that the commands register with, the options that several of them have, and what they share."""

from __future__ import annotations

import json
import os
import sys

import typer

from dtrain.errors import InputError
from dtrain.jobs.job import Job, Jobs

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
SET = typer.Option("--set", help="Override a key of the job: optimizer.lr=0.01.")
CLUSTER = typer.Option(
    "--address",
    help="The Ray cluster of --backend ray, HOST:6379 or auto; RAY_ADDRESS, or one started here, otherwise.",
)
ADDRESS = typer.Option(
    "--address",
    help="A Ray cluster's dashboard, http://HOST:8265; RAY_API_SERVER_ADDRESS or RAY_ADDRESS unless given, and this "
    "machine if neither is set, or for local.",
)
WAIT = typer.Option("--wait/--no-wait", help="Follow the log to the end of the job and leave with its exit code.")
SPEC = typer.Argument(help="The job: a YAML or TOML file.")
ID = typer.Argument(metavar="ID", help="The job: NAME/ID, ID alone, or the path of its run directory.")
QUIET = typer.Option("--quiet", "-q", help="No progress display.")
UI = typer.Option("--ui", help="Serve the live page of the run on 127.0.0.1 while it lasts, and print its link.")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def workers_of(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isascii() or not text.isdigit():
        raise InputError(f"--workers: expected auto or a number of at least 0, got {text!r}")
    return int(text)


def overrides_of(given: list[str] | None, **keys: str | int | None) -> list[str]:
    """The overrides of --set, and options that are keys of the job; text is quoted, so that it stays text."""
    return [*(given or []), *(f"{key}={json.dumps(value)}" for key, value in keys.items() if value is not None)]


def jobs_at(address: str | None, job_id: str | None = None) -> Jobs:
    """The place that an address, or the environment, names; a path of a run directory is always on this machine."""
    is_path = job_id is not None and os.path.isdir(job_id)
    if address is None and not is_path:
        address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or None
    if address in (None, "local"):
        from dtrain.jobs.detached import LocalJobs

        return LocalJobs()
    from dtrain.jobs.ray_jobs import RayJobs

    return RayJobs(address)


def follow_up(jobs: Jobs, job: Job, wait: bool, as_json: bool, address: str | None) -> None:
    """Say how to go on with a job that was just started, or follow it to its end."""
    name = job.id if address is None else f"{job.id} --address {address}"
    if not wait:
        print(json.dumps(job.to_json()) if as_json else job.id)
        say(f"follow it with dtrain logs -f {name}\nstop it with dtrain stop {name}")
        return
    say(job.id)
    try:
        for piece in jobs.log(job.id, follow=True, start=job.log_start):
            print(piece, end="", flush=True, file=sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        say(f"\nthe job goes on; stop it with dtrain stop {name}")
        raise
    job = jobs.get(job.id)
    if as_json:
        print(json.dumps(job.to_json()))
    sys.stdout.flush()
    if job.exit_code:
        sys.exit(job.exit_code)
