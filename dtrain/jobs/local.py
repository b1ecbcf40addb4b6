"""Workers as processes of this machine, forked from one prepared process (`zygote.py`)."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from dtrain.comm.channel import Channel, channel_pair
from dtrain.comm.memory import RunMemory
from dtrain.errors import WorkerError
from dtrain.jobs.zygote import Zygote
from dtrain.train.launcher import Launcher


class LocalLauncher(Launcher):
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
                    raise WorkerError(
                        f"worker {worker} could not be started: {error}; is the machine out of memory?"
                    ) from error
        self._homes[worker] = self._zygote
        return here

    def forget(self, worker: int) -> None:
        self._homes.pop(worker, None)

    def kill(self, worker: int) -> None:
        # SIGKILL ends a stopped process too, without running another of its instructions.
        pid = self.pid(worker)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pid(self, worker: int) -> int | None:
        home = self._homes.get(worker)
        return None if home is None else home.pid(worker)

    @property
    def zygote_pid(self) -> int:
        """The process number of the prepared process."""
        return self._zygote.process_id

    def close(self) -> None:
        for worker in list(self._homes):
            self.kill(worker)
        self._zygote.close()
        os.close(self._payload)
