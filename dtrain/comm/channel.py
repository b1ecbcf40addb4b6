"""A line between the coordinator and a worker: small JSON messages over a connected socket. No pickle.

The bulk of the data never takes this way. End of file means that the other side is gone.
"""

from __future__ import annotations

import json
import select
import socket
from typing import Any

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

    def close(self) -> None:
        self._socket.close()


def channel_pair() -> tuple[Channel, socket.socket]:
    """Return a channel and the socket for the other end."""
    here, there = socket.socketpair()
    return Channel(here), there
