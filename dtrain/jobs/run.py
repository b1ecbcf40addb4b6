"""One run on this machine, from the spec to result.json: what `dtrain run` and `dtrain resume` do."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dtrain import __version__
from dtrain.comm.threads import one_blas_thread
from dtrain.errors import DtrainError, InputError, NonFiniteError
from dtrain.jobs.backend import Backend
from dtrain.jobs.build import build
from dtrain.jobs.exposure import exposed
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.scaling import scalable
from dtrain.jobs.spec import JobSpec
from dtrain.jobs.watcher import Watcher
from dtrain.monitor.tensorboard import check_installed
from dtrain.train.checkpoint import CheckpointStore
from dtrain.train.introspection import picture_of_loss
from dtrain.train.numerics import describe, numerics_class
from dtrain.train.program import Program
from dtrain.train.service import Outcome, RunSettings, Service

_CHEAP_STEP_SECONDS, _MANY_STEPS = 0.02, 200
"""The graph is recorded for the report where that takes a small part of the run, or no time at all."""


def run_job(
    spec: JobSpec,
    program: Program,
    directory: RunDirectory,
    backend: Backend,
    *,
    is_resumed: bool = False,
    is_quiet: bool = False,
    on_start: Callable[[str], None] = lambda line: None,
    on_service: Callable[[Service, Watcher], None] = lambda service, watcher: None,
) -> dict[str, Any]:
    """Run a job in its run directory, from its newest valid checkpoint if ``is_resumed``; return what
    result.json holds.

    ``program`` is what `build` made of ``spec``, before a directory was made for a job that cannot start.
    ``on_start`` is told one line when the run begins, and warnings if it is quiet; ``on_service`` what carries it out.
    Raises DtrainError for a job that cannot start; an error of a run that has started is in the result.
    """
    settings = run_settings(spec, program, backend.workers)
    if spec.monitor.tensorboard:
        check_installed()
    with directory, one_blas_thread():
        numerics = numerics_class()
        directory.discard_result()
        store = CheckpointStore(directory.checkpoints, keep=spec.checkpoint.keep)
        restore = store.latest(expect={"job": spec.digest(), "numerics": numerics}) if is_resumed else None
        watcher = Watcher(directory, is_quiet, program if settings.introspect_every else None, spec.monitor.tensorboard)

        def warn(text: str) -> None:
            watcher.event("handout_failed", text)
            if is_quiet:
                on_start(text)

        try:
            service = Service(
                program,
                settings,
                backend.launcher(spec, program),
                numerics,
                store=store,
                restore=restore,
                observer=watcher,
                job=spec.digest(),
            )
            watcher.metrics.describe_job(
                name=spec.name, run=directory.id, spec_digest=spec.digest(), version=__version__
            )
            on_start(_start_line(spec, backend, program, directory, restore.step if restore else None))
            if restore is not None and restore.message:
                on_start(restore.message)
                watcher.event("checkpoint_damaged", restore.message)
            on_service(service, watcher)
            with (
                stop_on_signals(service) as stopped_by,
                exposed(spec, watcher.metrics, directory, warn),
                scalable(directory, service),
            ):
                outcome = service.run()
                watcher.metrics.finished(outcome.status)
        finally:
            watcher.close()
        result = to_result(spec, outcome, directory.path, stopped_by)
        try:
            directory.write_result(result)
        except DtrainError as error:  # the fingerprint shall not be lost with it
            result |= {"status": "failed", "error": result["error"] or str(error), "exit_code": error.exit_code}
        _report(directory, result, program, outcome, on_start)
        return result


def _report(
    directory: RunDirectory,
    result: dict[str, Any],
    program: Program,
    outcome: Outcome,
    warn: Callable[[str], None],
) -> None:
    """Write report.html. Whatever goes wrong there is a warning: the run is what it is."""
    from dtrain.jobs.reporting import write_report

    try:
        has_looks = directory.introspection_file.exists()
        is_cheap = outcome.seconds < _CHEAP_STEP_SECONDS * outcome.step or outcome.step >= _MANY_STEPS
        picture = None if has_looks or not is_cheap else picture_of_loss(program, outcome.parameters, outcome.step)
        write_report(directory, result, picture)
    except Exception as error:
        warn(f"warning: no report.html: {error}")


def run_settings(spec: JobSpec, program: Program, workers: int) -> RunSettings:
    """How the spec wants its run to be carried out."""
    every = spec.checkpoint.every
    steps = (every.in_steps(program.sampler().steps_per_epoch) or 0) if every is not None else 0
    seconds = float(every.count) if every is not None and every.unit == "seconds" else 0.0
    look, norms = spec.introspect.every, spec.monitor.norms_every
    return RunSettings(
        workers=workers,
        checkpoint_every=steps,
        introspect_every=(look.in_steps(program.sampler().steps_per_epoch) or 0) if look is not None else 0,
        norms_every=(norms.in_steps(program.sampler().steps_per_epoch) or 0) if norms is not None else 0,
        norms_seconds=float(norms.count) if norms is not None and norms.unit == "seconds" else 0.0,
        checkpoint_seconds=seconds,
        timeout_seconds=spec.timeout_seconds,
        startup_timeout_seconds=spec.startup_timeout_seconds,
        spike_factor=spec.monitor.spike_factor,
    )


def to_result(spec: JobSpec, outcome: Outcome, directory: Path, stopped_by: list[int]) -> dict[str, Any]:
    """The content of result.json."""
    return {
        "status": outcome.status,
        "name": spec.name,
        "step": outcome.step,
        "epoch": outcome.epoch,
        "train_loss": outcome.train_loss,
        "eval": outcome.eval,
        "fingerprint": outcome.fingerprint,
        "digest_chain": outcome.chain,
        "numerics": describe(dict(outcome.numerics)),
        "numerics_class": dict(outcome.numerics),
        "job_digest": spec.digest(),
        "seconds": round(outcome.seconds, 6),
        "restarts": outcome.restarts,
        "run_directory": str(directory),
        "error": None if outcome.error is None else str(outcome.error),
        "blame": outcome.error.place if isinstance(outcome.error, NonFiniteError) else None,
        "exit_code": _exit_code(outcome, stopped_by),
    }


def _exit_code(outcome: Outcome, stopped_by: list[int]) -> int:
    if outcome.status == "stopped":
        return 128 + (stopped_by[0] if stopped_by else signal.SIGINT)
    return outcome.error.exit_code if outcome.error is not None else 0


@contextlib.contextmanager
def stop_on_signals(service: Service) -> Iterator[list[int]]:
    """Let the first SIGINT or SIGTERM stop the run in order; a second one ends the process at once.

    Yields the list of signals that came. Outside of the main thread signals stay as they are.
    """
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        service.request_stop()

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _start_line(
    spec: JobSpec, backend: Backend, program: Program, directory: RunDirectory, resumed_at: int | None
) -> str:
    start = "" if resumed_at is None else f", resumed at step {resumed_at}"
    return (
        f"{spec.name}: {program.steps} steps of {spec.batch} samples in {spec.shards} shards {backend}{start}\n"
        f"run directory {directory.path}"
    )


def check_resumable(directory: RunDirectory) -> None:
    """Raise InputError for a run that has succeeded already."""
    if directory.status() == "succeeded":
        raise InputError(
            f"{directory.path}: has succeeded already; see {directory.result_file.name}, or start it anew with "
            "dtrain run"
        )


def resume_job(
    path: str | os.PathLike[str],
    backend: Callable[[JobSpec], Backend],
    *,
    is_quiet: bool = False,
    on_start: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Go on with the run in ``path`` to its end; a run that has succeeded is left as it is.

    ``backend`` is asked where the workers of the job are to be.
    """
    directory = RunDirectory.open(path)
    check_resumable(directory)
    spec = directory.read_job()
    return run_job(
        spec,
        build(spec),
        directory,
        backend(spec),
        is_resumed=True,
        is_quiet=is_quiet,
        on_start=on_start,
    )
