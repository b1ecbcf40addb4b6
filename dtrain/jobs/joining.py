"""Workers that are started by somebody else, MPI or Ray, and come to the coordinator's door by themselves.

``JoiningLauncher`` is the coordinator's side, ``work`` the worker's. A worker on the coordinator's host maps the
coordinator's memory; the first one on any other host makes the memory of that host, and the others there map it.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from dtrain.comm.barrier import Halted
from dtrain.comm.channel import Channel, ChannelClosed, Message
from dtrain.comm.door import Address, Door, knock
from dtrain.comm.host import host_id
from dtrain.comm.links import Links, Meeting
from dtrain.comm.memory import HALT, RunMemory, open_memory
from dtrain.errors import WorkerError
from dtrain.jobs.build import build
from dtrain.jobs.spec import JobSpec
from dtrain.train.agent import Agent
from dtrain.train.host import Host
from dtrain.train.launcher import Launcher
from dtrain.train.program import Program, dimensions
from dtrain.train.stacks import answer_when_asked
from dtrain.train.worker import Connect, Worker

LOOPBACK = "127.0.0.1"


class JoiningLauncher(Launcher):
    """Lets workers in. ``addresses`` are those of this host to listen on; loopback alone if no other host takes part.

    A subclass starts the workers, and says in ``admit`` which of them a visitor is.
    """

    def __init__(self, spec: JobSpec, token: bytes, addresses: Sequence[str]) -> None:
        self._spec = spec.model_dump(mode="json")
        self._addresses = tuple(addresses)
        self._arrived: queue.SimpleQueue[tuple[Channel, dict[str, Any]]] = queue.SimpleQueue()
        self._wake: Callable[[], None] = lambda: None
        self._pids: dict[int, int] = {}
        self.door = Door(token, self._addresses, self._visit)

    @property
    def spans_hosts(self) -> bool:  # type: ignore[override]
        return self._addresses[0] != LOOPBACK

    def _visit(self, connection: socket.socket, hello: dict[str, Any]) -> None:
        self._arrived.put((Channel(connection), hello))
        self._wake()

    def attach(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def admit(self, hello: dict[str, Any]) -> int | None:
        """The worker that a visitor is, or None if nobody waits for it."""
        raise LookupError

    def visitors(self) -> list[tuple[int, Channel, dict[str, Any]]]:
        found = []
        while not self._arrived.empty():
            channel, hello = self._arrived.get()
            worker = self.admit(hello)
            if worker is None:
                channel.close()
                continue
            self._pids[worker] = int(hello["pid"])
            found.append((worker, channel, hello))
        return found

    def welcome(self, worker: int) -> Message:
        return {"spec": self._spec}

    def address(self) -> str:
        return self._addresses[0]

    def forget(self, worker: int) -> None:
        self._pids.pop(worker, None)

    def pid(self, worker: int) -> int | None:
        return self._pids.get(worker)

    def kill(self, worker: int) -> None:
        pid = self._pids.get(worker)
        if pid is None:
            raise WorkerError(f"worker {worker} has not come to the door, so it cannot be ended from here")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.door.close()


def work(addresses: Sequence[Address], token: bytes, hello: dict[str, Any], connect: Connect | None = None) -> Message:
    """Be a worker of the job behind the door at ``addresses``; return the word to stop, or {}. Raises DoorError.

    ``hello`` says who comes. ``connect`` makes the lines to other hosts; over TCP unless given.
    """
    answer_when_asked()
    channel = knock(addresses, token, {"host": host_id(), "pid": os.getpid(), **hello})
    agent = Agent(channel)
    worker = Worker(agent, connect or tcp_connect(token, lambda: agent.local_address))

    def prepare() -> tuple[Program, RunMemory]:
        welcome = agent.receive()
        if welcome is None or welcome["type"] != "welcome":
            raise ChannelClosed
        program = build(JobSpec.model_validate(welcome["spec"]), check=False)
        layout = program.layout(program.initial_parameters())
        where = welcome["memory"]
        try:
            descriptor = None if where is None else open_memory(*where)
        except FileNotFoundError:  # who held it has died meanwhile: this worker is lost too, and another one comes
            raise ChannelClosed from None
        memory = RunMemory(dimensions(program, layout, welcome["max_workers"]), descriptor)
        if welcome["is_remote"]:
            agent.attend(Host(program, memory))
            worker.about = {"memory": [os.getpid(), memory.fd]}
        return program, memory

    try:
        worker.run(prepare)
        return worker.farewell
    finally:
        agent.close()


def tcp_connect(token: bytes, own_address: Callable[[], str]) -> Connect:
    """Return what makes the lines to the other hosts over TCP; ``own_address`` is where they can reach this one."""

    def connect(worker: Worker, message: Message) -> Links:
        generation, header = message["generation"], worker.memory.header_words
        meeting = Meeting(message["address"] or own_address(), token, generation, message["part"]["host"])

        def idle() -> None:
            worker.waits_for_a_host()
            worker.check_coordinator()
            if header[HALT] >= generation:
                raise Halted

        try:
            told = {"type": "meeting", "generation": generation, "address": list(meeting.address)}
            answer = worker.ask(told, "peers")
            return meeting.links([tuple(a) for a in answer["addresses"]], idle)
        finally:
            meeting.close()

    return connect
