"""The prepared process from which workers are forked: one thread, one BLAS thread, everything imported, no job in it.

A worker, and a replacement for a dead one, is there in milliseconds. The process is started before the job is read, so
that both sides import at the same time; therefore this module imports nothing heavy before it has to. The prepared
process never touches the run's memory. It ends when its parent is gone, and its workers end with it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from dtrain.comm.threads import THREAD_VARIABLES

_ANSWER_SECONDS = 20.0
_START = """
import importlib.util, sys
found = importlib.util.spec_from_file_location(
    "dtrain", {folder!r} + "/__init__.py", submodule_search_locations=[{folder!r}])
sys.modules["dtrain"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["dtrain"])
from dtrain.jobs.zygote import main
main({fd})
"""  # the dtrain of the parent, whatever the current directory and whichever one is installed


class Zygote:
    """The prepared process, seen from the parent. It ends when this object is closed or this process dies."""

    def __init__(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.settimeout(_ANSWER_SECONDS)
        self._socket = here
        self._lock = threading.Lock()
        self._pids: dict[int, int] = {}
        code = _START.format(folder=str(Path(__file__).resolve().parents[1]), fd=there.fileno())
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[there.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is the coordinator's to handle; this process ends when the socket does
        )
        there.close()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def fork(self, worker: int, fds: list[int]) -> None:
        """Ask for a worker that gets these descriptors. Raises OSError if the zygote is gone."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps({"worker": worker}).encode()], fds)

    def pid(self, worker: int) -> int | None:
        """The process number of a worker, once the zygote has told it; None if it never will."""
        with self._lock:
            while worker not in self._pids:
                try:
                    answer = self._socket.recv(4096)
                except OSError:
                    return None
                if not answer:
                    return None
                told = json.loads(answer)
                self._pids[told["worker"]] = told["pid"]
            return self._pids[worker]

    def close(self) -> None:
        """End the zygote; the kernel ends its workers with it."""
        self._socket.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(fd: int) -> None:
    """Fork a worker per request until the socket is closed. A request carries the worker's line, memory and payload."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    requests = socket.socket(fileno=fd)
    _prepare()
    gc.collect()
    gc.freeze()
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(requests, 4096, 3)
        except OSError:
            return
        if not data:
            return
        worker = json.loads(data)["worker"]
        pid = os.fork()
        if pid == 0:
            requests.close()
            _die_with_parent()
            code = 1
            try:
                _work(*fds)
                code = 0
            finally:
                # Exit handlers belong to the zygote, not to its forks.
                with suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        for other in fds:
            os.close(other)
        try:
            requests.send(json.dumps({"worker": worker, "pid": pid}).encode())
        except OSError:
            return


def _prepare() -> None:
    import numpy  # noqa: F401
    import threadpoolctl  # noqa: F401

    import dtrain.data
    import dtrain.jobs.build
    import dtrain.jobs.payload
    import dtrain.nn.models
    import dtrain.optim
    import dtrain.train.stacks
    import dtrain.train.worker  # noqa: F401


def _die_with_parent() -> None:
    """Let the kernel kill this process when the zygote dies, stopped or not (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent or parent == 1:
            os._exit(1)


def _work(line: int, memory_fd: int, payload_fd: int) -> None:
    from dtrain.comm.channel import Channel
    from dtrain.jobs.payload import read_payload
    from dtrain.train.stacks import answer_when_asked
    from dtrain.train.worker import Worker

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answer_when_asked()
    Worker(Channel(socket.socket(fileno=line))).run(lambda: read_payload(payload_fd, memory_fd))
