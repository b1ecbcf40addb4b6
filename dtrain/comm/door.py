"""The door of a job: who knows the job's token comes in, from this host or from another one.

Both sides prove that they know the token without sending it (HMAC-SHA-256 over fresh nonces of both), so that a
listener on the network is of no use to who does not have it. What follows on the connection is not encrypted: it is
meant for the network inside a cluster. Nothing is pickled.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from dtrain.comm.channel import Channel

HANDSHAKE_SECONDS = 5.0
_NONCE_BYTES = 32
_LONGEST_HELLO = 65536
Address = tuple[str, int]


class DoorError(Exception):
    """The other side is not of this job, or did not answer in time."""


def new_token() -> bytes:
    """Return a fresh token for one job."""
    return secrets.token_hex(32).encode()


def authenticate(connection: socket.socket, token: bytes, label: bytes, hello: bytes) -> None:
    """Knock: prove that we know the token, check that the other side does, and say ``hello``. Raises DoorError."""
    deadline = _deadline(connection)
    own = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(own)
    theirs = _exactly(connection, _NONCE_BYTES, deadline)
    connection.sendall(_proof(token, label, b"knock", own, theirs))
    connection.sendall(len(hello).to_bytes(4, "little") + hello)
    if not hmac.compare_digest(_exactly(connection, 32, deadline), _proof(token, label, b"open", own, theirs)):
        raise DoorError("it does not know the token of this job")


def recognise(connection: socket.socket, token: bytes, label: bytes) -> bytes:
    """Open: check that the other side knows the token, prove that we do, and return its hello. Raises DoorError."""
    deadline = _deadline(connection)
    own = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(own)
    theirs = _exactly(connection, _NONCE_BYTES, deadline)
    if not hmac.compare_digest(_exactly(connection, 32, deadline), _proof(token, label, b"knock", theirs, own)):
        raise DoorError("it does not know the token of this job")
    length = int.from_bytes(_exactly(connection, 4, deadline), "little")
    if length > _LONGEST_HELLO:
        raise DoorError(f"a hello of {length} bytes")
    hello = _exactly(connection, length, deadline)
    connection.sendall(_proof(token, label, b"open", theirs, own))
    return hello


def _proof(token: bytes, label: bytes, side: bytes, knocker: bytes, opener: bytes) -> bytes:
    return hmac.digest(token, b"dtrain " + side + b" " + label + b"\0" + knocker + opener, "sha256")


def _deadline(connection: socket.socket) -> float:
    """Until when the whole handshake has to be over, also if the other side says a byte now and then."""
    connection.settimeout(HANDSHAKE_SECONDS)
    return time.monotonic() + HANDSHAKE_SECONDS


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(count - len(data))
        except TimeoutError:
            raise DoorError(f"no answer within {HANDSHAKE_SECONDS:g} s") from None
        if not part:
            raise DoorError("it has hung up")
        data += part
    return data


class Door:
    """Lets in who knows ``token`` and ``label``, by listening on ``hosts``: loopback, or addresses of this host.

    Each visitor is recognised in a thread, so that one who says nothing holds nobody up; then
    ``visit(connection, hello)`` is called in that thread.
    """

    def __init__(
        self,
        token: bytes,
        hosts: Sequence[str],
        visit: Callable[[socket.socket, dict[str, Any]], None],
        label: bytes = b"worker",
    ) -> None:
        self._token, self._visit, self._label = token, visit, label
        self._sockets = [socket.create_server((host, 0), backlog=128) for host in hosts]
        self.addresses: list[Address] = [s.getsockname()[:2] for s in self._sockets]
        for listener in self._sockets:
            threading.Thread(target=self._accept, args=(listener,), name="dtrain door", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                if listener.fileno() < 0:
                    return
                continue
            threading.Thread(target=self._open, args=(connection,), name="dtrain visitor", daemon=True).start()

    def _open(self, connection: socket.socket) -> None:
        try:
            hello = json.loads(recognise(connection, self._token, self._label))
        except (DoorError, OSError, ValueError):
            connection.close()
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._visit(connection, hello)

    def close(self) -> None:
        """Let nobody else in."""
        for listener in self._sockets:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def knock(addresses: Sequence[Address], token: bytes, hello: dict[str, Any], timeout_seconds: float = 10.0) -> Channel:
    """Go to a job's door, by the first of its addresses that answers, and return the line. Raises DoorError."""
    reasons: deque[str] = deque(maxlen=4)
    for host, port in addresses:
        try:
            connection = socket.create_connection((host, port), timeout=timeout_seconds)
        except OSError as error:
            reasons.append(f"{host}:{port}: {error}")
            continue
        try:
            authenticate(connection, token, b"worker", json.dumps(hello).encode())
        except (DoorError, OSError) as error:
            connection.close()
            reasons.append(f"{host}:{port}: {error}")
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Channel(connection)
    raise DoorError("the coordinator cannot be reached at " + "; ".join(reasons))
