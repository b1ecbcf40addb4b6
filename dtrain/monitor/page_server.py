"""The HTTP server of the live page, on 127.0.0.1: its files, plotly's script, and the runs as JSON and as a stream.

Invariants: nobody without the token is given anything, nor is a page of another origin or another host name; the number
of clients is bounded, and none that hangs holds up another. It reads runs through `Runs`, and changes nothing.

::

    /                          the page; /page.css, /page.js and so on are its files
    /runs                      how each run stands
    /run?run=ID                all that is shown of a run
    /look?run=ID&number=N      one look into it, with the picture of its graph
    /stream?run=ID&run=ID      server-sent events with what is new; the id of an event is the bytes of each
                               metrics.jsonl that were told, so that a client that comes back goes on there
"""

from __future__ import annotations

import hmac
import importlib.util
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from dtrain.errors import InputError
from dtrain.graph.drawing.figures import drawn
from dtrain.monitor.lines import encode

_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_FILES = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_MOST_CLIENTS = 48
_MOST_RUNS = 12  # in one stream
_TICK = 0.5  # seconds between two looks at the files
_QUIET_TICKS = 10  # ticks without news after which the standing of a run is told again
_SAID_ONCE = frozenset({"timeline", "looks", "ratios", "result"})
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)  # plotly writes style elements; scripts come from files alone


class Run(Protocol):
    """A run as it is shown; see ``jobs.dashboard.RunView``."""

    def changed(self) -> Any: ...
    def view(self) -> dict[str, Any]: ...
    def news(self, position: int) -> dict[str, Any] | None: ...
    def look(self, number: int) -> dict[str, Any]: ...


class Runs(Protocol):
    """The runs that may be shown; see ``jobs.dashboard.Dashboard``."""

    def runs(self) -> list[dict[str, Any]]: ...
    def find(self, name: str) -> Run | None: ...


def plotly_script() -> Path:
    """Where the script is that draws the curves. Raises InputError if the package is not installed."""
    found = importlib.util.find_spec("plotly")
    for place in (found.submodule_search_locations or []) if found is not None else []:
        script = Path(place) / "package_data" / "plotly.min.js"
        if script.is_file():
            return script
    raise InputError("the page needs the package plotly for its curves; install it with: pip install 'dtrain[ui]'")


class PageServer(ThreadingHTTPServer):
    """Serves ``runs`` on a socket that listens already, to whoever has the token. ``serve_forever`` it in a thread."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, runs: Runs, listening: socket.socket, token: str) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.runs, self.token, self.script = runs, token, plotly_script()
        self.closing = threading.Event()
        self.streams = threading.Semaphore(_MOST_CLIENTS // 2)
        self._clients = threading.Semaphore(_MOST_CLIENTS)

    @property
    def link(self) -> str:
        """The address of the page, with the token."""
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/?token={self.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """As the base does; a client too many is sent away."""
        if self._clients.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is no error."""

    def stop(self) -> None:
        """Tell the streams what is new, end them and stop serving."""
        self.closing.set()
        self.shutdown()
        deadline = time.monotonic() + 2.0  # for a client that does not take what it is told
        ended = [self.streams.acquire(timeout=max(0.0, deadline - time.monotonic())) for _ in range(_MOST_CLIENTS // 2)]
        self.streams.release(sum(ended))
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request on one connection."""

    server: PageServer
    server_version, sys_version = "dtrain", ""
    timeout = 10.0  # seconds in which a client must say, or take, something

    def do_GET(self) -> None:
        """Answer, or say in a line why not."""
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        refusal = self._refusal(query.get("token", [""])[0])
        if refusal is not None:
            self._answer(refusal[0], "text/plain", f"{refusal[1]}\n".encode())
        elif url.path == "/runs":
            self._json(self.server.runs.runs())
        elif url.path in ("/run", "/look", "/stream"):
            self._of_runs(url.path, query)
        else:
            self._file(url.path)

    def _refusal(self, given: str) -> tuple[int, str] | None:
        hosts = self.headers.get_all("Host", [])
        name, _, port = hosts[0].rpartition(":") if len(hosts) == 1 else ("", "", "")
        if name.lower() not in _HOSTS or not port.isdigit():
            # A page that points its own name at 127.0.0.1 (DNS rebinding) is known by the name it asks for.
            return 403, "expected the host 127.0.0.1 or localhost"
        if "Origin" in self.headers:
            return 403, "pages of another origin are not answered"
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.server.token.encode()):
            return 401, "expected the token: open the link that dtrain has printed"
        return None

    def _of_runs(self, path: str, query: dict[str, list[str]]) -> None:
        names = query.get("run", [])[:_MOST_RUNS]
        found = [self.server.runs.find(name) for name in names]
        runs = [run for run in found if run is not None]
        if not runs or len(runs) < len(names):
            self._answer(404, "text/plain", b"there is no such run\n")
        elif path == "/run":
            self._json(runs[0].view())
        elif path == "/look":
            number = query.get("number", ["0"])[0]
            try:
                look = runs[0].look(int(number) if number.isdigit() else -1)
            except InputError as error:
                self._answer(404, "text/plain", f"{error}\n".encode())
                return
            if look.get("graph"):
                look["picture"] = drawn(look, f"The loss of the first shard after {look.get('step')} steps")
            self._json(look)
        else:
            told = self.headers.get("Last-Event-ID") or query.get("after", [""])[0]
            self._stream(list(zip(names, runs, strict=True)), told)

    def _stream(self, runs: list[tuple[str, Run]], told: str) -> None:
        if not self.server.streams.acquire(blocking=False):
            self._answer(503, "text/plain", b"too many pages are open\n")
            return
        try:
            parts = told.split(",")
            at = [int(part) if part.isascii() and part.isdigit() else 0 for part in parts]
            at += [0] * (len(runs) - len(at))
            self._head(200, "text/event-stream")
            self.wfile.write(b"retry: 1000\n\n")
            self._follow(runs, at)
        finally:
            self.server.streams.release()

    def _follow(self, runs: list[tuple[str, Run]], at: list[int]) -> None:
        """Tell what is new until the client goes away, or the server stops: then once more, and that this is all."""
        seen: list[Any] = [None] * len(runs)
        told: list[dict[str, Any]] = [{} for _ in runs]  # what is left out until it is another one
        quiet = 0
        while True:
            is_last = self.server.closing.is_set()
            quiet += 1
            for place, (name, run) in enumerate(runs):
                mark = run.changed()
                if mark == seen[place] and quiet % _QUIET_TICKS:
                    continue
                seen[place] = mark
                news = run.news(at[place])
                if news is None:  # the file is another one than the client knows
                    self._send("again", at, {"run": name})
                    return
                at[place] = news["position"]
                for key in _SAID_ONCE & news.keys():
                    if told[place].get(key) == news[key]:
                        del news[key]
                    else:
                        told[place][key] = news[key]
                self._send("news", at, {"run": name, **news})
            if is_last:
                self._send("end", at, {})
                return
            self.server.closing.wait(_TICK)

    def _send(self, kind: str, at: list[int], values: dict[str, Any]) -> None:
        head = f"event: {kind}\nid: {','.join(map(str, at))}\ndata: ".encode()
        self.wfile.write(head + encode(values) + b"\n")

    def _json(self, values: Any) -> None:
        body = encode(values) if isinstance(values, dict) else json.dumps(values).encode()
        self._answer(200, "application/json", body)

    def _file(self, path: str) -> None:
        if path == "/plotly.js":
            self._answer(200, "text/javascript", self.server.script.read_bytes(), cache="private, max-age=86400")
            return
        name = "index.html" if path == "/" else path[1:]
        file = next((f for f in _FILES.iterdir() if f.name == name and f.suffix in _TYPES), None)
        if file is None:
            self._answer(404, "text/plain", b"there is no such page\n")
            return
        # The token is url-safe text, so it can stand in the page as it is.
        body = file.read_bytes().replace(b"{token}", self.server.token.encode()) if path == "/" else file.read_bytes()
        self._answer(200, _TYPES[file.suffix], body)

    def _head(self, status: int, kind: str, length: int | None = None, cache: str = "no-store") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in (
            ("Cache-Control", cache),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Content-Security-Policy", _POLICY),
        ):
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, kind: str, body: bytes, cache: str = "no-store") -> None:
        self._head(status, kind, len(body), cache)
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a log would hold the token."""
