"""A run over several hosts without processes: a memory and agents for each host, socket pairs for lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dtrain.comm.channel import Channel, Message, channel_pair
from dtrain.comm.layout import split_evenly
from dtrain.comm.memory import (
    ARRIVED,
    COMPLETE,
    GRADIENTS,
    RING,
    SUMMED,
    UPDATED,
    RunMemory,
)
from dtrain.comm.reduce import Squares
from dtrain.optim import make_rule, make_schedule
from dtrain.train.agent import Agent
from dtrain.train.host import Host
from dtrain.train.hosts import Hosts
from dtrain.train.program import Program, dimensions
from dtrain.train.update import Settings, SliceUpdate, decide, write_down

SHARDS, SAMPLES = 4, 64
SIZES = {"w": (70, 300), "b": (300,), "v": (40_000,)}  # several blocks
TIMEOUT_SECONDS = 30.0


def program(**changes: Any) -> Program:
    values: dict[str, Any] = {
        "init": lambda rng: {n: rng.standard_normal(s).astype(np.float32) for n, s in SIZES.items()},
        "loss": lambda params, batch: batch["x"],
        "metrics": None,
        "train": {"x": np.zeros((SAMPLES, 1), np.float32)},
        "eval": {},
        "rule": make_rule("adam"),
        "schedule": make_schedule("constant", lr=0.01, total_steps=100),
        "seed": 1,
        "batch": 16,
        "shards": SHARDS,
        "steps": 100,
    }
    return Program(**{**values, **changes})


def memory_of(p: Program) -> RunMemory:
    return RunMemory(dimensions(p, p.layout(p.initial_parameters()), 4))


def coefficients(p: Program, first: int, upto: int) -> list[list[float]]:
    return [list(p.rule.coefficients(step, p.schedule.lr(step))) for step in range(first, upto)]


class Cluster:
    """``counts[h]`` workers on host h, numbered from the first to the last; host 0 is the coordinator's own."""

    def __init__(self, counts: Sequence[int], timeout_seconds: float = TIMEOUT_SECONDS, **changes: Any) -> None:
        self.program = program(**changes)
        self.memories = [memory_of(self.program) for _ in counts]
        self.killed: list[int] = []
        self.hosts = Hosts(Host(self.program, self.memories[0]), "here", timeout_seconds, self.killed.append)
        self.ends: dict[int, Channel] = {}  # where the worker's side of a line is
        self.agents: dict[int, Agent] = {}
        self._fill(self.memories[0])
        worker = 0
        for host, count in enumerate(counts):
            for _ in range(count):
                self.add(worker, host)
                worker += 1
        self.members = tuple(range(worker))

    def _fill(self, memory: RunMemory) -> None:
        random = np.random.default_rng(9)
        memory.parameters[...] = random.standard_normal(memory.parameters.shape)
        memory.state[...] = random.random(memory.state.shape)

    def add(self, worker: int, host: int, has_agent: bool = True) -> None:
        """Let a worker come in on a host and join; the first one on a host makes its memory."""
        if host == len(self.memories):
            self.memories.append(memory_of(self.program))
        identity = "here" if host == 0 else f"host {host}"
        assert self.hosts.place(worker, identity) == host
        if host == 0:
            return
        here, there = channel_pair()
        self.hosts.channels[worker], self.ends[worker] = here, Channel(there)
        self.hosts.memory_for(worker)
        self.hosts.joined(worker, {"memory": [1000 + worker, 7]})
        if has_agent:
            self.attend(worker, Host(self.program, self.memories[host]))

    def attend(self, worker: int, host: Host) -> None:
        self.agents[worker] = agent = Agent(self.ends[worker])
        agent.attend(host)

    def begin(self, generation: int = 1, step: int = 0, granted: int = 2) -> None:
        """Begin a generation of all members and wait until every host with an agent has."""
        self.hosts.set_members(self.members)
        self.hosts.begin(generation, step, step, coefficients(self.program, step, granted))
        self.hosts.local.grant(step, coefficients(self.program, step, granted))
        self.settled()

    def settled(self) -> None:
        """Wait until every speaker has done what it was told before."""
        for host in self.hosts.others:
            self.hosts._ask(host, {"type": "host_report", "ranks": 1}, "host_reported")

    def die(self, worker: int) -> None:
        """The worker dies, and the coordinator has not yet noticed."""
        self.ends[worker]._socket.shutdown(2)

    def lose(self, worker: int) -> tuple[bool, list[int]]:
        """The coordinator notices that a worker has died."""
        if worker in self.hosts.channels:
            self.hosts.channels.pop(worker).close()
        return self.hosts.forget(worker)

    # --- how far a host is ---

    def ranks(self, host: int) -> int:
        return len(self.hosts.on(host))

    def reach(self, host: int, step: int, phase: int, done: Sequence[int] = (), behind: int = 0) -> None:
        """All ranks of a host have reached a phase of ``step``, but the last of them is ``behind`` barriers."""
        memory = self.memories[host]
        memory.arrived[: self.ranks(host), ARRIVED] = 4 * step + phase
        memory.arrived[self.ranks(host) - 1, ARRIVED] -= behind
        memory.shard_done[list(done)] = step + 1

    def compute(self, host: int, step: int, done: Sequence[int]) -> None:
        self.reach(host, step, GRADIENTS, done)

    def sum(self, host: int, step: int) -> None:
        """The whole sum of ``step`` is on a host, all of whose ranks are still in the sum."""
        memory, layout = self.memories[host], self.memories[host].dimensions.layout
        self.reach(host, step, GRADIENTS)
        memory.total[...] = np.random.default_rng([step, 5]).standard_normal(layout.size)
        memory.losses[step % RING, :SHARDS] = 1.0
        squares = Squares(layout, memory.total, (0, layout.blocks))
        for block in range(layout.blocks):
            squares.run(block, memory.squares[step % RING])
        memory.header[COMPLETE] = step + 1

    def update(self, host: int, step: int, ranks: Sequence[int] | None = None) -> None:
        """Some ranks of a host (all, unless given) have made the update of ``step``, after ``sum``."""
        memory = self.memories[host]
        count = self.ranks(host)
        memory.arrived[:count, ARRIVED] = 4 * step + SUMMED
        if ranks is None or 0 in ranks:
            write_down(decision(self.program, memory, step), memory.decisions[step % RING])
        for rank, blocks in enumerate(split_evenly(memory.dimensions.layout.blocks, count)):
            if ranks is None or rank in ranks:
                slice_update(self.program, memory, rank, blocks).run(step, decision(self.program, memory, step))
                memory.arrived[rank, ARRIVED] = 4 * step + UPDATED

    def state(self, host: int) -> bytes:
        return self.memories[host].parameters.tobytes() + self.memories[host].state.tobytes()

    def after_update(self, step: int) -> bytes:
        """What every host has after the update of ``step`` to what the coordinator's host has now."""
        other = Cluster([1])
        other.hosts.set_members((0,))
        other.memories[0].parameters[...] = self.memories[0].parameters
        other.memories[0].state[...] = self.memories[0].state
        other.memories[0].coefficients[...] = self.memories[0].coefficients
        other.sum(0, step)
        other.update(0, step)
        return other.state(0)

    def next_message(self, worker: int) -> Message:
        message = self.ends[worker].receive(TIMEOUT_SECONDS)
        assert message is not None
        return message


def settings_of(p: Program) -> Settings:
    return Settings(p.rule, p.clip_norm, p.clip_value, p.on_nonfinite)


def decision(p: Program, memory: RunMemory, step: int) -> Any:
    slot = step % RING
    return decide(settings_of(p), memory.squares[slot], memory.losses[slot, :SHARDS], p.sampler().batch_size(step))


def slice_update(p: Program, memory: RunMemory, rank: int, blocks: tuple[int, int]) -> SliceUpdate:
    return SliceUpdate(memory, settings_of(p), rank, blocks)
