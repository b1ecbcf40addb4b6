"""A run directory on its way: packed as lines of text, which pass through a job's log, and unpacked with every byte
checked.

Between a line that begins the parcel and one that ends it, with size and SHA-256, each line is base64 of a piece of an
uncompressed tar. Invariant: nothing appears at the destination before the digest of the whole agrees, every name has
been found to lie inside, and the checkpoints agree with their manifests.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import shutil
import signal
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from dtrain.errors import CheckpointError, DtrainError, InputError
from dtrain.jobs.run_directory import RunDirectory
from dtrain.train.checkpoint import CheckpointStore
from dtrain.train.manifest import is_whole, step_name

BEGIN = "dtrain parcel begins"
_END = re.compile(r"dtrain parcel ends (\d+) ([0-9a-f]{64})")
_PIECE_BYTES = 12_000  # a line of 16,000 characters: Ray hands on no more than 20,000 at once
_ATTEMPTS = 3
_PATIENCE_SECONDS, _SLOWEST_BYTES_PER_SECOND = 60.0, 500_000


def pack(run: Path, checkpoints: int, write_line: Callable[[str], object]) -> int:
    """Pack a run directory with its newest checkpoints into lines; return its size in bytes. The run may go on.

    Raises InputError if there is no run, DtrainError if a file cannot be read.
    """
    directory = RunDirectory.open(run)
    write_line(BEGIN)
    lines = _Lines(write_line)
    with ExitStack() as stack:
        files = _open_files(directory, checkpoints, stack)
        try:
            with tarfile.open(fileobj=lines, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name, file in files:
                    member = tarfile.TarInfo(name)
                    about = os.fstat(file.fileno())
                    member.size, member.mtime, member.mode = about.st_size, int(about.st_mtime), 0o644
                    tar.addfile(member, file)
        except OSError as error:
            raise DtrainError(f"{run}: cannot be packed: {error}") from None
    size, digest = lines.finish()
    write_line(f"dtrain parcel ends {size} {digest}")
    return size


def receive(lines: Iterable[str], file: BinaryIO) -> None:
    """Write the tar that is in these lines to a file. Raises DtrainError unless it is whole and its digest agrees."""
    digest, size, has_begun = hashlib.sha256(), 0, False
    for line in lines:
        text = line.strip()
        if not has_begun:
            has_begun = text == BEGIN
        elif end := _END.fullmatch(text):
            if (size, digest.hexdigest()) != (int(end[1]), end[2]):
                raise DtrainError(f"the parcel is damaged: {size} bytes came of {end[1]}, or others; fetch it again")
            return
        else:
            try:
                piece = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise DtrainError(f"the parcel is damaged after {size} bytes; fetch it again") from None
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    raise DtrainError(f"the parcel is not whole: {size} bytes came; fetch it again")


def unpack(file: BinaryIO, destination: Path) -> None:
    """Make a run directory of a received tar. Raises InputError if the destination is in use, DtrainError otherwise."""
    check_destination(destination)
    destination = destination.absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp's is for the owner alone
        (temporary / "checkpoints").mkdir()
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                _extract(tar, member, temporary)
        store = CheckpointStore(temporary / "checkpoints", read_only=True)
        for step in store.steps():
            store.verify(store.directory / step_name(step))
        RunDirectory.open(temporary)
        os.rename(temporary, destination)
    except tarfile.TarError as error:
        raise DtrainError(f"the parcel is damaged: {error}; fetch it again") from None
    except CheckpointError as error:
        raise DtrainError(f"{error}; it was damaged before it was fetched") from None
    except OSError as error:
        raise DtrainError(f"{destination}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_run(run: Path, destination: Path, checkpoints: int) -> None:
    """Copy a run directory of this machine, with the same checks."""
    with tempfile.TemporaryFile() as file:
        lines: list[str] = []
        pack(run, checkpoints, lines.append)
        receive(lines, file)
        file.seek(0)
        unpack(file, destination)


def check_destination(destination: Path) -> None:
    """Raise InputError if something is there already."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination}: is there already; name a new directory")


def keep_stop_waiting() -> None:
    """From now on, keep a SIGTERM back until ``empty_when_stopped`` waits for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def empty_when_stopped(size: int) -> None:
    """Wait for SIGTERM, by which the receiver says that a parcel of so many bytes has come.

    Then standard output, if it is a file, is emptied: a cluster's logs shall not keep a copy of every run fetched.
    """
    sys.stdout.flush()
    if stat.S_ISREG(os.fstat(1).st_mode):
        signal.sigtimedwait({signal.SIGTERM}, _PATIENCE_SECONDS + size / _SLOWEST_BYTES_PER_SECOND)
        os.ftruncate(1, 0)


class _Lines(io.RawIOBase):
    """A file, as tarfile writes it, that becomes lines of base64."""

    def __init__(self, write_line: Callable[[str], object]) -> None:
        self._write_line, self._buffer = write_line, bytearray()
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, data: Any, /) -> int:
        self._digest.update(data)
        self._size += len(data)
        self._buffer += data
        while len(self._buffer) >= _PIECE_BYTES:
            self._write_line(base64.b64encode(self._buffer[:_PIECE_BYTES]).decode())
            del self._buffer[:_PIECE_BYTES]
        return len(data)

    def finish(self) -> tuple[int, str]:
        """Write what is left; return the size and SHA-256 of all that was written."""
        if self._buffer:
            self._write_line(base64.b64encode(self._buffer).decode())
        return self._size, self._digest.hexdigest()


def _open_files(run: RunDirectory, checkpoints: int, stack: ExitStack) -> list[tuple[str, IO[bytes]]]:
    """Open all files to be packed; a checkpoint that is removed later can still be read."""
    files = [_opened(run, path, stack) for path in _record(run)]
    for attempt in range(_ATTEMPTS):
        try:
            return files + _open_checkpoints(run, checkpoints, stack)
        except FileNotFoundError:  # the run goes on, and has just removed an old one
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _record(run: RunDirectory) -> Iterator[Path]:
    """The files of a run but its checkpoints, what is being written, and where it is watched."""
    for folder, folders, names in os.walk(run.path):
        inside = Path(folder) != run.path
        folders[:] = sorted(f for f in folders if (inside or f != run.checkpoints.name) and f != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and (inside or not (name.startswith(".") or path == run.endpoint_file)):
                yield path


def _open_checkpoints(run: RunDirectory, count: int, stack: ExitStack) -> list[tuple[str, IO[bytes]]]:
    store = CheckpointStore(run.checkpoints, read_only=True)
    whole = [path for step in store.steps() if is_whole(path := store.directory / step_name(step))]
    newest = whole[len(whole) - min(count, len(whole)) :]
    return [_opened(run, file, stack) for path in newest for file in sorted(path.iterdir())]


def _opened(run: RunDirectory, path: Path, stack: ExitStack) -> tuple[str, IO[bytes]]:
    return path.relative_to(run.path).as_posix(), stack.enter_context(open(path, "rb"))


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one file below a folder; refuse a name that leads out of it, and anything that is no plain file."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not name.parts or "\\" in member.name or "\0" in member.name:
        raise DtrainError(f"the parcel names {member.name!r}, which is outside of the run; nothing was unpacked")
    if not member.isreg():
        raise DtrainError(f"the parcel holds {member.name!r}, which is no plain file; nothing was unpacked")
    path = folder.joinpath(*name.parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None
    with open(path, "xb") as target:
        shutil.copyfileobj(source, target)
    os.utime(path, (member.mtime, member.mtime))
