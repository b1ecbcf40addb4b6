"""The line of a worker on another host than the coordinator's: a thread of the worker reads it.

What concerns the memory of the host (`host.py`) the thread does at once, however busy the worker is; everything else it
hands on. The coordinator speaks of the memory with one worker of a host at a time, so the words come in order. While a
generation runs, that worker reports how far the ranks of its host are. Every worker says now and then that it is alive,
so that one which is not can be told from its neighbours, of whom nothing is known without it.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np

from dtrain.comm.channel import Channel, ChannelClosed, Message
from dtrain.comm.memory import RING
from dtrain.train.host import Host
from dtrain.train.resident import resident_bytes
from dtrain.train.stacks import whereabouts

_TICK_SECONDS = 0.02
_BEAT_SECONDS = 0.25
_END_SECONDS = 2.0
_RESIDENT_SECONDS = 1.0


class Agent:
    """Stands between a worker and its channel, which it owns from ``attend`` on."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._host: Host | None = None
        self._generation, self._ranks = 0, 0
        self._reported: Any = None
        self._said_at = time.monotonic()
        self._told_step = 0  # steps whose seconds have been told
        self._resident_at = 0.0

    @property
    def local_address(self) -> str:
        """The address of this host on the way to the coordinator."""
        return self._channel.local_address

    def attend(self, host: Host) -> None:
        """Begin to read: from now on messages come from ``receive``, and the host is served."""
        self._host = host
        threading.Thread(target=self._serve, name="dtrain agent", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send one message. Raises ChannelClosed."""
        if message["type"] == "idle":
            self._report()  # so that the coordinator sees why
        self._send(message)

    def receive(self, timeout_seconds: float | None = None) -> Message | None:
        """Return the next message for the worker, or None if none came in time. Raises ChannelClosed."""
        if self._host is None:
            return self._channel.receive(timeout_seconds)
        try:
            message = self._messages.get(block=timeout_seconds != 0, timeout=timeout_seconds or None)
        except queue.Empty:
            return None
        if message is None:
            self._messages.put(None)
            raise ChannelClosed
        return message

    def receive_array(self, array: np.ndarray[Any, Any]) -> None:
        """Fill an array with the raw bytes that follow a message."""
        self._channel.receive_array(array)

    def close(self) -> None:
        self._channel.close()

    def _send(self, message: Message) -> None:
        with self._lock:
            self._channel.send(message)
            self._said_at = time.monotonic()

    def _serve(self) -> None:
        assert self._host is not None
        try:
            while True:
                message = self._channel.receive(_TICK_SECONDS)
                if message is None:
                    self._report()
                elif message["type"].startswith("host_"):
                    self._obey(self._host, message)
                else:
                    self._messages.put(message)
                now = time.monotonic()
                if now - self._resident_at > _RESIDENT_SECONDS:
                    self._resident_at = now
                    self._send({"type": "alive", "resident": resident_bytes()})
                elif now - self._said_at > _BEAT_SECONDS:
                    self._send({"type": "alive"})
        except (ChannelClosed, ValueError):  # the coordinator is gone, or its line is garbled
            # Nothing is said to the memory: the other workers of the host may go on without this one.
            self._messages.put(None)

    def _obey(self, host: Host, message: Message) -> None:
        match message["type"]:
            case "host_state":
                memory = host.memory
                for array in (memory.parameters, memory.state):
                    self._channel.receive_array(array)
            case "host_begin":
                self._generation, self._ranks, self._reported = message["generation"], message["ranks"], None
                self._told_step = message["step"]
                host.begin(message["generation"], message["step"])
            case "host_grant":
                host.grant(message["first"], message["coefficients"])
            case "host_halt":
                host.halt(message["generation"])
            case "host_report":
                report = host.report(message["ranks"])
                self._send(
                    {
                        "type": "host_reported",
                        "begun": report.begun,
                        "committed": report.committed,
                        "is_whole": report.is_whole,
                        "done": sorted(report.done),
                    }
                )
            case "host_mend":
                self._send({"type": "host_mended", "committed": host.mend(message["ranks"])})
            case "host_stack":
                found = whereabouts(int(message["pid"])).plain()
                self._send({"type": "host_stack", "worker": message["worker"], "found": found})
            case "host_kill":
                with suppress(ProcessLookupError, PermissionError):
                    _end(int(message["pid"]))
                self._send({"type": "host_killed", "pid": message["pid"]})

    def _report(self) -> None:
        if not self._generation:
            return
        assert self._host is not None
        rows = self._host.rows(self._ranks)
        if rows == self._reported:
            return
        self._reported = rows
        # The row of a step may be read when all ranks are in a later one.
        steps = range(self._told_step, max(self._told_step, min(r[0] for r in rows) // 4))
        phases = self._host.memory.phases[[s % RING for s in steps], : self._ranks].sum(axis=0).tolist()
        self._told_step = steps.stop
        self._send(
            {"type": "progress", "generation": self._generation, "rows": rows, "phases": phases, "steps": len(steps)}
        )


def _end(process: int) -> None:
    """Kill a process of this host and wait until it is gone: it may not write into the memory any more."""
    descriptor = os.pidfd_open(process)
    try:
        os.kill(process, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(_END_SECONDS * 1000)
    finally:
        os.close(descriptor)
