"""The thin shell around the coordinator: sockets, clocks, shared memory and files on one side, events on the other.

It owns the run's memory while the job lasts. All decisions are the coordinator's; what is here carries them out.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dtrain.comm.channel import Channel, ChannelClosed, Message
from dtrain.comm.layout import split_evenly
from dtrain.comm.memory import ARRIVED, BEATS, GRANTED, HALT, RING, RunMemory
from dtrain.errors import DtrainError, InputError, WorkerError
from dtrain.monitor.records import EvalRecord
from dtrain.train import coordinator as c
from dtrain.train.blame import explain_nonfinite
from dtrain.train.checkpoint import Checkpoint, CheckpointStore
from dtrain.train.observer import Observer
from dtrain.train.program import Program
from dtrain.train.recorder import Recorder
from dtrain.train.shard import eval_chunks
from dtrain.train.snapshots import Snapshots
from dtrain.train.state import RunState

_TICK_SECONDS = 0.02
_FAREWELL_SECONDS = 2.0
_FOREVER = np.iinfo(np.int64).max


def max_workers(workers: int) -> int:
    """How many ranks the memory of a run for so many workers has room for."""
    return max(1, workers) * 2 + 2


class Launcher(Protocol):
    """Starts and ends workers somewhere."""

    def start(self, worker: int, memory: RunMemory) -> Channel:
        """Start a worker over ``memory`` and return the line to it at once; it says "joined" when it is up."""

    def forget(self, worker: int) -> None:
        """The worker is gone; its process number may soon be another's."""

    def kill(self, worker: int) -> None:
        """End the worker for certain; its line then ends. Raises DtrainError where that is impossible."""

    def close(self) -> None:
        """End everything that is left."""


@dataclass(frozen=True)
class RunSettings:
    """How a run is carried out; none of it decides the result. Times in seconds, ``checkpoint_every`` in steps."""

    workers: int
    checkpoint_every: int = 0
    checkpoint_seconds: float = 30.0
    timeout_seconds: float = 5.0
    startup_timeout_seconds: float = 60.0


@dataclass
class Outcome:
    """How a run ended. ``parameters`` is the user's tree with fresh arrays."""

    status: str
    step: int
    epoch: int
    fingerprint: str
    chain: str
    numerics: Mapping[str, str]
    parameters: Any
    train_loss: float | None = None
    eval: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    restarts: int = 0
    error: DtrainError | None = None


class Service:
    """Carries out one run of a program. Use once: ``Service(...).run()``."""

    def __init__(
        self,
        program: Program,
        settings: RunSettings,
        launcher: Launcher,
        numerics: Mapping[str, str],
        store: CheckpointStore | None = None,
        restore: Checkpoint | None = None,
        observer: Observer | None = None,
        job: str = "",
    ) -> None:
        self.program, self.numerics, self._job = program, dict(numerics), job
        self._launcher, self._observer = launcher, observer or Observer()
        workers = max(1, settings.workers)
        self._state = RunState(program, max_workers(workers), restore)
        self.memory = self._state.memory
        self._recorder = Recorder(self._state)
        self._snapshots = Snapshots(store, self._observer)
        self._last_eval = self._state.last_eval
        self._coordinator = c.Coordinator(
            c.Policy(
                steps=program.steps,
                shards=program.shards,
                world_size=workers,
                numerics=self.numerics,
                first_step=self._state.first_step,
                eval_every=program.eval_every if program.eval else 0,
                checkpoint_every=settings.checkpoint_every,
                checkpoint_seconds=settings.checkpoint_seconds,
                timeout_seconds=settings.timeout_seconds,
                startup_timeout_seconds=settings.startup_timeout_seconds,
                max_ahead=RING // 2,
            )
        )
        self._channels: dict[int, Channel] = {}
        self._members: tuple[int, ...] = ()
        self._at_rest: set[int] = set()
        self._sums: dict[int, dict[str, float]] = {}
        self._chunks = eval_chunks(program)
        self._lost = 0
        self._finish: c.Finish | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._is_stop_requested = False

    @property
    def is_running(self) -> bool:
        """Whether the run has not yet come to its end."""
        return self._finish is None

    @property
    def members(self) -> tuple[int, ...]:
        """The workers of the current generation that are alive, in the order of their ranks."""
        return tuple(w for w in self._members if w in self._channels)

    def request_stop(self) -> None:
        """Ask for an orderly stop at the end of the step; safe in a signal handler."""
        self._is_stop_requested = True
        os.write(self._wake_write, b"x")

    def run(self) -> Outcome:
        """Train to the end, to a stop or to a failure, and leave nothing behind."""
        start = time.monotonic()
        state = self._state
        self._observer.started(state.layout.names, self.program.steps, state.first_step, state.sampler.steps_per_epoch)
        try:
            self._handle(c.Started())
            while self._finish is None:
                self._turn()
            return self._outcome(time.monotonic() - start)
        finally:
            self._close()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait for messages or for the next tick, and hand on what came."""
        for key, _ in self._selector.select(_TICK_SECONDS):
            if key.data is None:
                os.read(self._wake_read, 64)
            else:
                self._receive(key.data)
            if self._finish is not None:
                return
        if self._is_stop_requested:
            self._is_stop_requested = False
            self._handle(c.StopRequested())
        self._progress()

    def _receive(self, worker: int) -> None:
        channel = self._channels[worker]
        while self._finish is None:
            try:
                message = channel.receive(timeout_seconds=0)
            except ChannelClosed:
                self._forget(worker)
                self._lost += 1
                self._observer.event("worker_lost", f"worker {worker} died", worker=worker)
                self._handle(c.Lost(worker, "it died"))
                return
            if message is None:
                return
            self._message(worker, message)

    def _message(self, worker: int, message: Message) -> None:
        if self._is_resting(message):
            self._at_rest.add(worker)
        match message["type"]:
            case "joined":
                self._observer.event("worker_joined", f"worker {worker} joined", worker=worker, pid=message["pid"])
                self._handle(c.Joined(worker, message["numerics"]))
            case "halted":
                self._handle(c.WorkerHalted(worker, message["generation"]))
            case "evaluated" if self._is_awaited(message):
                self._sums.update({int(k): v for k, v in message["sums"].items()})
                if message["sums"] and len(self._sums) == self._chunks:
                    self._evaluated(message["step"])
                self._handle(c.Evaluated(worker, message["generation"], message["step"]))
            case "nonfinite" if message["generation"] == self._coordinator.generation:
                error = explain_nonfinite(self.program, self.memory, message["step"])
                self._handle(c.Failed(worker, error))
            case "failed":
                self._observer.event("worker_failed", message["error"], worker=worker, stack=message["stack"])
                self._handle(c.Failed(worker, _worker_error(message)))

    def _is_awaited(self, message: Message) -> bool:
        """Whether a part of an evaluation belongs to one that goes on."""
        coordinator = self._coordinator
        return coordinator.mode is c.Mode.EVALUATING and message["generation"] == coordinator.generation

    def _is_resting(self, message: Message) -> bool:
        """Whether its sender now touches nothing until it is told to."""
        if message["type"] == "failed":
            return True
        return message["type"] in ("halted", "nonfinite") and message["generation"] == self._coordinator.generation

    def _progress(self) -> None:
        rows = self.memory.arrived
        arrivals = {w: (int(rows[r, ARRIVED]), int(rows[r, BEATS])) for r, w in enumerate(self._members)}
        if self._coordinator.mode is c.Mode.RUNNING and arrivals:
            self._record(self._state.committed(len(self._members)))
        self._handle(c.Progress(arrivals))

    def _handle(self, event: c.Event) -> None:
        for instruction in self._coordinator.handle(event, time.monotonic()):
            self._do(instruction)

    # --- what the coordinator asks for -------------------------------------------------------------------------------

    def _do(self, instruction: c.Instruction) -> None:
        match instruction:
            case c.Spawn(worker):
                channel = self._launcher.start(worker, self.memory)
                self._channels[worker] = channel
                self._selector.register(channel, selectors.EVENT_READ, worker)
            case c.Kill(worker, reason):
                self._observer.event("worker_silent", reason, worker=worker)
                self._launcher.kill(worker)
            case c.Halt(generation):
                self.memory.header[HALT] = generation
                self._send({w: {"type": "go"} for w in self._members})
            case c.Recover():
                self._handle(self._recover())
            case c.Begin():
                self._begin(instruction)
            case c.Grant(step):
                self._grant(step)
            case c.Evaluate(generation, step, members):
                self._sums = {}
                parts = split_evenly(self._chunks, len(members))
                self._send(
                    {
                        w: {"type": "evaluate", "generation": generation, "step": step, "chunks": part}
                        for w, part in zip(members, parts, strict=True)
                    }
                )
            case c.Snapshot(step):
                self._snapshot(step)
            case c.Finish():
                self._finish = instruction

    def _send(self, messages: Mapping[int, Message]) -> None:
        for worker, message in messages.items():
            if worker in self._channels:
                with suppress(ChannelClosed):  # its end of file is read in the next turn
                    self._channels[worker].send(message)

    def _begin(self, begin: c.Begin) -> None:
        memory = self.memory
        # A member of the generation before may not have read its message yet when the next steps are granted.
        memory.header[HALT] = begin.generation - 1
        memory.arrived[:, :] = 0
        memory.arrived[:, ARRIVED] = 4 * begin.step
        self._members, self._at_rest = begin.members, set()
        self._observer.generation(begin.generation, begin.members, self._lost)
        self._send(
            {
                worker: {
                    "type": "begin",
                    "generation": begin.generation,
                    "step": begin.step,
                    "rank": rank,
                    "world_size": len(begin.members),
                    "first": begin.first[rank],
                    "run": begin.runs[rank],
                }
                for rank, worker in enumerate(begin.members)
            }
        )

    def _grant(self, upto: int) -> None:
        """Compute the coefficients of the granted steps once, for all ranks, then let them run."""
        rule, memory = self.program.rule, self.memory
        was_idle = int(memory.header[GRANTED]) <= self._coordinator.committed
        for step in range(max(int(memory.header[GRANTED]), self._state.first_step), upto):
            values = rule.coefficients(step, self.program.schedule.lr(step))
            memory.coefficients[step % RING, : len(values)] = values
        memory.header[GRANTED] = upto
        if was_idle:
            self._send({w: {"type": "go"} for w in self._members})

    def _recover(self) -> c.Recovered:
        """Record what the halted generation has committed, and mend the step that it was in."""
        world_size = len(self._members)
        self._record(self._state.committed(world_size))
        committed, done = self._state.mend(world_size)
        self._record(committed)
        return c.Recovered(committed, done)

    def _record(self, committed: int) -> None:
        """Tell the observer of the steps that were committed since the last time."""
        records = self._recorder.read(committed, self._members)
        if not records:
            return
        self._observer.steps(records)
        if records[0].step == self._state.first_step:
            self._observer.event("first_step", f"step {records[0].step} is committed", step=records[0].step)

    def _evaluated(self, step: int) -> None:
        """Add the chunks' sums in the order of the chunks, so that the figures do not depend on the workers."""
        names = [n for n in self._sums[0] if n != "samples"]
        samples = sum(s["samples"] for s in self._sums.values())
        totals = {n: 0.0 for n in names}
        for chunk in range(self._chunks):
            for name in names:
                totals[name] += self._sums[chunk][name]
        self._last_eval = {n: totals[n] / samples for n in names}
        metrics = {n: v for n, v in self._last_eval.items() if n != "loss"}
        self._observer.evaluation(EvalRecord(step, self._state.epoch(step), self._last_eval["loss"], metrics))

    def _snapshot(self, step: int) -> None:
        """Copy the state now, have it written in the background."""
        if not self._snapshots.is_on:
            return
        self._observer.flush()  # a checkpoint must not be ahead of the record of its steps
        meta = {
            "job": self._job,
            "position": self._state.position(step),
            "chain": self._recorder.chain,
            "numerics": self.numerics,
            "eval": self._last_eval,
        }
        self._snapshots.write(step, self._state.tensors(), meta)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _outcome(self, seconds: float) -> Outcome:
        assert self._finish is not None
        step = self._finish.step if self._finish.status != "failed" else self._settle()
        tensors = self._state.tensors()
        self._snapshots.wait()
        error = self._finish.error or self._snapshots.error  # a result that is on no disk is not a success
        return Outcome(
            status=self._finish.status if error is None else "failed",
            step=step,
            epoch=self._state.epoch(step),
            fingerprint=self._state.fingerprint(tensors, step),
            chain=self._recorder.chain,
            numerics=self.numerics,
            parameters=self._state.parameters(tensors),
            train_loss=self._recorder.last_loss,
            eval=dict(self._last_eval),
            seconds=seconds,
            restarts=self._lost,
            error=error,
        )

    def _settle(self) -> int:
        """Bring a failed run's memory to the end of a step, keep it as a checkpoint, and return that step."""
        self.memory.header[HALT] = _FOREVER
        restless = {w for w in self.members if w not in self._at_rest}
        self._listen(restless, self._is_resting)
        for worker in list(restless):
            with suppress(DtrainError):  # a thread of this process cannot be killed
                self._launcher.kill(worker)
        self._listen(restless, self._is_resting)  # a killed worker is gone, and writes no more, when its line ends
        if restless or not self._members:
            return self._recorder.next_step
        step = self._recover().committed
        self._snapshot(step)
        return step

    def _listen(self, workers: set[int], is_last: Callable[[Message], bool]) -> None:
        """Hear these workers out for a while; take from the set who is gone or has said its last word."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while workers and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.05):
                if key.data is None:
                    os.read(self._wake_read, 64)
                    continue
                try:
                    while (message := self._channels[key.data].receive(timeout_seconds=0)) is not None:
                        if is_last(message):
                            workers.discard(key.data)
                except ChannelClosed:
                    self._forget(key.data)
                    workers.discard(key.data)

    def _forget(self, worker: int) -> None:
        channel = self._channels.pop(worker)
        self._selector.unregister(channel)
        channel.close()
        self._launcher.forget(worker)

    def _close(self) -> None:
        """Let the workers go, kill who does not, and give everything back."""
        self.memory.header[HALT] = _FOREVER
        self._send({w: {"type": "stop"} for w in self._channels})
        self._listen(set(self._channels), lambda message: False)
        self._launcher.close()
        for worker in list(self._channels):
            self._forget(worker)
        self._snapshots.wait()
        self._observer.flush()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.memory.close()


def _worker_error(message: Message) -> DtrainError:
    """The error of a worker, as the user is to read it."""
    kind: Callable[[str], DtrainError] = InputError if message["exit_code"] == 2 else WorkerError
    return kind(str(message["error"]))
