"""The Prometheus endpoint of a run: a small HTTP server on 127.0.0.1 while the run lasts.

Owns its socket and threads. Invariants: nothing but this machine can reach it, nobody without the token is answered,
and no client, however it behaves, holds up the run or another client. What it says is in ``exporter``, loaded with the
first request.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from types import TracebackType

from dtrain.errors import InputError
from dtrain.monitor.run_metrics import RunMetrics

_MOST_CLIENTS = 16


class MetricsEndpoint:
    """Serves the figures of ``metrics`` from the moment it is made until ``close``.

    ``port`` 0 takes any free one. Without a ``token`` a fresh one is made. Raises InputError if the port is taken.
    Attributes: ``port``, ``token``, ``url``.
    """

    def __init__(self, metrics: RunMetrics, port: int = 0, token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self._metrics = metrics
        try:
            self._socket = socket.create_server(("127.0.0.1", port), backlog=64)
        except OSError as error:
            raise InputError(
                f"monitor.metrics_port: port {port} of 127.0.0.1 cannot be used: {os.strerror(error.errno or 0)}; "
                "choose another, 0 for any free one, or null for none"
            ) from None
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/metrics"
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
            Handler(client, None, make_registry(self._metrics), self.token)
        except OSError:
            pass  # the client went away, or was too slow
        finally:
            with self._lock:
                del self._clients[client]
            client.close()


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed by the other side already
        connection.shutdown(socket.SHUT_RDWR)
