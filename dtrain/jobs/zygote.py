"""The prepared process from which workers are forked: one thread, one BLAS thread, everything imported, no job in it.

It never touches the run's memory. It ends when its parent is gone; its workers end with it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
from contextlib import suppress


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
    from dtrain.train.worker import Worker

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    Worker(Channel(socket.socket(fileno=line))).run(lambda: read_payload(payload_fd, memory_fd))
