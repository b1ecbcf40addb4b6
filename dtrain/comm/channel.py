"""A line between the coordinator and a worker: small JSON messages over a connected socket. No pickle.

The bulk of the data never takes this way. End of file means that the other side is gone.
"""

from __future__ import annotations

import json
import select
import socket
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]


class ChannelClosed(Exception):
    """The process at the other end is gone."""


class Channel:
    """Owns one connected stream socket. One thread sends, one thread receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(True)
        self._buffer = b""
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def local_address(self) -> str:
        """The IP address of this end; empty if the line does not leave the host."""
        return str(self._socket.getsockname()[0]) if self._socket.family == socket.AF_INET else ""

    def send(self, message: Message) -> None:
        """Send one message. Raises ChannelClosed."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, timeout_seconds: float | None = None) -> Message | None:
        """Return the next message, or None if none came in time. Raises ChannelClosed at the end of file."""
        while b"\n" not in self._buffer:
            if timeout_seconds is not None and not self._poll.poll(timeout_seconds * 1000):
                return None
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise ChannelClosed from error
            if not data:
                raise ChannelClosed
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: Message = json.loads(line)
        return message

    def send_array(self, array: NDArray[Any], timeout_seconds: float) -> None:
        """Send the raw bytes of a contiguous array, after the message that announces it. Raises ChannelClosed."""
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.sendall(array.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise ChannelClosed from error
        finally:
            with suppress(OSError):
                self._socket.setblocking(True)

    def receive_array(self, array: NDArray[Any]) -> None:
        """Fill a contiguous array with the raw bytes that follow the message just received. Raises ChannelClosed."""
        target = array.reshape(-1).view(np.uint8).data
        filled = min(len(target), len(self._buffer))
        target[:filled], self._buffer = self._buffer[:filled], self._buffer[filled:]
        while filled < len(target):
            try:
                count = self._socket.recv_into(target[filled:])
            except OSError as error:
                raise ChannelClosed from error
            if not count:
                raise ChannelClosed
            filled += count

    def close(self) -> None:
        self._socket.close()


def channel_pair() -> tuple[Channel, socket.socket]:
    """Return a channel and the socket for the other end."""
    here, there = socket.socketpair()
    return Channel(here), there
