"""Who is where: the workers of a run by host, the lines to them, and how the memory of each host is spoken to.

Host 0 is the coordinator's own; its memory is touched directly. The memory of any other host belongs to its workers,
lives as long as one of them, and is spoken to through one of them, the *speaker* (`agent.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dtrain.comm.channel import Channel, ChannelClosed, Message
from dtrain.train.host import Host, Report

_WAITING_SECONDS = 1.0
_SILENT_SECONDS = 1.0
_STATE_SECONDS = 60.0


@dataclass
class RemoteHost:
    """Another host: its workers that have joined, and where in which of them its memory is."""

    identity: str
    memories: dict[int, tuple[int, int]] = field(default_factory=dict)  # worker: process number and descriptor
    is_current: bool = False  # its memory holds the state of the run
    is_making: int | None = None  # the worker that is making its memory
    queued: list[int] = field(default_factory=list)  # workers that wait for it
    condemned: set[int] = field(default_factory=set)  # processes that are to be ended there before anything else


class Hosts:
    """The lines to the workers and the hosts that they are on. ``members`` are those of the generation, by rank."""

    def __init__(
        self,
        local: Host,
        identity: str,
        timeout_seconds: float,
        kill: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.local, self._identity = local, identity
        self._timeout_seconds, self._kill, self._clock = timeout_seconds, kill, clock
        self.channels: dict[int, Channel] = {}
        self.members: tuple[int, ...] = ()
        self._generation = self._halted = 0
        self.host_of: dict[int, int] = {}
        self._hosts: dict[int, RemoteHost] = {}
        self._rows: dict[int, tuple[int, int, int]] = {}
        self._waits: dict[int, tuple[int, float]] = {}
        self._phases: dict[int, tuple[list[float], int]] = {}  # seconds per phase, and of how many steps
        self._heard: dict[int, float] = {}  # when each worker on another host was last heard

    # --- who is there ------------------------------------------------------------------------------------------------

    def place(self, worker: int, identity: str) -> int:
        """Note on which host a worker is, and return the host's number."""
        number = 0
        if identity != self._identity:
            known = {h.identity: i for i, h in self._hosts.items()}
            number = known.get(identity, len(self._hosts) + 1)
            self._hosts.setdefault(number, RemoteHost(identity))
        self.host_of[worker] = number
        return number

    def memory_for(self, worker: int) -> tuple[int, int] | bool | None:
        """Where the memory of a worker's host is: process and descriptor; None: it makes it; False: it has to wait."""
        host = self._hosts[self.host_of[worker]]
        if host.memories:
            return next(iter(host.memories.values()))
        if host.is_making is not None:
            host.queued.append(worker)
            return False
        host.is_making = worker
        return None

    def joined(self, worker: int, message: Message) -> list[int]:
        """A worker has mapped its host's memory; return those that waited for that."""
        if not self.host_of.get(worker):
            return []
        host = self._hosts[self.host_of[worker]]
        host.memories[worker] = tuple(message["memory"])
        host.condemned.discard(host.memories[worker][0])
        if host.is_making != worker:
            return []
        host.is_making, queued, host.queued = None, host.queued, []
        return queued

    def forget(self, worker: int) -> tuple[bool, list[int]]:
        """A worker is gone. Whether its host's memory went with it, and who waited for it to make that memory."""
        number = self.host_of.pop(worker, 0)
        for known in (self._rows, self._waits, self._phases, self._heard):
            known.pop(worker, None)
        if not number:
            return False, []
        host = self._hosts[number]
        host.memories.pop(worker, None)
        queued: list[int] = []
        if worker in host.queued:
            host.queued.remove(worker)
        if host.is_making == worker:
            host.is_making, queued, host.queued = None, host.queued, []
        if not host.memories:
            host.is_current = False
            host.condemned.clear()
        elif self._halted:  # who was told may have been the one that is gone
            self._tell(number, {"type": "host_halt", "generation": self._halted})
        return not host.memories, queued

    def on(self, host: int) -> tuple[int, ...]:
        """The members on a host, in the order of their ranks there; also those that have died."""
        return tuple(w for w in self.members if self._member_host[w] == host)

    @property
    def others(self) -> tuple[int, ...]:
        """The other hosts that have members of the generation and living workers."""
        numbers = sorted({self._member_host[w] for w in self.members} - {0})
        return tuple(n for n in numbers if self._hosts[n].memories)

    def set_members(self, members: tuple[int, ...]) -> None:
        """A new generation begins."""
        self.members = members
        self._member_host = {w: self.host_of.get(w, 0) for w in members}

    # --- speaking ----------------------------------------------------------------------------------------------------

    def send(self, worker: int, message: Message) -> None:
        """Send a message to a worker, if it is there; its end of file is read in the next turn."""
        if worker in self.channels:
            with suppress(ChannelClosed):
                self.channels[worker].send(message)

    def _speakers(self, host: int) -> list[int]:
        order = [*self.on(host), *self._hosts[host].memories]
        return [w for w in dict.fromkeys(order) if w in self._hosts[host].memories and w in self.channels]

    def tell(self, message: Message) -> None:
        """Say something to the memory of every other host."""
        for host in self.others:
            self._tell(host, message)

    def _tell(self, host: int, message: Message) -> None:
        for speaker in self._speakers(host)[:1]:
            self.send(speaker, message)

    def _ask(self, host: int, message: Message, kind: str) -> Message | None:
        """Ask the memory of a host; None if nobody there can answer any more."""
        for speaker in self._speakers(host):
            channel = self.channels[speaker]
            deadline = self._clock() + self._timeout_seconds
            try:
                self._end_condemned(host, channel)
                channel.send(message)
                while self._clock() < deadline:
                    answer = channel.receive(0.05)
                    if answer is not None and answer["type"] == "host_killed":
                        self.killed(speaker, answer["pid"])
                    if answer is not None and answer["type"] == kind:
                        return answer
            except ChannelClosed:
                continue
            self._kill(speaker)
        return None

    def kill(self, worker: int, process: int) -> bool:
        """Have a worker on another host killed by one beside it; False if there is none, so its memory is nobody's.

        Who is told may be silent too. Until one has said that it is done, whoever speaks to that memory is told first.
        """
        for speaker in self._speakers(self.host_of.get(worker, 0)) if self.host_of.get(worker) else []:
            if speaker != worker:
                self._hosts[self.host_of[worker]].condemned.add(process)
                self.send(speaker, {"type": "host_kill", "pid": process})
                return True
        return False

    def ask_where(self, worker: int, process: int) -> int | None:
        """Have a worker on another host looked at by one beside it, or else by itself; return which one was asked.

        It answers with ``host_stack``, and before it does anything that it is told later.
        """
        speakers = self._speakers(self.host_of[worker])
        speaker = next((s for s in speakers if s != worker), speakers[0] if speakers else None)
        if speaker is not None:
            self.send(speaker, {"type": "host_stack", "worker": worker, "pid": process})
        return speaker

    def killed(self, worker: int, process: int) -> None:
        """A worker has ended a process of its host."""
        if self.host_of.get(worker):
            self._hosts[self.host_of[worker]].condemned.discard(process)

    def _end_condemned(self, host: int, channel: Channel) -> None:
        for process in sorted(self._hosts[host].condemned):
            channel.send({"type": "host_kill", "pid": process})

    # --- generations -------------------------------------------------------------------------------------------------

    def begin(self, generation: int, step: int, first: int, coefficients: Sequence[Sequence[float]]) -> None:
        """Set the words of every host for a generation at ``step``; give the state to who has not got it.

        ``coefficients`` are those of the granted steps from ``first`` on: who was to tell a host may have died over it.
        A host that says afterwards that it has begun has got everything else too.
        """
        self.local.begin(generation, step)
        self._generation = generation
        memory = self.local.memory
        self._rows = {w: (4 * step, 0, 0) for w in self.members}
        self._waits, self._phases = {}, {}
        others = self.others
        for number, host in self._hosts.items():
            if number not in others:
                host.is_current = False  # the run goes on without it
        for number in others:
            host, ranks = self._hosts[number], len(self.on(number))
            for speaker in self._speakers(number)[:1]:
                channel = self.channels[speaker]
                try:
                    self._end_condemned(number, channel)
                    if not host.is_current:
                        channel.send({"type": "host_state"})
                        for array in (memory.parameters, memory.state):
                            channel.send_array(array, _STATE_SECONDS)
                    channel.send({"type": "host_grant", "first": first, "coefficients": coefficients})
                    channel.send({"type": "host_begin", "generation": generation, "step": step, "ranks": ranks})
                    host.is_current = True
                except ChannelClosed:  # perhaps in the middle of an array, so that nothing can follow on it
                    self._kill(speaker)
        self._heard = dict.fromkeys(self._heard, self._clock())  # meanwhile nobody was listened to

    def halt(self, generation: int) -> None:
        """Make every rank of the generation stop where it is."""
        self._halted = generation
        self.local.halt(generation)
        self.tell({"type": "host_halt", "generation": generation})

    def grant(self, first: int, coefficients: Sequence[Sequence[float]]) -> None:
        """Let more steps run everywhere."""
        self.local.grant(first, coefficients)
        self.tell({"type": "host_grant", "first": first, "coefficients": coefficients})

    def settle(self) -> tuple[int, dict[int, frozenset[int]]]:
        """Bring all hosts of a halted generation to the end of the same step, with everybody at rest.

        Returns the steps committed, and which shards' gradients of the next step lie on which host, each on one. A step
        is committed if every host has its whole sum: only then can anybody have begun its update (`comm/exchange.py`).
        """
        reports = {0: self.local.report(len(self.on(0)))}
        for host in self.others:
            answer = self._ask(host, {"type": "host_report", "ranks": len(self.on(host))}, "host_reported")
            if answer is None or answer["begun"] != self._generation:
                # Nobody there can say, or it never began: then nobody has got the whole sum of a step since.
                self._hosts[host].is_current = False
            else:
                reports[host] = Report(
                    answer["begun"], answer["committed"], answer["is_whole"], frozenset(answer["done"])
                )
        step = min(r.committed for r in reports.values())
        if all(r.committed > step or r.is_whole for r in reports.values()):
            committed = step + 1 if reports[0].committed > step else self.local.mend(len(self.on(0)))
            for host, report in reports.items():
                if host and report.committed == step:
                    answer = self._ask(host, {"type": "host_mend", "ranks": len(self.on(host))}, "host_mended")
                    if answer is None or answer["committed"] != committed:
                        self._hosts[host].is_current = False  # it is given the state when it begins again
            step = committed
        done, seen = dict[int, frozenset[int]](), frozenset[int]()
        for host, report in sorted(reports.items()):
            if report.committed == step:  # a gradient may be on a host from before it was left out for a while
                done[host] = report.done - seen
                seen |= report.done
        return step, done

    # --- how far they are --------------------------------------------------------------------------------------------

    def reported(self, worker: int, message: Message) -> None:
        """The speaker of a host has told how far its ranks are."""
        for member, row, phases in zip(self.on(self.host_of[worker]), message["rows"], message["phases"], strict=False):
            self._rows[member] = tuple(row)
            before, steps = self._phases.get(member, ([0.0] * len(phases), 0))
            self._phases[member] = [a + b for a, b in zip(before, phases, strict=True)], steps + message["steps"]

    def take_phases(self) -> dict[int, tuple[list[float], int]]:
        """The seconds per phase of the members on other hosts, and of how many steps, told since the last call."""
        taken, self._phases = self._phases, {}
        return taken

    def heard(self, worker: int, now: float) -> None:
        """A worker has said something."""
        if self.host_of.get(worker):
            self._heard[worker] = now

    def silent(self, now: float) -> dict[int, float]:
        """The workers on other hosts that have lately said nothing, and for how many seconds; they should now and then.

        One of them tells what its whole host does, see ``reported``.
        """
        return {w: now - since for w, since in self._heard.items() if now - since > _SILENT_SECONDS}

    def arrivals(self, now: float) -> tuple[dict[int, tuple[int, int]], frozenset[int]]:
        """How far each member is, and who waits: has lately said so, or cannot start before another one has."""
        own = self.on(0)
        self._rows.update(zip(own, self.local.rows(len(own)), strict=True))
        waiting = {w for host in self._hosts.values() for w in host.queued}
        for worker, (_, _, waits) in self._rows.items():
            before, since = self._waits.get(worker, (0, float("-inf")))
            if waits != before:
                since = now
                self._waits[worker] = (waits, now)
            if now - since < _WAITING_SECONDS:
                waiting.add(worker)
        return {w: self._rows[w][:2] for w in self.members if w in self._rows}, frozenset(waiting)


def held(
    hosts: Sequence[int], member_hosts: Sequence[int], shards: Sequence[Sequence[int]], done: Mapping[int, Any]
) -> list[list[int]]:
    """The shards whose gradients are on each of ``hosts``: what its members run, and what is ``done`` there."""
    found = {h: set(done.get(h, ())) for h in hosts}
    for host, run in zip(member_hosts, shards, strict=True):
        found[host].update(run)
    return [sorted(found[h]) for h in hosts]
