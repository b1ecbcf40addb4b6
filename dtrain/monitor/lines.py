"""Append-only files of JSON lines, one object a line: how metrics and events get to disk and back.

Invariant: whatever dies and whenever, every line that a reader is given is whole. A last line torn by a crash is unseen
by readers and cut off when the file is opened for writing. One writer at a time; readers need no lock.

JSON has no nan and inf; they are written as the strings "NaN", "Infinity" and "-Infinity", which ``float`` reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError

_BLOCK_BYTES = 1 << 16


class LineFile:
    """A file of JSON lines, open for appending. Not thread-safe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or make the file, and cut off a torn last line. Raises DtrainError if that is impossible."""
        self.path = Path(path)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise DtrainError(f"{path}: cannot be opened for writing: {error.strerror}") from None
        self.cut(lambda line: False)

    def append(self, lines: Iterable[bytes]) -> None:
        """Write lines (as ``encode`` makes them) with one system call.

        If the disk is full, the file is left as it was, and a DtrainError says so: the lines may be given again.
        """
        data = b"".join(lines)
        if not data:
            return
        end = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            os.ftruncate(self._file, end)
            raise DtrainError(f"{self.path}: cannot be written: {error.strerror}; make room and resume") from None

    def cut(self, is_dropped: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Cut off lines from the end while ``is_dropped`` says so, and a torn line; return the last whole line kept.

        Reads from the end, so that the cost is that of what is dropped. A damaged line is dropped if it is met.
        """
        size = position = os.fstat(self._file).st_size
        tail = b""
        end = size  # where the file will end
        while True:
            newline = tail.rfind(b"\n", 0, end - position - 1) if end > position else -1
            if newline < 0 and position > 0:
                block = min(_BLOCK_BYTES, position)
                position -= block
                tail = os.pread(self._file, block, position) + tail
                continue
            line = tail[newline + 1 : end - position]
            values = _decode(line) if line.endswith(b"\n") else None
            if end == 0 or (values is not None and not is_dropped(values)):
                break
            end = position + newline + 1
            tail = tail[: newline + 1]
        if end < size:
            os.ftruncate(self._file, end)
        return values

    def sync(self) -> None:
        """Wait until what was appended is on the disk, safe from a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def encode(values: dict[str, Any]) -> bytes:
    """Return one line. Floats keep every bit (``repr``); nan and inf become strings."""
    try:
        text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_spell(values), separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def read_lines(path: str | os.PathLike[str], start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole line from byte ``start`` on, and the byte behind it, where a later call may go on.

    A missing file has no lines; a damaged line is passed over; a torn last line is left for later.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the `with` below
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        position = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            values = _decode(line)
            if values is not None:
                yield values, position


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _spell(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value
