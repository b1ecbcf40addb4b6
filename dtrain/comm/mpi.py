"""MPI between the first ranks of hosts: non-blocking buffer calls, matched by kind. Imports mpi4py, so MPI begins here.

No reduction of MPI's is used: it adds in an order of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from dtrain.comm.links import Kind, LinkLost

_GENERATIONS = 4096
_SPINS = 200


class World:
    """All ranks that mpirun has started, and small messages between them. Every rank makes every call."""

    def __init__(self) -> None:
        self.comm = MPI.COMM_WORLD.Dup()
        self.comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.unfinished: list[Any] = []  # requests of generations that were halted in the middle

    def broadcast(self, content: bytes) -> bytes:
        """Return rank 0's ``content`` on every rank."""
        length = np.array([len(content)], np.int64)
        self.comm.Bcast(length, root=0)
        buffer = np.empty(int(length[0]), np.uint8)
        if self.rank == 0:
            buffer[:] = np.frombuffer(content, np.uint8)
        self.comm.Bcast(buffer, root=0)
        return buffer.tobytes()

    def gather(self, content: bytes) -> list[bytes]:
        """Return the ``content`` of every rank, which has the same length on all, in the order of ranks."""
        own = np.frombuffer(content, np.uint8)
        every = np.empty((self.size, len(content)), np.uint8)
        self.comm.Allgather(own, every)
        return [row.tobytes() for row in every]

    def abort(self, code: int) -> None:
        """End every rank at once."""
        MPI.COMM_WORLD.Abort(code)


def library() -> str:
    """Return the first line of what the MPI library says of itself."""
    return MPI.Get_library_version().strip().splitlines()[0].split(",")[0].strip("\0 ")


class MpiLinks:
    """Links to the ranks ``leaders``, one a host, of which this process is number ``host``."""

    def __init__(self, world: World, generation: int, leaders: Sequence[int], host: int) -> None:
        self._world, self._comm, self._leaders, self._host = world, world.comm, tuple(leaders), host
        self._tag = (generation % _GENERATIONS) * len(Kind)
        self._receives: list[Any] = []
        self._keys: list[tuple[int, Kind]] = []
        self._sizes: list[int] = []
        self._sends: list[Any] = []
        self.bytes_sent = 0

    def begin(self, step: int) -> None:
        """Frames of one kind are matched in the order in which they are sent, so that the step need not be told."""

    def receive(self, host: int, kind: Kind, buffer: NDArray[np.generic]) -> None:
        self._receives.append(self._comm.Irecv([buffer, MPI.BYTE], self._leaders[host], self._tag + kind))
        self._keys.append((host, kind))
        self._sizes.append(buffer.nbytes)

    def send(self, host: int, kind: Kind, buffer: NDArray[np.generic]) -> None:
        self._sends.append(self._comm.Isend([buffer, MPI.BYTE], self._leaders[host], self._tag + kind))
        self.bytes_sent += buffer.nbytes

    def progress(self, step: int, timeout_seconds: float) -> list[tuple[int, Kind]]:
        turns, deadline = 0, 0.0
        while True:
            if self._test() and (found := self._in_order()):
                return found
            if not self._receives and self.is_sent():
                return []
            turns += 1
            if turns > _SPINS:
                os.sched_yield()
                if not deadline:
                    deadline = time.monotonic() + timeout_seconds
                elif time.monotonic() > deadline:
                    return []

    def _test(self) -> bool:
        """Let MPI work; whether anything has arrived, which is then of the size that is expected. Raises LinkLost."""
        statuses: list[Any] = []
        try:
            arrived = MPI.Request.Testsome(self._receives, statuses) or []
        except MPI.Exception as error:
            for status in statuses:
                if status.Get_error() not in (MPI.SUCCESS, MPI.ERR_PENDING):
                    kind = Kind((status.Get_tag() - self._tag) % len(Kind))
                    reason = MPI.Get_error_string(status.Get_error()).splitlines()[0]
                    raise LinkLost(self._leaders.index(status.Get_source()), f"{kind.name} frame: {reason}") from None
            raise LinkLost(self._first_missing(), error.Get_error_string()) from None
        for index, status in zip(arrived, statuses, strict=True):
            size, expected = status.Get_count(MPI.BYTE), self._sizes[index]
            if size != expected:
                host, kind = self._keys[index]
                raise LinkLost(host, f"a {kind.name} frame of {size} bytes where {expected} are expected")
        return bool(arrived)

    def _in_order(self) -> list[tuple[int, Kind]]:
        """Take out what has arrived, unless an earlier frame of its host and kind has not.

        MPI matches frames in order, but a short one may be complete before a long one that was sent first.
        """
        found, receives, keys, sizes = [], [], [], []
        missing: set[tuple[int, Kind]] = set()
        for request, key, size in zip(self._receives, self._keys, self._sizes, strict=True):
            if request == MPI.REQUEST_NULL and key not in missing:
                found.append(key)
            else:
                receives.append(request)
                keys.append(key)
                sizes.append(size)
                missing.add(key)
        self._receives, self._keys, self._sizes = receives, keys, sizes
        return found

    def is_sent(self) -> bool:
        try:
            if self._sends and MPI.Request.Testall(self._sends):
                self._sends = []
        except MPI.Exception as error:
            raise LinkLost(self._first_missing(), error.Get_error_string()) from None
        return not self._sends

    def _first_missing(self) -> int:
        return self._keys[0][0] if self._keys else self._host

    def close(self) -> None:
        # What is not over is given up: its rank is gone, or has given it up as well.
        for request in self._receives:
            with suppress(MPI.Exception):
                if request != MPI.REQUEST_NULL:
                    request.Cancel()
        # What is on its way can be neither taken back nor refused: its buffers have to stay until MPI is done.
        self._world.unfinished += [r for r in (*self._receives, *self._sends) if not _is_over(r)]
        self._receives, self._sends, self._keys, self._sizes = [], [], [], []


def _is_over(request: Any) -> bool:
    try:
        return bool(request.Test())
    except MPI.Exception:  # it ended with an error
        return True
