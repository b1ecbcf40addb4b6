"""How the figures of a run leave it: the endpoint, service discovery, the textfile, the final push.

None of them can fail a run that has begun: what goes wrong at the end is a warning.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.run_directory import RunDirectory, write_atomically
from dtrain.jobs.spec import JobSpec
from dtrain.monitor.discovery import run_labels, targets
from dtrain.monitor.endpoint import MetricsEndpoint
from dtrain.monitor.handout import Textfile, push, text_of
from dtrain.monitor.run_metrics import RunMetrics


@contextlib.contextmanager
def exposed(spec: JobSpec, metrics: RunMetrics, directory: RunDirectory, warn: Callable[[str], None]) -> Iterator[None]:
    """While the body lasts, the figures can be had in the ways that the spec names; at its end they are handed out.

    ``warn`` is told, in a line, what could not be done. Raises InputError for an address, a token file or a folder that
    cannot be used.
    """
    monitor, labels = spec.monitor, run_labels(spec.name, directory.id)
    with contextlib.ExitStack() as stack:
        if monitor.pushgateway is not None:
            stack.callback(_push, monitor.pushgateway, metrics, labels, warn)
        if monitor.textfile is not None:
            path = spec.resolve(monitor.textfile)
            _begin("monitor.textfile", path, text_of(metrics, labels))
            stack.enter_context(contextlib.closing(Textfile(path, metrics, labels, _write, warn)))
        if monitor.metrics_port is not None:
            token = None if monitor.token_file is None else _token(spec.resolve(monitor.token_file))
            endpoint = stack.enter_context(
                MetricsEndpoint(metrics, monitor.metrics_port, token, monitor.address, labels)
            )
            directory.write_endpoint(endpoint.url, endpoint.token)
            if monitor.sd_directory is not None:
                path = spec.resolve(monitor.sd_directory) / f"{spec.name}-{directory.id}.json"
                _begin("monitor.sd_directory", path, targets(endpoint.target, labels))
                stack.callback(_remove, path)
        try:
            yield
        except BaseException:
            metrics.finished("failed")
            raise


def _push(url: str, metrics: RunMetrics, labels: dict[str, str], warn: Callable[[str], None]) -> None:
    try:
        push(url, metrics, labels)
    except DtrainError as error:
        warn(str(error))


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content, mode=0o644)  # it is read by another user, Prometheus or node_exporter


def _begin(key: str, path: Path, content: bytes) -> None:
    """Write a file for the first time, its folder too if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)
    except OSError as error:
        raise InputError(f"{key}: {path.parent}: cannot be made: {error.strerror}; name another folder") from None
    except DtrainError as error:
        raise InputError(f"{key}: {error}") from None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _token(path: Path) -> str:
    """The token kept in a file; a fresh one is put there, for its owner's eyes only, if there is none."""
    try:
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(24).encode(), mode=0o600)
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"monitor.token_file: {path}: cannot be used: {error}") from None
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise InputError(f"monitor.token_file: {path}: expected a token of at least 16 characters without spaces")
    return token
