"""The workers of a run as processes at the other end of a line: started, let in, heard, lost, killed and let go.

What a loss means for the run is the coordinator's to decide; here is only who is there and how it is reached.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from dtrain.comm.channel import Channel, ChannelClosed, Message
from dtrain.comm.host import host_id
from dtrain.train.host import Host
from dtrain.train.hosts import Hosts
from dtrain.train.launcher import Launcher
from dtrain.train.stacks import Whereabouts, whereabouts

FAREWELL_SECONDS = 2.0
ANSWER_SECONDS = 0.5


class Membership:
    """The lines to the workers. ``hosts`` tells where each is; ``lost`` counts those that were lost."""

    def __init__(self, launcher: Launcher, host: Host, timeout_seconds: float) -> None:
        self._launcher, self._memory = launcher, host.memory
        self.hosts = Hosts(host, host_id(), timeout_seconds, self.kill)
        self._channels = self.hosts.channels
        self._pids: dict[int, int] = {}
        self._asked: set[int] = set()  # on another host, where they are; nobody beside them could be
        self._farewells: dict[int, float] = {}  # killed on another host, and when it is given up
        self.lost = 0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        launcher.attach(self.wake)

    @property
    def present(self) -> tuple[int, ...]:
        """The workers of the current generation that are alive, in the order of their ranks."""
        return tuple(w for w in self.hosts.members if w in self._channels)

    @property
    def most(self) -> int:
        """How many workers the run can have."""
        return self._memory.dimensions.max_workers if self._launcher.can_replace else len(self.hosts.members)

    def wake(self) -> None:
        """Make ``hear`` return at once; any thread may call it, a signal handler too."""
        with suppress(OSError):
            os.write(self._wake_write, b"x")

    # --- coming in ---------------------------------------------------------------------------------------------------

    def start(self, worker: int) -> None:
        """Have a worker started that will join."""
        channel = self._launcher.start(worker, self._memory)
        if channel is not None:
            self.hosts.host_of[worker] = 0
            self._connect(worker, channel)

    def let_visitors_in(self) -> None:
        """Tell those who have come in by themselves the job, and where the memory of their host is."""
        for worker, channel, hello in self._launcher.visitors():
            host = self.hosts.place(worker, hello["host"])  # first of all: a process number means a process of its host
            self._connect(worker, channel)
            self._pids[worker] = int(hello["pid"])
            if host == 0:
                self._welcome(worker, (os.getpid(), self._memory.fd))
            else:
                self._welcome(worker, self.hosts.memory_for(worker))

    def joined(self, worker: int, message: Message) -> int:
        """A worker is up; return its host, whose memory those that waited for it are told now."""
        self._welcome_all(self.hosts.joined(worker, message))
        return self.hosts.host_of[worker]

    def _connect(self, worker: int, channel: Channel) -> None:
        self._channels[worker] = channel
        self._selector.register(channel, selectors.EVENT_READ, worker)

    def _welcome_all(self, workers: list[int]) -> None:
        for worker in workers:
            self._welcome(worker, self.hosts.memory_for(worker))

    def _welcome(self, worker: int, memory: tuple[int, int] | bool | None) -> None:
        if memory is False:  # another worker of its host is making it
            return
        self.hosts.send(
            worker,
            {
                "type": "welcome",
                "worker": worker,
                "memory": memory,
                "is_remote": self.hosts.host_of[worker] != 0,
                "max_workers": self._memory.dimensions.max_workers,
                **self._launcher.welcome(worker),
            },
        )

    # --- hearing and telling -----------------------------------------------------------------------------------------

    def hear(self, timeout_seconds: float) -> Iterator[tuple[int, Message | None]]:
        """Wait for words of the workers, as (worker, message); None if its line has ended, which it is to be told."""
        for key, _ in self._selector.select(timeout_seconds):
            worker = key.data
            if worker is None:
                os.read(self._wake_read, 64)
                continue
            channel = self._channels.get(worker)
            while channel is not None and self._channels.get(worker) is channel:  # until it is let go
                try:
                    message = channel.receive(timeout_seconds=0)
                except ChannelClosed:
                    yield worker, None
                    break
                if message is None:
                    break
                yield worker, message

    def listen(self, workers: set[int], is_last: Callable[[Message], bool]) -> None:
        """Hear these workers out for a while; take from the set who is gone or has said its last word."""
        deadline = time.monotonic() + FAREWELL_SECONDS
        while workers and time.monotonic() < deadline:
            for worker, message in self.hear(0.05):
                if message is None:
                    self._forget(worker)
                    self.hosts.forget(worker)
                if message is None or is_last(message):
                    workers.discard(worker)

    def send(self, messages: Mapping[int, Message]) -> None:
        """Send each worker its message."""
        for worker, message in messages.items():
            self.hosts.send(worker, message)

    def send_all(self, message: Message) -> None:
        """Send every worker a message, members or not."""
        self.send(dict.fromkeys(self._channels, message))

    def send_members(self, message: Message) -> None:
        """Send the members of the generation a message."""
        self.send(dict.fromkeys(self.hosts.members, message))

    # --- going -------------------------------------------------------------------------------------------------------

    def overdue(self) -> list[int]:
        """Those who were killed on another host and whose lines have not ended in time; they are given up."""
        now = time.monotonic()
        return [worker for worker, when in self._farewells.items() if now > when]

    def lose(self, worker: int) -> int | None:
        """A worker's line has ended, or it is given up; return the host whose memory went with it, if one did."""
        self.lost += 1
        self._launcher.has_lost = True
        host = self.hosts.host_of.get(worker, 0)
        if worker in self._channels:
            self._forget(worker)
        self._farewells.pop(worker, None)
        process = self._pids.pop(worker, None)
        if process is not None:  # a line may break while its process is there, which may not write any more
            self.hosts.kill(worker, process)
        is_host_gone, queued = self.hosts.forget(worker)
        self._welcome_all(queued)
        return host if is_host_gone else None

    def whereabouts(self, worker: int) -> Whereabouts | None:
        """Where a worker is that is silent; None if that is on another host: ``host_stack`` tells it, perhaps."""
        if self.hosts.host_of.get(worker, 0) == 0:
            process = self._launcher.pid(worker)
            return Whereabouts() if process is None else whereabouts(process, f"worker {worker}")
        known = self._pids.get(worker)
        if known is not None and self.hosts.ask_where(worker, known) == worker:
            self._asked.add(worker)
        return None

    def kill(self, worker: int) -> None:
        """End a worker that is silent; one on another host ends by the hand of one beside it, or is given up."""
        if self.hosts.host_of.get(worker) == 0 and worker in self._channels:
            self._launcher.kill(worker)
            return
        process = self._pids.get(worker)
        is_dying = process is not None and self.hosts.kill(worker, process)
        self._launcher.dismiss(worker)
        patience = FAREWELL_SECONDS if is_dying else ANSWER_SECONDS if worker in self._asked else 0.0
        self._asked.discard(worker)
        self._farewells[worker] = time.monotonic() + patience

    def dismiss(self, worker: int) -> None:
        """Let a worker go that is at rest."""
        self.hosts.send(worker, {"type": "stop"})
        if worker in self._channels:
            self._forget(worker)
        self._welcome_all(self.hosts.forget(worker)[1])
        self._launcher.dismiss(worker)

    def _forget(self, worker: int) -> None:
        channel = self._channels.pop(worker)
        self._selector.unregister(channel)
        channel.close()
        self._launcher.forget(worker)

    def close(self) -> None:
        """Let the workers go, kill who does not, and give the lines back."""
        self.send_all({"type": "stop", "lost": self.lost})
        self.listen(set(self._channels), lambda message: False)
        self._launcher.close()
        for worker in list(self._channels):
            self._forget(worker)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
