"""The Prometheus endpoint of a run: a small HTTP server while the run lasts, on 127.0.0.1 unless told otherwise.

Owns its socket and threads. Invariants: nothing but this machine can reach it unless another address is given, nobody
without the token is answered, and no client, however it behaves, holds up the run or another client: the lock under
which the coordinator puts down its figures is held while numbers are copied, never while a client is written to. What
it says is in ``exporter``, loaded with the first request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import threading
from collections.abc import Mapping
from types import TracebackType

from dtrain.comm.host import host_addresses
from dtrain.errors import InputError
from dtrain.monitor.discovery import targets
from dtrain.monitor.run_metrics import RunMetrics

_MOST_CLIENTS = 16


class MetricsEndpoint:
    """Serves the figures of ``metrics`` from the moment it is made until ``close``.

    ``port`` 0 takes any free one. Without a ``token`` a fresh one is made. ``labels`` are told to Prometheus' service
    discovery, at /sd. Raises InputError if port or address cannot be used. Attributes: ``port``, ``token``, ``target``
    (host:port under which others reach it), ``url``.
    """

    def __init__(
        self,
        metrics: RunMetrics,
        port: int = 0,
        token: str | None = None,
        address: str = "127.0.0.1",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self._metrics, self._address, self._labels = metrics, address, labels or {}
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.create_server((address, port), family=family, backlog=64)
        except OSError as error:
            number = error.errno or 0
            if number == errno.EADDRNOTAVAIL or number < 0:  # a name that nobody knows has a number of its own
                raise InputError(f"monitor.address: {address} is no address of this host; choose another") from None
            raise InputError(
                f"monitor.metrics_port: port {port} of {address} cannot be used: {os.strerror(number)}; "
                "choose another, 0 for any free one, or null for none"
            ) from None
        self.port: int = self._socket.getsockname()[1]
        host = _reachable(address)
        self.target = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.url = f"http://{self.target}/metrics"
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}  # in order of arrival
        self._thread = threading.Thread(target=self._accept, name="dtrain metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving: when it returns, the port is free and the threads are gone. A second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        _shut(self._socket)  # wakes the accept below
        self._thread.join()
        self._socket.close()
        with self._lock:
            clients = dict(self._clients)
            for client in clients:
                _shut(client)
        for thread in clients.values():
            thread.join()

    def __enter__(self) -> MetricsEndpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                self._closing.wait(0.1)  # out of file descriptors, say: the run may have some again soon
                continue
            thread = threading.Thread(target=self._serve, args=(client,), name="dtrain metrics client", daemon=True)
            with self._lock:
                self._clients[client] = thread
                # Clients that hang must not keep others out, so the oldest makes room.
                for hanging in list(self._clients)[:-_MOST_CLIENTS]:
                    _shut(hanging)
                try:
                    thread.start()
                except RuntimeError:  # no more threads to be had
                    del self._clients[client]
                    client.close()

    def _serve(self, client: socket.socket) -> None:
        from dtrain.monitor.exporter import Handler, make_registry

        try:
            Handler(client, make_registry(self._metrics), self.token, self._address, targets(self.target, self._labels))
        except OSError:
            pass  # the client went away, or was too slow
        finally:
            with self._lock:
                del self._clients[client]
            client.close()


def _reachable(address: str) -> str:
    """An address under which others reach a server that listens on ``address``."""
    if address not in ("", "0.0.0.0", "::"):
        return address
    return next(iter(host_addresses()), "127.0.0.1")


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed by the other side already
        connection.shutdown(socket.SHUT_RDWR)
