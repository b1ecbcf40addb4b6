"""The figures of a run in Prometheus' formats, and the HTTP handler that hands them out.

Imported when the first request arrives, not before: it brings prometheus_client and http.server, 0.2 s that a run need
not spend. The handler answers `GET /metrics`, and `GET /sd` for Prometheus' HTTP service discovery, to whoever has the
token and is not a web page.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from socket import socket
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dtrain.monitor.run_metrics import RunMetrics

_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_OWN = ("localhost", "::1")


class RunCollector(Collector):
    """Reads a run's figures when they are scraped; register it in a registry of your own.

    ``labels`` are put on every sample, for where several runs come together and nobody else tells them apart.
    """

    def __init__(self, metrics: RunMetrics, labels: Mapping[str, str] | None = None) -> None:
        self._metrics, self._run = metrics, dict(labels or {})

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield one family per metric of the table, with or without values."""
        for metric, values in self._metrics.snapshot():
            base = metric.name.removesuffix("_total").removesuffix("_info")
            unit = metric.unit if base.endswith(f"_{metric.unit}") else ""
            if metric.kind == "info":
                info = InfoMetricFamily(metric.name.removesuffix("_info"), metric.help)
                for labels in values:
                    info.add_metric([], self._run | dict(zip(metric.labels, labels, strict=True)))
                yield info
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(
                base if metric.kind == "counter" else metric.name,
                metric.help,
                labels=(*self._run, *metric.labels),
                unit=unit,
            )
            for labels, value in values.items():
                family.add_metric((*self._run.values(), *labels), value)
            yield family


def make_registry(metrics: RunMetrics, labels: Mapping[str, str] | None = None) -> CollectorRegistry:
    """Return a fresh registry that holds the figures of one run and nothing else; see `RunCollector` for ``labels``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(metrics, labels))
    return registry


class Handler(BaseHTTPRequestHandler):
    """Answers one request on one connection to a server on ``address``; ``targets`` is the content of /sd."""

    server_version, sys_version = "dtrain", ""
    timeout = 5.0  # seconds without a byte, after which a client is given up

    def __init__(
        self, connection: socket, registry: CollectorRegistry, token: str, address: str, targets: bytes
    ) -> None:
        self._registry, self._token, self._targets = registry, token, targets
        is_local = address in _OWN or address.startswith("127.")
        self._hosts = _HOSTS | {address} if is_local else None
        super().__init__(connection, None, None)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Hand out the figures, or the list of targets, or say in a line why not."""
        refusal = self._refusal()
        if refusal is not None:
            self._answer(refusal[0], "text/plain; charset=utf-8", f"{refusal[1]}\n".encode())
            return
        if urlsplit(self.path).path == "/sd":
            self._answer(200, "application/json", self._targets)
            return
        encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._answer(200, content_type, encoder(self._registry))

    do_HEAD = do_GET

    def _refusal(self) -> tuple[int, str] | None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or (self._hosts is not None and _without_port(hosts[0]) not in self._hosts):
            # A page that points its own name at 127.0.0.1 (DNS rebinding) is known by the name it asks for.
            return 403, "expected the host 127.0.0.1 or localhost"
        if "Origin" in self.headers:
            return 403, "web pages are not answered"
        url = urlsplit(self.path)
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else parse_qs(url.query).get("token", [""])[0]
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token.encode()):
            return 401, "expected the run's token: Authorization: Bearer TOKEN, or ?token=TOKEN (see endpoint.json)"
        if url.path not in ("/metrics", "/sd"):
            return 404, "expected /metrics, or /sd"
        return None

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal is the run's, and a log would hold the token."""


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
