"""The run directory: the files that make a run, and who may write them.

::

    job.yaml        the job, defaults written out, with base_dir: itself a job file
    files/          what the job's paths name, if it was sent here from another machine
    model/NAME.py   a copy of the user's model file and of the *.py beside it, if the job has one
    metrics.jsonl   a line per step and evaluation
    introspection.jsonl  a line per look into the run, if the job asks for it
    events.jsonl    a line per thing that happened
    checkpoints/    what a resumed run starts from
    result.json     how the run ended
    report.html     the run on one page, written at its end
    page.json       where its live page is served, if it was, readable by its owner only
    endpoint.json   where its figures are served while it runs, readable by its owner only
    tensorboard/    TensorBoard's event files, if the job asks for them
    log.txt         what a detached run says
    lock            held by the process that runs it; its content is that process's id and its host's name

Invariants: one process at a time writes; a reader finds each file whole or not at all. The lock is the kernel's
(flock), so it ends with the process that holds it, however that dies, and there is no stale lock to remove.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.document import Value, read_document
from dtrain.jobs.spec import JobSpec, parse_spec
from dtrain.monitor.lines import LineFile, encode

Status = Literal["pending", "running", "succeeded", "failed", "stopped"]
_ENDED = ("succeeded", "failed", "stopped")
_READER_SECONDS = 1.0  # a reader holds the lock for microseconds while it asks; a runner tries again for so long


@dataclass(frozen=True)
class Holder:
    """The process that runs a directory. ``pid`` is 0 for one that has not yet said who it is; ``host`` may be ""."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, as far as is known."""
        return self.host in ("", socket.gethostname())

    def __str__(self) -> str:
        return f"process {self.pid or 'unknown'}" + ("" if self.is_here else f" on {self.host}")


class RunDirectory:
    """One run on disk. Make it with ``create`` or ``open``; ``acquire`` it before writing anything but the job."""

    def __init__(self, path: Path) -> None:
        """Wrap a directory without looking at it; use ``create`` or ``open``."""
        self.path = path
        self._lock: int | None = None
        self._events: LineFile | None = None

    @classmethod
    def create(
        cls, name: str, root: str | os.PathLike[str] | None = None, path: str | os.PathLike[str] | None = None
    ) -> RunDirectory:
        """Make a fresh directory: ``path`` if given, else ``root/name/ID``, ID being UTC time and a few random digits.

        ``root`` is ``runs_root()`` unless given. Raises InputError if ``path`` holds something already (but for
        ``files``), or if it cannot be made.
        """
        if path is None:
            path = Path(runs_root() if root is None else root, name, fresh_id())
        directory = cls(Path(os.path.abspath(path)))
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
            if any(entry != directory.files for entry in directory.path.iterdir()):
                if directory.job_file.exists():
                    raise InputError(f"{path}: holds a run already; go on with dtrain resume {path}, or name another")
                raise InputError(f"{path}: is not empty; name another directory for the run")
            directory.checkpoints.mkdir()
            directory.lock_file.touch()
        except OSError as error:
            raise InputError(f"{path}: cannot make the run directory: {error.strerror}") from None
        return directory

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """Return an existing run directory. Raises InputError if there is none at ``path``."""
        directory = cls(Path(os.path.abspath(path)))
        if not directory.job_file.is_file():
            problem = "has no job.yaml" if directory.path.is_dir() else "no such directory"
            raise InputError(f"{path}: not a run directory: {problem}; expected one that dtrain run has made")
        return directory

    # --- the files -------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def files(self) -> Path:
        """What the job's paths name, put there before a run whose job came from another machine."""
        return self.path / "files"

    @property
    def log_file(self) -> Path:
        """What a detached run says on its standard output and error."""
        return self.path / "log.txt"

    @property
    def job_file(self) -> Path:
        """The job, as YAML."""
        return self.path / "job.yaml"

    @property
    def metrics_file(self) -> Path:
        """For ``monitor.records.MetricsLog``."""
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        """Written by ``append_event``."""
        return self.path / "events.jsonl"

    @property
    def introspection_file(self) -> Path:
        """For ``introspecting.IntrospectionLog``."""
        return self.path / "introspection.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; it exists."""
        return self.path / "checkpoints"

    @property
    def result_file(self) -> Path:
        """Written by ``write_result``."""
        return self.path / "result.json"

    @property
    def report_file(self) -> Path:
        """Written by ``reporting.write_report``."""
        return self.path / "report.html"

    @property
    def page_file(self) -> Path:
        """Port and token of the live page, for ``page.py``."""
        return self.path / "page.json"

    @property
    def endpoint_file(self) -> Path:
        """Written by ``write_endpoint``."""
        return self.path / "endpoint.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files, if the job asks for them."""
        return self.path / "tensorboard"

    @property
    def workers_file(self) -> Path:
        """How many workers are asked for, until the run has read it (``scaling.py``)."""
        return self.path / "workers"

    @property
    def lock_file(self) -> Path:
        """Locked by ``acquire``; never removed."""
        return self.path / "lock"

    # --- the job ---------------------------------------------------------------------------------------------------

    def write_job(self, spec: JobSpec) -> None:
        """Keep the job, the user's model file and the ``*.py`` beside it: the run can go on when they have been edited.

        A directory that has ``files`` starts its paths there, wherever it is moved. Written last: a directory with a
        ``job.yaml`` is complete. Raises InputError if the model cannot be copied.
        """
        entry = spec.entry()
        if entry is not None and entry.file is not None:
            copy_with_siblings(entry.file, self.path / "model")
        if self.files.is_dir():
            spec = spec.model_copy(update={"base_dir": self.files.name})
        write_atomically(self.job_file, spec.to_yaml().encode())

    def read_job(self) -> JobSpec:
        """Return the job as it was started; the entry of a user's model file is the copy kept here.

        ``base_dir`` is still that of the original, for what the model imports and for data files. Raises InputError if
        ``job.yaml`` is damaged.
        """
        document = read_document(self.job_file)
        if not isinstance(document, dict):
            raise InputError(f"{self.job_file}: damaged; expected a mapping")
        spec = parse_spec(document, source=str(self.job_file), base_dir=self.path, check_files=False)
        entry = spec.entry()
        copy = self.path / "model" / entry.file.name if entry is not None and entry.file is not None else None
        if entry is None or copy is None or not copy.is_file():
            return spec
        kept = f"{copy}:{entry.attribute}" if entry.attribute else str(copy)
        return spec.model_copy(update={"model": spec.model.model_copy(update={"entry": kept})})

    # --- who runs it -----------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Become the one process that runs this directory, until ``release`` or death.

        Programs started from here do not inherit the lock; a bare ``os.fork`` would. Removes what a process that died
        has left: its endpoint and unfinished temporary files. Raises InputError naming the process that holds the lock.
        """
        if self._lock is not None:
            return
        try:
            file = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._wait_for_lock(file)
                os.ftruncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            raise InputError(f"{self.lock_file}: cannot be locked: {error.strerror}") from None
        self._lock = file
        self.endpoint_file.unlink(missing_ok=True)
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def _wait_for_lock(self, file: int) -> None:
        deadline = time.monotonic() + _READER_SECONDS
        while not _try_lock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                holder = _read_holder(file)
                stop = f"kill -INT {holder.pid}" if holder.pid else "Ctrl-C"
                raise InputError(f"{self.path}: {holder} runs it; wait for it, or stop it with {stop}")
            time.sleep(0.005)

    def release(self) -> None:
        """Give the directory back: close its files, remove the endpoint, let go of the lock."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._lock is not None:
            self.endpoint_file.unlink(missing_ok=True)
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing alone leaves it to a child between fork and exec
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDirectory:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def holder(self) -> int | None:
        """Return the id of the process that runs this directory, or None if none does. For readers."""
        process = self.process()
        return None if process is None else process.pid

    def process(self) -> Holder | None:
        """Return which process runs this directory, and on which host; None if none does. For readers."""
        if self._lock is not None:
            return Holder(os.getpid(), socket.gethostname())
        try:
            file = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return None if _try_lock(file, fcntl.LOCK_SH) else _read_holder(file)
        finally:
            os.close(file)

    def status(self) -> Status:
        """Return where the run is, without disturbing it.

        Running means that the lock is held; pending that it never was. A run that died without a result has failed.
        """
        if self.holder() is not None:
            return "running"
        result = self.read_result()
        if result is not None and result.get("status") in _ENDED:
            return cast(Status, result["status"])
        with contextlib.suppress(FileNotFoundError):
            if self.lock_file.stat().st_size:
                return "failed"
        return "pending"

    # --- what the runner writes ------------------------------------------------------------------------------------

    def append_event(self, kind: str, **details: Any) -> None:
        """Add a line to ``events.jsonl`` at once: the time (UTC), what happened, and any plain values."""
        if self._events is None:
            self._events = LineFile(self.events_file)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._events.append([encode({"time": now.replace("+00:00", "Z"), "event": kind, **details})])

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``: whole or not at all, and on the disk when this returns. nan and inf become strings."""
        values = json.loads(encode(dict(result)))
        write_atomically(self.result_file, (json.dumps(values, indent=2) + "\n").encode())

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of ``result.json``, or None if there is none."""
        return _read_json(self.result_file)

    def discard_result(self) -> None:
        """Remove ``result.json``: the run goes on, and what it said of its end no longer holds."""
        self.result_file.unlink(missing_ok=True)

    def write_endpoint(self, url: str, token: str) -> None:
        """Say where the figures are served; for the owner's eyes only, because of the token."""
        content = json.dumps({"url": url, "token": token, "pid": os.getpid()})
        write_atomically(self.endpoint_file, f"{content}\n".encode(), mode=0o600)

    def read_endpoint(self) -> dict[str, Any] | None:
        """Return url, token and pid of a run that lasts, or None."""
        return _read_json(self.endpoint_file) if self.holder() is not None else None


def runs_root() -> Path:
    """Return where runs are kept: the environment variable DTRAIN_RUNS, or ``runs`` in the current directory."""
    return Path(os.environ.get("DTRAIN_RUNS") or "runs").expanduser()


def fresh_id() -> str:
    """Return an ID for a run: UTC time and a few random digits."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def copy_with_siblings(file: Path, folder: Path) -> None:
    """Copy a model file and the ``*.py`` beside it, which it may import. Raises InputError naming what cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted({file, *file.parent.glob("*.py")}):
        try:
            if source == file or source.is_file():
                shutil.copyfile(source, folder / source.name)
        except OSError as error:
            if source != file and isinstance(error, PermissionError):
                continue  # what cannot be read is not imported either
            raise InputError(f"{source}: model.entry cannot be copied: {error.strerror}") from None


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` by ``content``: a reader, or whoever comes after a crash, finds the old content or the new.

    One writer at a time. The temporary file is beside it, ``.NAME.tmp``, and has ``mode`` from its first moment.
    Raises DtrainError if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DtrainError(f"{path}: cannot be written: {error.strerror}; make room or give access") from None


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _read_holder(file: int) -> Holder:
    """Read who holds the lock; dtrain 0.1 wrote the process id alone."""
    pid, _, host = os.pread(file, 512, 0).decode(errors="replace").partition("\n")
    return Holder(int(pid), host.strip()) if pid.isascii() and pid.isdigit() else Holder(0, "")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values: Value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None
