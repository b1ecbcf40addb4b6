"""The commands of ``dtrain``, with Ray's words for jobs and ``--json`` for machines."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dtrain import __version__
from dtrain.errors import InputError
from dtrain.jobs.backend import worker_count
from dtrain.jobs.build import build
from dtrain.jobs.job import Job, Jobs, show_jobs
from dtrain.jobs.page import check_page, live_page, serve_page
from dtrain.jobs.run import check_resumable, resume_job, run_job
from dtrain.jobs.run_directory import RunDirectory, fresh_id, runs_root
from dtrain.jobs.runs import find_run
from dtrain.jobs.spec import JobSpec, json_schema, load_spec
from dtrain.jobs.start import started
from dtrain.monitor.lines import encode
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
    count = _workers(workers)
    if backend == "ray":
        job = load_spec(spec, overrides or [])
        program = build(job)
        job, directory = _prepared(job, program.steps, run_dir, ui)
        with live_page(directory, ui, _say):
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
        with live_page(directory, ui, _say):
            result = run_job(job, program, directory, chosen, is_quiet=quiet, on_start=_say)
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
    count = _workers(workers)
    if backend == "ray" and not (detach or wait):
        directory = find_run(job_id)
        check_resumable(directory)
        job = directory.read_job()
        with live_page(directory, ui, _say):
            result = _ray(address, quiet).run(job, build(job), directory.path, count, is_resumed=True)
        _finish(result, as_json)
        return
    if detach or wait or address not in (None, "local"):
        _follow_up(jobs := _jobs(address, job_id), jobs.resume(job_id, count), wait, as_json, address)
        return
    with started(context.obj, backend, count) as where:
        if where is not None:
            directory = find_run(job_id)
            check_resumable(directory)
            with live_page(directory, ui, _say):
                result = resume_job(directory.path, where, is_quiet=quiet, on_start=_say)
            _finish(result, as_json)


@app.command("ui")
def show_ui(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; all below runs/ if none.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="A port of 127.0.0.1; 0 for any free one.")] = None,
) -> None:
    """Serve a page that shows and compares runs, also while they last."""
    serve_page(runs or [], port, _say)


@app.command()
def report(job_id: Annotated[str, ID]) -> None:
    """Make report.html of a run again."""
    from dtrain.jobs.reporting import write_report

    print(write_report(find_run(job_id)))


@app.command()
def scale(
    job_id: Annotated[str, ID],
    workers: Annotated[int, typer.Argument(help="How many workers the run is to have.")],
) -> None:
    """Give a run that lasts another number of workers; its result does not depend on it."""
    from dtrain.jobs.scaling import ask_for_workers

    run = find_run(job_id)
    ask_for_workers(run, workers)
    _say(f"{run.path}: {workers} workers are asked for, from the next step on; see events.jsonl")


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
    code = launch_mpi(arguments, RunDirectory(path), count, max_restarts, context.args, ulfm, _say)
    if code:
        sys.exit(code)


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

    found = check(load_spec(spec, _overrides(overrides, workers=_workers(workers))))
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
    """Race the seven update rules over a function, and draw where they went (needs dtrain[plots])."""
    from dtrain.jobs import racing

    course, walks = racing.race(target, start, steps, lr or [], rules)
    print(json.dumps(racing.to_json(course, walks)) if as_json else racing.table(course, walks))
    racing.draw(course, walks, output, animation)
    for path in filter(None, (output, animation)):
        _say(path)


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
    job = load_spec(spec, _overrides(overrides, name=name, workers=_workers(workers)))
    jobs = _jobs(address)
    _follow_up(jobs, jobs.submit(job), wait, as_json, address)


@app.command("list")
def list_jobs(address: Annotated[str | None, ADDRESS] = None, as_json: Annotated[bool, JSON] = False) -> None:
    """List the jobs, the newest last."""
    found = _jobs(address).all()
    if as_json:
        print(json.dumps([job.to_json() for job in found]))
    elif found:
        show_jobs(found)
    else:
        _say("there are no jobs")


@app.command()
def status(
    job_id: Annotated[str, ID],
    address: Annotated[str | None, ADDRESS] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say how a job stands: pending, running, succeeded, failed or stopped."""
    job = _jobs(address, job_id).get(job_id)
    print(json.dumps(job.to_json()) if as_json else job.sentence())


@app.command()
def logs(
    job_id: Annotated[str, ID],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Print what a job has said; of a run that submit did not start, its events."""
    for piece in _jobs(address, job_id).log(job_id, follow):
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
    jobs = _jobs(address, job_id)
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
    jobs = _jobs(address, job_id)
    job = jobs.get(job_id)
    if job.has_ended:
        _say(f"{job.id} has {job.status} already" if job.status != "stopped" else f"{job.id} is stopped already")
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
    print(_jobs(address, job_id).fetch(job_id, destination, checkpoints))


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


@app.command()
def doctor(as_json: Annotated[bool, JSON] = False) -> None:
    """Say which of local, MPI and Ray work here, and why not."""
    from dtrain.jobs.doctor import examine

    report = examine()
    print(json.dumps(report.to_json()) if as_json else report.text())
    if not report.is_local_fine:
        sys.exit(3)


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


def _overrides(given: list[str] | None, **keys: str | int | None) -> list[str]:
    """The overrides of --set, and options that are keys of the job; text is quoted, so that it stays text."""
    return [*(given or []), *(f"{key}={json.dumps(value)}" for key, value in keys.items() if value is not None)]


def _jobs(address: str | None, job_id: str | None = None) -> Jobs:
    """The place that an address, or the environment, names; a path of a run directory is always on this machine."""
    is_path = job_id is not None and os.path.isdir(job_id)
    if address is None and not is_path:
        address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or None
    if address in (None, "local"):
        from dtrain.jobs.detached import LocalJobs

        return LocalJobs()
    from dtrain.jobs.ray_jobs import RayJobs

    return RayJobs(address)


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

    return RayRun(address, is_quiet, _say)


def _follow_up(jobs: Jobs, job: Job, wait: bool, as_json: bool, address: str | None) -> None:
    """Say how to go on with a job that was just started, or follow it to its end."""
    name = job.id if address is None else f"{job.id} --address {address}"
    if not wait:
        print(json.dumps(job.to_json()) if as_json else job.id)
        _say(f"follow it with dtrain logs -f {name}\nstop it with dtrain stop {name}")
        return
    _say(job.id)
    try:
        for piece in jobs.log(job.id, follow=True, start=job.log_start):
            print(piece, end="", flush=True, file=sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        _say(f"\nthe job goes on; stop it with dtrain stop {name}")
        raise
    job = jobs.get(job.id)
    if as_json:
        print(json.dumps(job.to_json()))
    sys.stdout.flush()
    if job.exit_code:
        sys.exit(job.exit_code)


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
