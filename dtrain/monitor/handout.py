"""The figures handed to others instead of being fetched: a push to a Pushgateway, a textfile for node_exporter.

For runs that nobody can scrape: batch nodes behind a scheduler, runs shorter than a scrape interval. Every series bears
the labels of its run. prometheus_client is loaded with the first use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from dtrain.errors import DtrainError
from dtrain.monitor.run_metrics import RunMetrics

_PUSH_SECONDS = 5.0


def push(url: str, metrics: RunMetrics, labels: Mapping[str, str]) -> None:
    """Replace what the Pushgateway at ``url`` has of this run by its figures now. Raises DtrainError if it cannot."""
    from prometheus_client import push_to_gateway

    from dtrain.monitor.exporter import make_registry

    try:
        push_to_gateway(url, "dtrain", make_registry(metrics), dict(labels), timeout=_PUSH_SECONDS)
    except (OSError, ValueError) as error:
        said = getattr(error, "reason", error)  # of urllib's own error, which wraps the one that says what happened
        said = getattr(said, "strerror", None) or said
        raise DtrainError(f"monitor.pushgateway: {url}: the final push failed: {said}") from None


def text_of(metrics: RunMetrics, labels: Mapping[str, str]) -> bytes:
    """The figures in Prometheus' text format."""
    from prometheus_client import generate_latest

    from dtrain.monitor.exporter import make_registry

    return generate_latest(make_registry(metrics, labels))


class Textfile:
    """Keeps a file for node_exporter's textfile collector up to date, from the moment it is made until ``close``.

    ``write`` puts content in its place in one step, or raises OSError or DtrainError; ``warn`` is told the first time.
    """

    def __init__(
        self,
        path: Path,
        metrics: RunMetrics,
        labels: Mapping[str, str],
        write: Callable[[Path, bytes], None],
        warn: Callable[[str], None],
        every_seconds: float = 15.0,
    ) -> None:
        self._path, self._metrics, self._labels, self._write, self._warn = path, metrics, labels, write, warn
        self._every_seconds = every_seconds
        self._is_broken = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="dtrain textfile", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write the last figures; they stay."""
        self._closing.set()
        self._thread.join()
        self._put()

    def _keep(self) -> None:
        while not self._closing.wait(self._every_seconds):
            self._put()

    def _put(self) -> None:
        try:
            self._write(self._path, text_of(self._metrics, self._labels))
            self._is_broken = False
        except (OSError, DtrainError) as error:
            if not self._is_broken:
                self._warn(f"monitor.textfile: {self._path}: cannot be written: {error}; training goes on")
            self._is_broken = True
