"""Workers as threads of this process: the same worker, the same memory, no second implementation. For one worker."""

from __future__ import annotations

import os
import threading

from dtrain.comm.channel import Channel, channel_pair
from dtrain.comm.memory import RunMemory
from dtrain.errors import WorkerError
from dtrain.train.launcher import Launcher
from dtrain.train.program import Program
from dtrain.train.worker import Connect, Worker


class InProcessLauncher(Launcher):
    """Starts workers as daemon threads. A thread cannot be killed, so a model that hangs ends the run."""

    def __init__(self, program: Program, connect: Connect | None = None) -> None:
        self._program, self._connect = program, connect

    def start(self, worker: int, memory: RunMemory) -> Channel:
        here, there = channel_pair()
        threading.Thread(target=self._run, args=(Channel(there), memory), name=f"worker {worker}", daemon=True).start()
        return here

    def _run(self, channel: Channel, memory: RunMemory) -> None:
        try:
            Worker(channel, self._connect).run(lambda: (self._program, memory))
        finally:
            channel.close()

    def forget(self, worker: int) -> None:
        """Nothing is kept of a thread."""

    def pid(self, worker: int) -> int | None:
        return os.getpid()

    def kill(self, worker: int) -> None:
        raise WorkerError(
            f"worker {worker} runs in this process and was silent beyond its deadline; it cannot be replaced. "
            "Use --workers 1 or more, or raise timeout_seconds"
        )

    def close(self) -> None:
        """Threads end by themselves when their line is closed."""
