"""The connection to a Ray cluster through its dashboard's port alone: Ray's own job client, with deadlines.

What goes wrong on the way becomes one line; Ray's exceptions and HTTP answers stay here. The token of
RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is Ray's to read and to send, and is never shown.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dtrain.errors import DtrainError, InputError

_CONNECT_SECONDS = 4.0
_FIRST_ANSWER_SECONDS = 8.0
_ANSWER_SECONDS = 60.0
_LOOKUP_SECONDS = 10.0
_NODE_SECONDS = 5.0
_USED = re.compile(r"([\d.]+)/([\d.]+) CPU")


class Unreachable(InputError):
    """There is no cluster at the address, or none that answers."""


def connect(address: str) -> Any:
    """Return a JobSubmissionClient of the cluster. Raises InputError for what is missing, unreachable or refused."""
    # Read by Ray when it is imported: how long it looks for a cluster's control store.
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "2")
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise InputError(
            f"--address {address}: Ray is not installed here; install it with pip install 'dtrain[ray]'"
        ) from None

    class Client(JobSubmissionClient):  # type: ignore[misc, unused-ignore]
        """Ray's client, whose requests would otherwise wait for ever."""

        answer_seconds = _FIRST_ANSWER_SECONDS

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            options.setdefault("timeout", (_CONNECT_SECONDS, self.answer_seconds))
            return super()._do_request(method, endpoint, **options)

    for name in list(logging.root.manager.loggerDict):  # they say what they upload, as if they were the command
        if name.partition(".")[0] == "ray":
            logging.getLogger(name).setLevel(logging.ERROR)
    _check_token(address)
    _check_reachable(address)
    # Ray lets the environment override an address that is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{address}" if _is_bare_dashboard(address) else address
    with told(address):
        client = _in_time(Client, address)
    client.answer_seconds = _ANSWER_SECONDS
    return client


@contextlib.contextmanager
def told(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line of ours."""
    try:
        yield
    except DtrainError:
        raise
    except Exception as error:
        raise _told(address, error) from None


def _told(address: str, error: Exception) -> DtrainError:
    kind, text = type(error).__name__, " ".join(str(error).split())
    if kind == "AuthenticationError":
        if "Authentication required" in text or "is currently 'disabled'" in text:
            return InputError(
                f"{address}: the cluster asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's"
            )
        return InputError(
            f"{address}: the cluster refuses the token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
        )
    if kind in ("ConnectTimeout", "ReadTimeout", "Timeout", "TimeoutError"):
        return Unreachable(f"{address}: does not answer in time; is it the dashboard of a Ray cluster?")
    if address == "auto" and isinstance(error, ConnectionError):
        return Unreachable("auto: no Ray cluster runs on this machine; start one with ray start --head")
    if isinstance(error, ConnectionError) or kind in ("ConnectionError", "InvalidURL", "InvalidSchema", "SSLError"):
        return Unreachable(f"{address}: cannot be reached; expected the dashboard of a Ray cluster, http://HOST:8265")
    if kind in ("JSONDecodeError", "HTTPError", "KeyError") or "404" in text:
        return Unreachable(f"{address}: is not the dashboard of a Ray cluster")
    lines = [line for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    return DtrainError(f"{address}: {lines[-1].strip() if lines else kind}")


def _check_token(address: str) -> None:
    """Raise InputError if a token is to be sent and there is none; Ray aborts the process for some addresses then."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(given or "~/.ray/auth_token").expanduser()
    try:
        if file.read_text().strip():
            return
        reason = "is empty"
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if given:
        raise InputError(f"{address}: RAY_AUTH_TOKEN_PATH: {file} {reason}")
    raise InputError(f"{address}: RAY_AUTH_MODE is token, but there is none; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")


def _check_reachable(address: str) -> None:
    """Raise InputError at once for a host or port where nobody listens; Ray tries some addresses for a minute."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port or {"https": 443, "http": 80, "ray": 10001}.get(parts.scheme)
    except ValueError:
        raise InputError(f"{address}: not an address; expected http://HOST:8265") from None
    if parts.hostname is None or port is None:
        return  # auto, or a scheme of somebody else's
    try:
        socket.create_connection((parts.hostname, port), _CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise Unreachable(
            f"{address}: cannot be reached: {reason}; expected the dashboard of a Ray cluster, http://HOST:8265"
        ) from None


def _is_bare_dashboard(address: str) -> bool:
    """Whether a dashboard is named without http://; Ray would take it for a control store and wait for that.

    Raises InputError for what is neither.
    """
    if "://" in address or ":" not in address:
        return False
    connection = http.client.HTTPConnection(address, timeout=_CONNECT_SECONDS)
    try:
        connection.request("GET", "/api/version")
        if connection.getresponse().status in (200, 401, 403):
            return True
    except TimeoutError as error:
        raise _told(address, error) from None
    except (OSError, http.client.HTTPException):
        return False  # a control store speaks no HTTP
    finally:
        connection.close()
    raise Unreachable(f"{address}: is not the dashboard of a Ray cluster")


def _in_time(make: Callable[[str], Any], address: str) -> Any:
    """Call in a thread that may be left behind: some of Ray's addresses are looked up without a deadline."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append(make(address))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_LOOKUP_SECONDS)
    if not outcome:
        raise TimeoutError
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def cpus(client: Any) -> tuple[int, int] | None:
    """Return (free, all) CPUs of the nodes that are alive, from the dashboard; None if it does not say.

    A node that has just joined is alive some time before it is known what it has; that is waited for.
    """
    deadline = time.monotonic() + _NODE_SECONDS
    while True:
        answer = client._do_request("GET", "/nodes?view=summary")
        if answer.status_code != 200:
            return None
        data = answer.json().get("data", {})
        found = _cpus_of(data)
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _cpus_of(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """The CPUs in the dashboard's summary of nodes; None if one that is alive has not told what it has."""
    alive = {
        node.get("raylet", {}).get("nodeId")
        for node in data.get("summary", ())
        if node.get("raylet", {}).get("state") == "ALIVE"
    }
    resources = data.get("nodeLogicalResources") or {}
    if not alive or not alive <= resources.keys():
        return None
    used = [_USED.search(resources[node]) for node in alive]
    totals = [(float(found[1]), float(found[2])) for found in used if found]
    return int(sum(t - u for u, t in totals)), int(sum(t for _, t in totals))
