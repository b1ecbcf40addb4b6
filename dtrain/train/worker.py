"""The worker: stateless hands. It runs the shards it is given, sums and updates its slice, and keeps nothing.

Parameters, optimizer state and gradients are in the run's memory; what a worker holds can be made again from the job.
Within the granted steps the workers of a generation go on by themselves, three barriers a step:

    gradients of my shards -> barrier -> sum my slice -> barrier -> decide, update my slice -> barrier

After the first barrier all gradients are there, after the second the whole sum and its squares, after the third the
step is committed. A worker writes nothing that belongs to another one. With several hosts the ranks and barriers are
those of the host, and the sum is made with the other hosts (`comm/exchange.py`); the rest is the same.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from dtrain.comm.barrier import Barrier, Halted
from dtrain.comm.channel import ChannelClosed, Message
from dtrain.comm.exchange import Held, HostSum, Part
from dtrain.comm.layout import split_evenly
from dtrain.comm.links import LinkLost, Links
from dtrain.comm.memory import (
    BEATS,
    BEGUN,
    GRADIENTS,
    GRANTED,
    HALT,
    RING,
    ROW_WORDS,
    SAMPLED,
    SUMMED,
    UPDATED,
    WAITS,
    RunMemory,
    words,
)
from dtrain.comm.reduce import SliceSum
from dtrain.comm.rows import RowSum, parts_of
from dtrain.errors import DtrainError
from dtrain.train.numerics import numerics_class
from dtrain.train.program import Program
from dtrain.train.shard import ShardRunner
from dtrain.train.together import Together
from dtrain.train.update import Settings, SliceUpdate, decide, write_down

_SPINS = 200
_PATIENCE_SECONDS = 0.0005, 0.05


class Line(Protocol):
    """The line to the coordinator: a `Channel`, or what stands in front of one on another host (`agent.py`)."""

    def send(self, message: Message) -> None: ...

    def receive(self, timeout_seconds: float | None = None) -> Message | None: ...


Connect = Callable[["Worker", Message], Links]
"""Makes the lines to the other hosts for the generation that a message begins, on the first rank of a host."""


class Worker:
    """One worker of a run, in a process or thread of its own. ``run`` returns when told to, or when alone.

    ``connect`` is needed where hosts exchange sums. ``about`` is added to what the worker says when it has joined.
    """

    def __init__(self, channel: Line, connect: Connect | None = None) -> None:
        self._channel = channel
        self._message: Message | None = None
        self._connect = connect
        self.about: Message = {}
        self.farewell: Message = {}
        self.overlap: bool | None = None

    def run(self, prepare: Callable[[], tuple[Program, RunMemory]]) -> None:
        """Get the job and the run's memory with ``prepare``, then serve until told to stop."""
        try:
            program, self.memory = prepare()
            self.shards = ShardRunner(program, self.memory)
            self.overlap = program.overlap
            self.settings = Settings(program.rule, program.clip_norm, program.clip_value, program.on_nonfinite)
            here = {"pid": os.getpid(), "host": socket.gethostname()}
            self._channel.send({"type": "joined", "numerics": numerics_class(), **here, **self.about})
            with np.errstate(all="ignore"):  # not finite values are found by the finite check, with their place
                while True:
                    message = self._next_message()
                    if message is not None and message["type"] == "stop":
                        self.farewell = message
                        return
                    if message is not None and message["type"] == "begin":
                        self._generation(message)
        except ChannelClosed:
            return
        except DtrainError as error:
            self._report(error, error.exit_code)
        except Exception as error:
            self._report(error, 3)

    def _report(self, error: BaseException, exit_code: int) -> None:
        text = str(error) if isinstance(error, DtrainError) else f"{type(error).__name__}: {error}"
        stack = "".join(traceback.format_exception(error))
        report = {"type": "failed", "error": text, "exit_code": exit_code, "stack": stack}
        try:
            self._channel.send(report)
            while not self.farewell:
                message = self._channel.receive()
                if message is not None and message["type"] == "stop":
                    self.farewell = message
        except ChannelClosed:
            pass

    def _generation(self, message: Message) -> None:
        """Run steps as a member of one generation, until another message ends it."""
        generation, step = int(message["generation"]), int(message["step"])
        links: Links | None = None
        member: Member | None = None
        try:
            if "part" in message:
                self._wait_until_begun(generation)
                if message["part"]["rank"] == 0:
                    assert self._connect is not None
                    links = self._connect(self, message)
            member = Member(self, message, links)
            shards, held = tuple(message["first"]), member.first_held
            while True:
                if member.header[GRANTED] <= step and not self._wait_for_grant(member, step):
                    return
                # Looked at after the grant: a grant to a later generation is no grant to this one.
                if member.header[HALT] >= generation:
                    raise Halted
                if not member.run(step, shards, held):
                    self._channel.send({"type": "nonfinite", "step": step, "generation": generation})
                    return
                step, shards, held = step + 1, member.shards, member.held
        except Halted:
            self._channel.send({"type": "halted", "generation": generation})
        except LinkLost as lost:
            self._channel.send({"type": "link_lost", "generation": generation, "reason": str(lost)})
            self._wait_until_halted(generation)
            self._channel.send({"type": "halted", "generation": generation})
        finally:
            if member is not None:
                member.close()
            if links is not None:
                links.close()

    def _wait_until_begun(self, generation: int) -> None:
        """Wait until the words of the memory are those of this generation; on another host that takes a message."""
        header = self.memory.header_words
        while header[BEGUN] < generation:
            if header[HALT] >= generation:
                raise Halted
            time.sleep(_PATIENCE_SECONDS[0])
            self.check_coordinator()

    def _wait_until_halted(self, generation: int) -> None:
        header = self.memory.header_words
        while header[HALT] < generation:
            time.sleep(_PATIENCE_SECONDS[0])
            self.check_coordinator()

    def ask(self, message: Message, kind: str) -> Message:
        """As the first rank of a host, send a message and wait for the answer, which depends on other hosts.

        Only an answer of this kind to the same generation counts. Raises Halted.
        """
        self._channel.send(message)
        header, generation = self.memory.header_words, message["generation"]
        while True:
            self.waits_for_a_host()
            answer = self._channel.receive(_PATIENCE_SECONDS[1])
            if answer is not None and answer["type"] == kind and answer["generation"] == generation:
                return answer
            if answer is not None and answer["type"] in ("evaluate", "stop"):
                self._message = answer  # who begins at a boundary is told at once what is due there
            if header[HALT] >= generation or (answer is not None and answer["type"] == "stop"):
                raise Halted

    def _wait_for_grant(self, member: Member, step: int) -> bool:
        """Wait until ``step`` is granted; False if a message ends the generation instead."""
        for _ in range(_SPINS):
            if member.header[GRANTED] > step:
                return True
        if member.rank == 0:
            self._channel.send({"type": "idle"})  # the coordinator need not wait for its next look
        patience = _PATIENCE_SECONDS[0]
        while True:
            if member.header[HALT] >= member.generation:
                raise Halted
            if member.header[GRANTED] > step:
                return True
            # A grant comes with a message only if the coordinator knew that everybody was idle.
            message = self._next_message(patience)
            patience = min(2 * patience, _PATIENCE_SECONDS[1])
            if message is None or message["type"] == "go":
                continue
            if message["type"] == "evaluate":
                self._evaluate(member, message)
                continue
            self._message = message
            return False

    def _evaluate(self, member: Member, message: Message) -> None:
        sums = {}
        for chunk in range(*message["chunks"]):
            sums[chunk] = self.shards.evaluate(chunk)
            member.words[member.row + BEATS] += 1
            if member.header[HALT] >= member.generation:
                raise Halted
        self._channel.send(
            {"type": "evaluated", "generation": member.generation, "step": message["step"], "sums": sums}
        )

    def _next_message(self, timeout_seconds: float | None = None) -> Message | None:
        """The message that was found while this worker waited for others, or the next one that comes."""
        message, self._message = self._message, None
        return self._channel.receive(timeout_seconds) if message is None else message

    def waits_for_a_host(self) -> None:
        """Say, as the first rank of a host, that it is not this host that the others wait for."""
        self.memory.arrived_words[WAITS] += 1

    def check_coordinator(self) -> None:
        """Raise ChannelClosed if the coordinator is gone; a message that is found is kept."""
        if self._message is None:
            self._message = self._channel.receive(timeout_seconds=0)


class Member:
    """A worker in one generation: its rank, its shards, its slice and its barrier."""

    def __init__(self, worker: Worker, message: Message, links: Links | None = None) -> None:
        memory = worker.memory
        self.generation = int(message["generation"])
        # What follows is of this host: its ranks share its memory, and each of them updates a slice of it.
        self.rank, world_size = int(message["rank"]), int(message["world_size"])
        self._world_size = world_size
        self.shards = tuple(range(*message["run"]))
        self.held: Held = ()
        self.first_held: Held = ()
        self._between: HostSum | None = None
        self._part: Part | None = None
        if "part" in message:
            self.first_held = tuple(map(frozenset, message["first_held"]))
            self.held = tuple(map(frozenset, message["held"]))
            part, overlap = Part(**message["part"]), worker.overlap
            if overlap is None and len(self.held[part.host]) > part.ranks:
                overlap = False  # only a rank's last shard could overlap, which gains less than the thread costs
            self._part, self._links = part, links
            self._between = HostSum(memory, part, links, self.generation, overlap)
        self.header, self.words, self.row = memory.header_words, memory.arrived_words, self.rank * ROW_WORDS
        blocks = split_evenly(memory.dimensions.layout.blocks, world_size)[self.rank]
        self._sum = SliceSum(memory.dimensions.layout, memory.gradients, memory.total, blocks)
        self._rows = RowSum(memory, self.rank, world_size)
        self._update = SliceUpdate(memory, worker.settings, self.rank, blocks, parts_of(self.rank, world_size))
        self._barrier = Barrier(memory, self.rank, world_size, self.generation, worker.check_coordinator)
        self._memory, self._settings, self._idle = memory, worker.settings, worker.check_coordinator
        self._runner, self._sampler = worker.shards, worker.shards.sampler
        self._last_wait = 0.0
        self._together: Together | None = None
        self._is_apart = False
        self._parts_of: dict[int, list[tuple[int, int]]] = {}
        self._shard_done = words(memory.shard_done)

    def run(self, step: int, shards: tuple[int, ...], held: Held = ()) -> bool:
        """Run one step; False if it was stopped because its gradient is not finite. Raises Halted, LinkLost.

        ``held`` are the shards of each host; it is empty where there is one host.
        """
        memory, barrier, slot = self._memory, self._barrier, step % RING
        phases = memory.phases[slot, self.rank]
        samples = self._sampler.batch_size(step)
        present = tuple(range(min(samples, self._sampler.shards)))  # the other shards of a small last batch are empty
        losses = memory.losses[slot]
        is_sampled = bool(memory.coefficients[slot, SAMPLED])
        if self.rank == 0:
            self._rows.clear(memory.squares[slot])
            self._rows.clear(memory.moved[slot])
        data = forward = backward = waited = 0.0
        start = perf_counter()
        between = self._between
        if self._together is None and not self._is_apart:
            self._look(step, shards, present)
        if self._together is not None:
            data, forward, backward, waited = self._together.run(step, shards, present, held)
            start, shards = perf_counter(), ()
        overlaps = between is not None and between.overlaps
        if between is not None and overlaps and self.rank == 0:
            between.start(step, held, present)
        for shard in shards:
            if shard < len(present):
                signature = self._runner.gather(step, shard)
                gathered = perf_counter()
                if between is not None and overlaps and shard == shards[-1]:
                    lost_at = signature.run(shard, self._parts(signature), partial(between.report, step))
                else:
                    lost_at = signature.run(shard)
                losses[shard] = signature.loss
                if is_sampled:
                    memory.shard_squares[slot, shard] = self._runner.square(shard)
                data += gathered - start
                start = perf_counter()
                forward += lost_at - gathered
                backward += start - lost_at
            self._shard_done[shard] = step + 1
            self.words[self.row + BEATS] += 1
            if self.header[HALT] >= self.generation:
                raise Halted
        if between is not None and overlaps:
            between.report(step)
        barrier.arrive(4 * step + GRADIENTS)
        barrier.wait(4 * step + GRADIENTS)
        t0 = perf_counter()
        if between is None:
            self._sum.run(present, memory.squares[slot])
            self._rows.run(present, memory.squares[slot])
        elif not overlaps:
            between.add_own(step, held, present)
            if self.rank == 0:
                between.run(step, held, present, self._idle)
        elif self.rank == 0:
            between.finish(self._idle)
        t1 = perf_counter()
        barrier.arrive(4 * step + SUMMED)
        barrier.wait(4 * step + SUMMED)
        t2 = perf_counter()
        decision = decide(self._settings, memory.squares[slot], losses[: len(present)], samples)
        if decision.action == "stop":
            return False
        if self.rank == 0:
            write_down(decision, memory.decisions[slot])
        if decision.action == "update":
            self._update.run(step, decision)
        t3 = perf_counter()
        # The wait for the commit is counted in the next step: once it is over, the coordinator may read this row.
        waited += (t0 - start) + (t2 - t1) + self._last_wait
        phases[:] = data, forward, backward, t1 - t0, t3 - t2, waited
        barrier.arrive(4 * step + UPDATED)
        barrier.wait(4 * step + UPDATED)
        self._last_wait = perf_counter() - t3
        return True

    def _look(self, step: int, shards: tuple[int, ...], present: tuple[int, ...]) -> None:
        """Find out whether the shards of a step sum something in the middle of it, once a shard is there to be looked
        at. Between hosts every rank looks, at another's if it has none: the gradients then travel when all are there.
        """
        own = [s for s in shards if s < len(present)] or (present[:1] if self._between is not None else ())
        if self._runner.meets(step, own):
            links = None if self._between is None else self._links
            where = self.rank, self._world_size, self.generation
            self._together = Together(self._runner, *where, self._idle, self._part, links)
            if self._between is not None:
                self._between.overlaps = False
        else:
            self._is_apart = len(own) > 0

    def _parts(self, signature: Any) -> list[tuple[int, int]]:
        """After how many calls of a shard's plan how many buckets of its gradient are there."""
        assert self._between is not None
        parts = self._parts_of.get(id(signature))
        if parts is None:
            layout, finished = self._memory.dimensions.layout, signature.finished_at
            parts, calls = [], 0
            for count, (_, (lo, hi)) in enumerate(self._between.buckets, 1):
                own = (finished[s.parameter] for block in layout.segments[lo:hi] for s in block)
                calls = max(calls, *own, 0)
                if parts and parts[-1][0] == calls:
                    parts.pop()
                parts.append((calls, count))
            # The last calls may be the loss, which is read when all of them are made.
            parts = self._parts_of[id(signature)] = [(c, n) for c, n in parts if n < len(self._between.buckets)]
        return parts

    def close(self) -> None:
        """The generation is over for this worker."""
        if self._between is not None:
            self._between.close()
