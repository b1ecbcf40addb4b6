"""Lines for the bulk of the data between the first ranks of hosts: frames over TCP, received where they belong.

Every frame says generation, step and kind and carries a checksum of its content, so that what a network or an old
generation garbles is found and never added. Frames of one kind arrive in the order in which they were sent; a receiver
posts, for each kind, where the next ones go. Nothing is pickled, and nothing is copied but what is too small to matter.

Lines belong to one generation: a ``Meeting`` makes them anew, authenticated with the job's token. What goes
wrong with one is ``LinkLost``; the coordinator then ends the generation, and the gradients are sent again.
"""

from __future__ import annotations

import contextlib
import json
import queue
import select
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.door import Door, DoorError, authenticate

_HEADER = struct.Struct("<4sIQHHIQ")  # magic, generation, step, kind, 0, bytes, checksum; then its own CRC
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
_MAGIC = b"dtrn"
_STAGE_BYTES = 1 << 13
_SOCKET_BYTES = 4 << 20
_SPINS = 300  # about 0.4 ms: to be woken by the kernel took 64 KB between two hosts from 0.3 to 0.8 ms
_SPIN_FROM_SECONDS = 0.001  # who looks in for a shorter time has something else to do, and shares the interpreter
_PATIENCE_SECONDS = 0.05
CONNECT_SECONDS = 10.0


class Kind(IntEnum):
    """What a frame holds."""

    PARTIAL = 0  # a chunk of a subtree's sum, for the owner of the slice
    TOTAL = 1  # a chunk of the whole sum, from the owner of the slice
    FIGURES = 2  # the squares of the owner's slice and the losses and squared norms of its shards
    DONE = 3  # everything has arrived
    VALUES = 4  # what the shards of a host have handed in to one sum over shards
    ROW_COUNTS = 5  # how many rows of each group of tables each shard uses
    ROW_IDS = 6  # which rows these are
    ROWS = 7  # the sums of subtrees in the rows that they use


class LinkLost(Exception):
    """The line to another host broke, or what came over it was not what was sent."""

    def __init__(self, host: int, reason: str) -> None:
        super().__init__(f"the line to host {host}: {reason}")
        self.host, self.reason = host, reason


class Links(Protocol):
    """Lines to the other hosts of one generation. One thread uses them."""

    def begin(self, step: int) -> None:
        """What is sent from now on is of ``step``."""

    def receive(self, host: int, kind: Kind, buffer: NDArray[np.generic]) -> None:
        """Say where the next frame of this kind goes; its size must be the frame's."""

    def send(self, host: int, kind: Kind, buffer: NDArray[np.generic]) -> None:
        """Send a contiguous buffer, which must stay as it is until the step is over."""

    def progress(self, step: int, timeout_seconds: float) -> list[tuple[int, Kind]]:
        """Move what can be moved; return the (host, kind) of each posted receive of ``step`` that is now complete.

        Waits for at most so long if nothing can. Raises LinkLost.
        """

    def is_sent(self) -> bool:
        """Whether everything that was to be sent has left this process."""

    def close(self) -> None:
        """Give the lines up."""


def checksum(buffer: memoryview) -> int:
    """A sum of the content's 8-byte words, modulo 2**64: a flipped bit changes it, and nearly any garbling."""
    whole = len(buffer) & ~7
    total = int(np.add.reduce(np.frombuffer(buffer[:whole], np.uint64))) if whole else 0
    return (total + int.from_bytes(buffer[whole:], "little") * 0x9E3779B97F4A7C15 + len(buffer)) & (2**64 - 1)


class _Line:
    """One connection: what is to be sent, and where what arrives is to go."""

    def __init__(self, host: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        self.host, self.socket = host, connection
        self.out: deque[memoryview] = deque()
        self.posted: dict[Kind, deque[memoryview]] = {kind: deque() for kind in Kind}
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._lo = self._hi = 0  # what is staged and not yet taken
        self._header: tuple[int, int, Kind, int, int] | None = None
        self._target: memoryview | None = None
        self._filled = 0

    def flush(self) -> bool:
        """Send what the network takes; whether anything went."""
        moved = False
        try:
            while self.out:
                sent = self.socket.sendmsg(list(self.out)[:16])
                moved = moved or sent > 0
                while sent:
                    first = self.out[0]
                    if sent < len(first):
                        self.out[0] = first[sent:]
                        break
                    sent -= len(first)
                    self.out.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            raise LinkLost(self.host, error.strerror or str(error)) from None
        return moved

    def read(self, generation: int, step: int) -> Kind | None:
        """Receive on until a posted frame of ``step`` is complete (its kind) or nothing more is there (None)."""
        while True:
            if self._header is None and not self._read_header():
                return None
            assert self._header is not None
            of_generation, of_step, kind, size, expected = self._header
            if self._target is None:
                if of_generation != generation or of_step < step:
                    raise LinkLost(self.host, f"a frame of generation {of_generation}, step {of_step} in step {step}")
                if of_step > step or not self.posted[kind]:
                    return None  # it is early; it waits until it is asked for
                target = self.posted[kind].popleft()
                if len(target) != size:
                    raise LinkLost(self.host, f"a {kind.name} frame of {size} bytes where {len(target)} are expected")
                self._target, self._filled = target, 0
            if not self._fill(self._target):
                return None
            found, self._header, self._target = self._target, None, None
            if checksum(found) != expected:
                raise LinkLost(self.host, f"a {kind.name} frame of step {step} was damaged on its way")
            return kind

    @property
    def is_wanted(self) -> bool:
        """Whether anything is posted or half received."""
        return self._target is not None or any(self.posted.values())

    def _read_header(self) -> bool:
        while self._hi - self._lo < _HEADER_BYTES:
            if not self._stage_more():
                return False
        raw = self._stage[self._lo : self._lo + _HEADER_BYTES]
        magic, generation, step, kind, _, size, total = _HEADER.unpack_from(raw)
        (crc,) = _CRC.unpack_from(raw, _HEADER.size)
        if magic != _MAGIC or crc != zlib.crc32(raw[: _HEADER.size]) or kind not in Kind.__members__.values():
            raise LinkLost(self.host, "a frame's head was damaged on its way")
        self._lo += _HEADER_BYTES
        self._header = (generation, step, Kind(kind), size, total)
        return True

    def _fill(self, target: memoryview) -> bool:
        while self._filled < len(target):
            staged = min(self._hi - self._lo, len(target) - self._filled)
            if staged:
                target[self._filled : self._filled + staged] = self._stage[self._lo : self._lo + staged]
                self._lo, self._filled = self._lo + staged, self._filled + staged
            elif len(target) - self._filled >= _STAGE_BYTES // 2:
                count = self._receive_into(target[self._filled :])
                if not count:
                    return False
                self._filled += count
            elif not self._stage_more():
                return False
        return True

    def _stage_more(self) -> bool:
        if self._lo == self._hi:
            self._lo = self._hi = 0
        elif self._lo > _STAGE_BYTES // 2:
            rest = self._hi - self._lo
            self._stage[:rest] = bytes(self._stage[self._lo : self._hi])
            self._lo, self._hi = 0, rest
        count = self._receive_into(self._stage[self._hi :])
        self._hi += count
        return count > 0

    def _receive_into(self, target: memoryview) -> int:
        try:
            count = self.socket.recv_into(target)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost(self.host, error.strerror or str(error)) from None
        if count == 0:
            raise LinkLost(self.host, "the other end is gone")
        return count


class TcpLinks:
    """Links over one TCP connection to each other host."""

    def __init__(self, generation: int, connections: dict[int, socket.socket]) -> None:
        self._generation = generation
        self._lines = {host: _Line(host, connection) for host, connection in connections.items()}
        self._step = 0
        self.bytes_sent = 0
        self._poll = select.poll()
        self._fds = {line.socket.fileno(): line for line in self._lines.values()}
        for fd in self._fds:
            self._poll.register(fd, select.POLLIN)

    def begin(self, step: int) -> None:
        self._step = step

    def receive(self, host: int, kind: Kind, buffer: NDArray[np.generic]) -> None:
        self._lines[host].posted[kind].append(_bytes_of(buffer))

    def send(self, host: int, kind: Kind, buffer: NDArray[np.generic]) -> None:
        content = _bytes_of(buffer)
        head = _HEADER.pack(_MAGIC, self._generation, self._step, kind, 0, len(content), checksum(content))
        line = self._lines[host]
        line.out.append(memoryview(head + _CRC.pack(zlib.crc32(head))))
        if len(content):
            line.out.append(content)
        self.bytes_sent += _HEADER_BYTES + len(content)

    def progress(self, step: int, timeout_seconds: float) -> list[tuple[int, Kind]]:
        found: list[tuple[int, Kind]] = []
        deadline = None
        spins = 0
        while True:
            moved = False
            for line in self._lines.values():
                moved = (bool(line.out) and line.flush()) or moved
                while line.is_wanted and (kind := line.read(self._generation, step)) is not None:
                    found.append((line.host, kind))
            if found or moved:
                return found
            spins += 1
            if spins < _SPINS and timeout_seconds >= _SPIN_FROM_SECONDS:
                continue
            if deadline is None:
                deadline = time.monotonic() + timeout_seconds
            elif time.monotonic() >= deadline:
                return found
            for fd, line in self._fds.items():
                wanted = select.POLLIN if line.is_wanted else 0
                self._poll.modify(fd, wanted | (select.POLLOUT if line.out else 0))
            self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)

    def is_sent(self) -> bool:
        return not any(line.out for line in self._lines.values())

    def close(self) -> None:
        for line in self._lines.values():
            line.socket.close()


def _bytes_of(buffer: NDArray[np.generic]) -> memoryview:
    return buffer.reshape(-1).view(np.uint8).data


class Meeting:
    """Where a host waits for the lines of the others in one generation: a door of its own, for as long as it takes.

    Host i is connected to by every host after it, and connects to every host before it. All that may take long is done
    by threads, so that a silent host or a stranger holds nobody up.
    """

    def __init__(self, address: str, token: bytes, generation: int, index: int) -> None:
        self._token, self._index = token, index
        self._label = f"link {generation}".encode()  # nobody of another generation is let in
        self._generation = generation
        self._found: queue.SimpleQueue[tuple[int, socket.socket | LinkLost]] = queue.SimpleQueue()
        self._door = Door(token, [address], self._visit, self._label)
        self.address = self._door.addresses[0]

    def _visit(self, connection: socket.socket, hello: dict[str, Any]) -> None:
        self._found.put((int(hello["host"]), connection))

    def links(self, addresses: Sequence[tuple[str, int]], idle: Callable[[], None]) -> TcpLinks:
        """Connect to all others, whose ``addresses`` are in order; ``idle`` is called now and then and may raise.

        Raises LinkLost.
        """
        deadline = time.monotonic() + CONNECT_SECONDS
        for host in range(self._index):
            threading.Thread(
                target=self._connect, args=(host, addresses[host]), name="dtrain meeting", daemon=True
            ).start()
        missing = {h for h in range(len(addresses)) if h != self._index}
        found: dict[int, socket.socket] = {}
        try:
            while missing:
                idle()
                if time.monotonic() > deadline:
                    raise LinkLost(min(missing), f"no connection within {CONNECT_SECONDS:g} s")
                with contextlib.suppress(queue.Empty):
                    host, connection = self._found.get(timeout=_PATIENCE_SECONDS)
                    if isinstance(connection, LinkLost):
                        raise connection
                    if host in missing:
                        found[host] = connection
                        missing.discard(host)
                    else:
                        connection.close()
        except BaseException:
            for connection in found.values():
                connection.close()
            raise
        finally:
            self.close()
        return TcpLinks(self._generation, found)

    def _connect(self, host: int, address: tuple[str, int]) -> None:
        try:
            connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
        except OSError as error:
            self._found.put((host, LinkLost(host, f"{address[0]}:{address[1]} cannot be reached: {error}")))
            return
        try:
            authenticate(connection, self._token, self._label, json.dumps({"host": self._index}).encode())
        except (DoorError, OSError) as error:
            connection.close()
            self._found.put((host, LinkLost(host, f"it does not answer as one of this job: {error}")))
            return
        self._found.put((host, connection))

    def close(self) -> None:
        """Let nobody else in."""
        self._door.close()
