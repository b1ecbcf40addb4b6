"""Workers as processes of this machine, forked from one prepared process.

The preparing process (`zygote.py`) has NumPy and dtrain imported with one BLAS thread, so a worker, and a replacement for
a dead one, is there in milliseconds. It is started before the job is read, so that both imports run side by side.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from dtrain.comm.channel import Channel, channel_pair
from dtrain.comm.memory import RunMemory
from dtrain.errors import WorkerError

_ANSWER_SECONDS = 20.0
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Zygote:
    """The prepared process, seen from the parent. It ends when this object is closed or this process dies."""

    def __init__(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.settimeout(_ANSWER_SECONDS)
        self._socket = here
        self._lock = threading.Lock()
        self._pids: dict[int, int] = {}
        # Where this dtrain is, whatever the current directory and the way it was installed.
        root = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path.insert(0, {root!r}); from dtrain.jobs.zygote import main; main({there.fileno()})"
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[there.fileno()], env=environment, stdin=subprocess.DEVNULL
        )
        there.close()

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


class LocalLauncher:
    """Starts workers as processes of this machine. ``payload`` is the descriptor of the job (`payload.py`)."""

    def __init__(self, payload: int, zygote: Zygote | None = None) -> None:
        self._payload = payload
        self._zygote = zygote or Zygote()
        self._homes: dict[int, Zygote] = {}

    def start(self, worker: int, memory: RunMemory) -> Channel:
        here, there = channel_pair()
        with there:
            fds = [there.fileno(), memory.fd, self._payload]
            try:
                self._zygote.fork(worker, fds)
            except OSError:
                self._zygote.close()
                self._zygote = Zygote()
                try:
                    self._zygote.fork(worker, fds)
                except OSError as error:
                    raise WorkerError(f"worker {worker} could not be started: {error}; is the machine out of memory?") from error
        self._homes[worker] = self._zygote
        return here

    def forget(self, worker: int) -> None:
        self._homes.pop(worker, None)

    def kill(self, worker: int) -> None:
        # SIGKILL ends a stopped process too, without running another of its instructions.
        pid = self._homes[worker].pid(worker)
        if pid is not None:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def pid(self, worker: int) -> int | None:
        """The process number of a worker."""
        return self._homes[worker].pid(worker)

    def close(self) -> None:
        for worker in list(self._homes):
            self.kill(worker)
        self._zygote.close()
        os.close(self._payload)
