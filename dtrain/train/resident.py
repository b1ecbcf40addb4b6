"""How much memory the processes of a run have in use: looked up for those of this host, told by the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_EVERY_SECONDS = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(process: int | str = "self") -> int | None:
    """The resident memory of a process of this host, shared pages included; None if it is gone or not to be read."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None


class ResidentMemory:
    """The processes of a run and their resident memory. A worker that is a thread of the coordinator has none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._due = clock, 0.0
        self._here: dict[int, int] = {}  # worker: process
        self._elsewhere: dict[int, int] = {}  # worker: bytes

    def joined(self, worker: int, process: int, is_here: bool) -> None:
        """A worker is up."""
        if is_here and process != os.getpid():
            self._here[worker] = process

    def told(self, worker: int, size: int) -> None:
        """A worker on another host has said how many bytes it has."""
        self._elsewhere[worker] = size

    def lost(self, worker: int) -> None:
        """A worker is gone."""
        self._here.pop(worker, None)
        self._elsewhere.pop(worker, None)

    def read(self) -> dict[str, int] | None:
        """Bytes by worker, the coordinator's under "coordinator"; None if it was asked less than a second ago."""
        if self._clock() < self._due:
            return None
        self._due = self._clock() + _EVERY_SECONDS
        found = {"coordinator": resident_bytes()} | {str(w): resident_bytes(p) for w, p in sorted(self._here.items())}
        found |= {str(w): size for w, size in sorted(self._elsewhere.items())}
        return {name: size for name, size in found.items() if size is not None}
