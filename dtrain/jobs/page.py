"""The live page of runs: `dtrain ui` serves it in its own process, `dtrain run --ui` beside the run.

The page of a run is served by a process of its own that reads the run's files, so that no browser slows a step. It ends
with the run's process, however that ends: it waits for the end of a pipe that the run's process holds.

Port and token are kept in `page.json`, for the owner's eyes only: a run that is resumed, and a `dtrain ui` that is
started again, are found by the pages that are still open.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.run_directory import RunDirectory, runs_root, write_atomically

_ENDING_SECONDS = 2.0  # that a page takes at most to tell its clients the last


def check_page() -> None:
    """Raise InputError if what the page needs is not installed."""
    from dtrain.monitor.page_server import plotly_script

    plotly_script()


def serve_page(names: Sequence[str], port: int | None, say: Callable[[str], None]) -> None:
    """Serve these runs, or all, until SIGINT or SIGTERM. Raises InputError for a run or a port that cannot be had."""
    from dtrain.jobs.dashboard import Dashboard
    from dtrain.monitor.page_server import PageServer

    check_page()
    dashboard = Dashboard(names)
    root = runs_root()
    listening, token = _listen(root / "page.json" if root.is_dir() else None, port)
    with PageServer(dashboard, listening, token) as server:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        say(f"{server.link}\nCtrl-C ends it")
        stop.wait()
        server.stop()


@contextlib.contextmanager
def live_page(directory: RunDirectory, is_wanted: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Serve the page of a run while the body lasts. Raises InputError, before the body, if that cannot be."""
    if not is_wanted:
        yield
        return
    check_page()
    listening, token = _listen(directory.page_file, None)
    with listening:
        process = subprocess.Popen(
            [sys.executable, "-m", "dtrain.jobs.page", str(directory.path), str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            start_new_session=True,  # Ctrl-C is for the run
        )
        assert process.stdin is not None
        process.stdin.write(f"{token}\n".encode())
        process.stdin.flush()
        say(f"page           http://127.0.0.1:{listening.getsockname()[1]}/?token={token}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(2 * _ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listen(file: Path | None, port: int | None) -> tuple[socket.socket, str]:
    """A socket and a token: those that ``file`` remembers, if they are to be had and no other port is wanted."""
    known_port, token = _remembered(file)
    if port is not None and port != known_port:
        known_port, token = port, _fresh_token()
    try:
        listening = _bound(known_port, 0.0 if port else _ENDING_SECONDS)
    except OSError as error:
        if port:
            reason = os.strerror(error.errno or 0)
            raise InputError(f"--port {port}: cannot be used: {reason}; choose another, or 0 for any") from None
        return _bound(0), _fresh_token()  # another page has it, whose file this is
    if file is not None:
        with contextlib.suppress(DtrainError):  # it then is another link the next time
            content = json.dumps({"port": listening.getsockname()[1], "token": token})
            write_atomically(file, f"{content}\n".encode(), mode=0o600)
    return listening, token


def _bound(port: int, patience: float = 0.0) -> socket.socket:
    """A socket that listens on this port; a page that is about to end may have it for so many seconds still."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.create_server(("127.0.0.1", port), backlog=64)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _fresh_token() -> str:
    return secrets.token_urlsafe(24)


def _remembered(file: Path | None) -> tuple[int, str]:
    try:
        values = json.loads(file.read_bytes()) if file is not None else {}
        port, token = int(values["port"]), str(values["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, _fresh_token()
    is_fine = 0 < port < 65536 and len(token) >= 16 and token.replace("-", "").replace("_", "").isalnum()
    return (port, token) if is_fine else (0, _fresh_token())


def main() -> None:
    """The process of `live_page`: serves until its standard input ends."""
    from dtrain.jobs.dashboard import Dashboard
    from dtrain.monitor.page_server import PageServer

    path, number = sys.argv[1:]
    token = sys.stdin.readline().strip()
    with PageServer(Dashboard([path]), socket.socket(fileno=int(number)), token) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        server.stop()


if __name__ == "__main__":
    main()
