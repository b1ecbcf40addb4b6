"""Jobs on a Ray cluster, through Ray's job API: the cluster need be reachable by its dashboard's port alone.

A job there is ``dtrain run`` on the head node, in a run directory ``$DTRAIN_RUNS/name/id`` of that node
(``~/dtrain-runs`` unless set), in which the files that came with the job are kept too, so that it can be resumed and
fetched. Invariant: Ray's list of jobs is the only list; what dtrain must know of a job is in its metadata and its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dtrain import __version__
from dtrain.errors import DtrainError, InputError
from dtrain.jobs.job import ENDED, Job
from dtrain.jobs.parcel import check_destination, receive, unpack
from dtrain.jobs.ray_client import connect, cpus, told
from dtrain.jobs.run_directory import fresh_id, runs_root
from dtrain.jobs.spec import JobSpec
from dtrain.jobs.staging import is_elsewhere, stage
from dtrain.jobs.validation import validate
from dtrain.monitor.progress import final_summary

BACKEND = "--backend ray"
"""Options with which ``dtrain run`` and ``dtrain resume`` use the cluster."""

PREPARE = 'mkdir -p "$D" && cp -R . "$D/files" || exit 2; '
"""The shell commands that keep what came with a job in its run directory."""

_STOP_SECONDS = 60  # Ray kills a job that takes longer to stop; a checkpoint may
_START_SECONDS = 60.0
_POLL_SECONDS = 0.2
_RECONNECTS, _RECONNECT_SECONDS = 5, 1.0
_OTHER_VERSION = re.compile(r"^dtrain is not \S+ here: (.*)$", re.M)
_STARTED = re.compile(r"^dtrain \S+ starts in (.*)$", re.M)
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_PROGRESS = re.compile(r"^epoch .*step (\d+)/(\d+)  loss (\S+)", re.M)


def run_command(workers: int | str | None = None, is_resumed: bool = False) -> str:
    """The shell command that runs a staged job, or resumes one, in the directory ``$D``."""
    command = 'dtrain resume "$D"' if is_resumed else 'dtrain run job.yaml --run-dir "$D"'
    return " ".join([command, "--json", BACKEND, "" if workers is None else f"--workers {workers}"]).strip()


def entrypoint(run: str, command: str, prepare: str = "") -> str:
    """The shell line of a Ray job: refuse another version of dtrain, then become ``command`` in ``$D`` of ``name/id``.

    ``exec``, so that Ray's signal to stop reaches dtrain itself.
    """
    return (
        f'v=$(dtrain version 2>&1 | tail -n 1); [ "$v" = {shlex.quote(__version__)} ] || '
        f'{{ echo "dtrain is not {__version__} here: $v"; exit 2; }}; '
        f'D="${{DTRAIN_RUNS:-$HOME/dtrain-runs}}/{run}"; {prepare}echo "dtrain $v starts in $D"; exec {command}'
    )


class RayJobs:
    """The jobs of dtrain on the cluster at an address."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = connect(address)

    def submit(self, spec: JobSpec) -> Job:
        steps = None if is_elsewhere(spec) else validate(spec).steps
        self._check_cpus(spec.workers)
        run = f"{spec.name}/{fresh_id()}"
        with tempfile.TemporaryDirectory(prefix="dtrain-") as folder:
            stage(spec, Path(folder))
            metadata = {"dtrain": __version__, "dtrain_run": run}
            if steps is not None:
                metadata["dtrain_steps"] = str(steps)
            return self._start(run, entrypoint(run, run_command(), PREPARE), metadata, Path(folder))

    def all(self) -> Sequence[Job]:
        newest = {attempt.metadata["dtrain_run"]: attempt for attempt in self._attempts()}
        with ThreadPoolExecutor(8) as pool:  # each asks for a log
            return list(pool.map(self._describe, sorted(newest.values(), key=lambda a: a.start_time or 0)))

    def get(self, job_id: str) -> Job:
        return self._describe(self._find(job_id))

    def log(self, job_id: str, follow: bool, start: int = 0) -> Iterator[str]:
        attempt = self._find(job_id)
        pieces = self._follow(attempt.submission_id) if follow else iter([self._log(attempt.submission_id)])
        return _readable(pieces)

    def stop(self, job_id: str) -> None:
        attempt = self._find(job_id)
        with told(self._address):
            self._client.stop_job(attempt.submission_id)

    def resume(self, job_id: str, workers: int | str | None) -> Job:
        attempt = self._find(job_id)
        run, status = attempt.metadata["dtrain_run"], self._describe(attempt).status
        if status not in ENDED:
            raise InputError(f"{job_id}: is {status}; wait for it, or stop it with dtrain stop {job_id}")
        if status == "succeeded":
            raise InputError(f"{job_id}: has succeeded already; start it anew with dtrain submit")
        if workers is not None:
            self._check_cpus(workers)
        metadata = {**attempt.metadata, "dtrain_attempt": str(int(attempt.metadata.get("dtrain_attempt", "1")) + 1)}
        return self._start(run, entrypoint(run, run_command(workers, is_resumed=True)), metadata)

    def fetch(self, job_id: str, destination: Path | None, checkpoints: int) -> Path:
        run = self._find(job_id).metadata["dtrain_run"]
        destination = runs_root() / run if destination is None else destination
        check_destination(destination)
        line = entrypoint(run, f'dtrain pack "$D" --checkpoints {checkpoints} --hold')
        with told(self._address):
            submission = self._client.submit_job(entrypoint=line, metadata={"dtrain_fetch": run})
        try:
            with tempfile.TemporaryFile() as file:
                self._wait_for_start(submission)
                try:
                    receive(_lines(self._follow(submission)), file)
                except DtrainError:
                    self._raise_if_ended(submission)
                    raise
                file.seek(0)
                unpack(file, destination)
        finally:
            self._remove(submission)
        return destination

    # --- Ray's jobs --------------------------------------------------------------------------------------------------

    def _attempts(self) -> list[Any]:
        """Ray's details of the jobs that dtrain has submitted, the oldest first; a resumed run has several."""
        with told(self._address):
            jobs = self._client.list_jobs()
        # The metadata may be anybody's, and a run's name becomes a path.
        ours = (job for job in jobs if _RUN.fullmatch((job.metadata or {}).get("dtrain_run", "")))
        return sorted(ours, key=lambda job: job.start_time or 0)

    def _find(self, job_id: str) -> Any:
        """The newest attempt of the run that an ID names: that of any of its attempts, or the run's name/id or id."""
        attempts = self._attempts()
        newest = {attempt.metadata["dtrain_run"]: attempt for attempt in attempts}
        named = {attempt.metadata["dtrain_run"] for attempt in attempts if attempt.submission_id == job_id}
        found = named or {run for run in newest if job_id in (run, run.partition("/")[2])}
        if len(found) > 1:
            raise InputError(f"{job_id}: several runs have this id: {', '.join(sorted(found))}; say which")
        if not found:
            raise InputError(f"{job_id}: no such job of dtrain at {self._address}; see dtrain list")
        return newest[found.pop()]

    def _start(self, run: str, line: str, metadata: Mapping[str, str], folder: Path | None = None) -> Job:
        """Submit a job and return when its driver has begun, or raise what it said when it could not."""
        name = run.replace("/", "-")
        attempt = metadata.get("dtrain_attempt")
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}}
        if folder is not None:
            environment["working_dir"] = str(folder)
        with told(self._address):
            submission = self._client.submit_job(
                entrypoint=line,
                submission_id=name if attempt is None else f"{name}-{attempt}",
                runtime_env=environment,
                metadata=dict(metadata),
            )
        self._wait_for_start(submission)
        return self._describe(self._find(submission))

    def _wait_for_start(self, submission: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            status = self._status(submission)
            if _STARTED.search(self._log(submission)):
                return
            if status in ENDED:
                self._raise_if_ended(submission)
                return
            time.sleep(_POLL_SECONDS)

    def _raise_if_ended(self, submission: str) -> None:
        """Raise what a job that has failed before it began has said, and take it off Ray's list."""
        details, log = self._details(submission), self._log(submission)
        if str(details.status.value).lower() != "failed":
            return
        self._remove(submission)
        if other := _OTHER_VERSION.search(log):
            version = other[1] if re.fullmatch(r"\d[\w.]*", other[1]) else f"missing ({other[1]})"
            raise InputError(
                f"{self._address}: dtrain is {version} on the cluster and {__version__} here; install the same version "
                "on all nodes"
            )
        error = DtrainError(f"{self._address}: {_last_words(log, details.message)}")
        error.exit_code = _exit_code("failed", details.driver_exit_code, {}) or error.exit_code
        raise error

    def _status(self, submission: str) -> str:
        return str(self._details(submission).status.value).lower()

    def _details(self, submission: str) -> Any:
        with told(self._address):
            return self._client.get_job_info(submission)

    def _log(self, submission: str) -> str:
        """All that a job has said so far; nothing if its node is gone."""
        with told(self._address):
            try:
                return str(self._client.get_job_logs(submission))
            except RuntimeError:
                return ""

    def _follow(self, submission: str) -> Iterator[str]:
        """Yield a job's log until it ends; a connection that breaks is made anew, as long as there is any progress."""
        seen = failures = 0
        while True:
            problem = "the connection was closed"
            try:
                while self._status(submission) == "pending":
                    time.sleep(_POLL_SECONDS)
                skip = seen
                for piece in self._tail(submission):
                    fresh = piece[skip:]
                    skip -= len(piece) - len(fresh)
                    if fresh:
                        seen, failures = seen + len(fresh), 0
                        yield fresh
                if self._status(submission) in ENDED:
                    yield self._log(submission)[seen:]
                    return
            except Exception as error:  # of Ray's, of its HTTP library's or of ours
                problem = " ".join(str(error).split())
            failures += 1
            if failures > _RECONNECTS:
                raise DtrainError(f"{self._address}: the log of {submission} breaks off: {problem}")
            time.sleep(_RECONNECT_SECONDS)

    def _tail(self, submission: str) -> Iterator[str]:
        pieces = self._client.tail_job_logs(submission)

        async def next_piece() -> str | None:
            return await anext(pieces, None)

        with asyncio.Runner() as runner:  # it sees to Ctrl-C, and to closing the connection
            while (piece := runner.run(next_piece())) is not None:
                yield piece

    def _remove(self, submission: str) -> None:
        """Stop a job and take it off Ray's list; what cannot be removed any more is no error."""
        with contextlib.suppress(Exception):
            self._client.stop_job(submission)
            deadline = time.monotonic() + _START_SECONDS
            while not self._client.get_job_status(submission).is_terminal() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            self._client.delete_job(submission)

    def _check_cpus(self, workers: int | str) -> None:
        """Refuse at once what would wait for ever."""
        if workers == "auto":
            return
        with told(self._address):
            found = cpus(self._client)
        if found is None:
            return
        free, total = found
        if int(workers) > total:
            raise InputError(f"workers: needs {workers} CPUs, the cluster has {total}, of which {free} are free")
        if int(workers) > free:
            print(f"waits for CPUs: needs {workers}, {free} of {total} are free", file=sys.stderr)

    def _describe(self, attempt: Any) -> Job:
        status = str(attempt.status.value).lower()
        log = "" if status == "pending" else self._log(attempt.submission_id)
        result = _result(log) if status in ENDED else {}
        # A signal that did not come from Ray is a failure to it, and a stop that came too late a stop.
        status = result.get("status", status)
        progress = next(reversed(list(_PROGRESS.finditer(log))), None)
        step, loss = result.get("step"), result.get("train_loss")
        if not result and progress:
            step, loss = int(progress[1]), float(progress[3])
        steps = attempt.metadata.get("dtrain_steps") or (progress[2] if progress else None)
        place = _STARTED.search(log)
        details = {"run": attempt.metadata["dtrain_run"], "address": self._address}
        if status == "failed" and not result:
            details["error"] = _last_words(log, attempt.message)
        return Job(
            id=attempt.submission_id,
            status=status,
            run_directory=place[1] if place else f"~/dtrain-runs/{attempt.metadata['dtrain_run']}",
            step=step,
            steps=None if steps is None else int(steps),
            loss=loss,
            started=None if not attempt.start_time else attempt.start_time / 1000,
            exit_code=_exit_code(status, attempt.driver_exit_code, result),
            result=result,
            details=details,
        )


def _exit_code(status: str, code: int | None, result: Mapping[str, Any]) -> int | None:
    """What the job's own command returned, as far as it or Ray says; a driver that was killed has failed."""
    if status not in ENDED or "exit_code" in result:
        return result.get("exit_code")
    if status == "succeeded":
        return 0
    return code if code is not None and code > 0 else 143 if status == "stopped" else 3


def _last_words(log: str, message: str | None) -> str:
    """What a job without a result has said last, or else what Ray says of it."""
    lines = [line for line in (log or message or "").splitlines() if line.strip()]
    return lines[-1].removeprefix("dtrain: ") if lines else "it failed without a word"


def _result(log: str) -> dict[str, Any]:
    """What result.json holds, which the driver says last."""
    for line in reversed(log.splitlines()[-20:]):
        if (found := _as_result(line)) is not None:
            return found
    return {}


def _as_result(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"status": '):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "fingerprint" in values else None


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """Whole lines of a text that comes in pieces, each with its end."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest


def _readable(pieces: Iterator[str]) -> Iterator[str]:
    """The log for people: the result, which the driver says as JSON, as a run says it in a terminal."""
    for line in _lines(pieces):
        result = _as_result(line)
        yield line if result is None else final_summary(result, result.get("run_directory")) + "\n"
