"""The thin shell around the coordinator: sockets, clocks, shared memory and files on one side, events on the other.

It owns the run's memory while the job lasts. All decisions are the coordinator's; what is here carries them out.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.channel import Channel, ChannelClosed, Message
from dtrain.comm.layout import Layout, split_evenly
from dtrain.comm.memory import (
    ARRIVED,
    BEATS,
    GRANTED,
    HALT,
    PHASES,
    RING,
    SUMMED,
    RunMemory,
)
from dtrain.errors import CheckpointError, DtrainError, InputError, WorkerError
from dtrain.graph.tree import flatten, unflatten
from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.train import coordinator as c
from dtrain.train.blame import explain_nonfinite
from dtrain.train.checkpoint import Checkpoint, CheckpointStore
from dtrain.train.fingerprint import CHAIN_START, extend_chain, fingerprint
from dtrain.train.program import Program, dimensions
from dtrain.train.shard import eval_chunks
from dtrain.train.update import Settings, SliceUpdate, decide, write_down

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


class Observer:
    """What a run tells to whoever watches it; every method may be overridden, none may fail."""

    def started(self, names: tuple[str, ...], steps: int, first_step: int, steps_per_epoch: int) -> None:
        """The run is about to start."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        """These steps, one after the other, were committed."""

    def evaluation(self, record: EvalRecord) -> None:
        """An evaluation is complete."""

    def generation(self, generation: int, members: tuple[int, ...], restarts: int) -> None:
        """A new generation begins."""

    def checkpoint(self, step: int) -> None:
        """A checkpoint is on disk."""

    def event(self, kind: str, text: str, **details: Any) -> None:
        """Anything else worth telling: a worker died, a checkpoint failed."""

    def flush(self) -> None:
        """Write what is held back."""


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
        self.program, self.settings, self.numerics = program, settings, dict(numerics)
        self._job = job
        self._launcher, self._store, self._observer = launcher, store, observer or Observer()
        initial = program.initial_parameters()
        self.layout: Layout = program.layout(initial)
        leaves, self._structure = flatten(initial)
        self.sampler = program.sampler()
        workers = max(1, settings.workers)
        self.memory = RunMemory(dimensions(program, self.layout, max_workers(workers)))
        self._parameters = self.layout.views(self.memory.parameters)
        self._update_settings = Settings(program.rule, program.clip_norm, program.clip_value, program.on_nonfinite)
        self._first_step, self._chain = 0, CHAIN_START
        self._last_eval: dict[str, float] = {}
        self._initialise(leaves, restore)
        self._coordinator = c.Coordinator(
            c.Policy(
                steps=program.steps,
                shards=program.shards,
                world_size=workers,
                numerics=self.numerics,
                first_step=self._first_step,
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
        self._drained = self._first_step
        self._sums: dict[int, dict[str, float]] = {}
        self._chunks = eval_chunks(program)
        self._writer: threading.Thread | None = None
        self._save_error: CheckpointError | None = None
        self._last_loss: float | None = None
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
        self._observer.started(self.layout.names, self.program.steps, self._first_step, self.sampler.steps_per_epoch)
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
            case "evaluated" if message["generation"] == self._coordinator.generation:
                self._sums.update({int(k): v for k, v in message["sums"].items()})
                if len(self._sums) == self._chunks:
                    self._evaluated(message["step"])
                self._handle(c.Evaluated(worker, message["generation"], message["step"]))
            case "nonfinite" if message["generation"] == self._coordinator.generation:
                error = explain_nonfinite(self.program, self.memory, message["step"])
                self._handle(c.Failed(worker, error))
            case "failed":
                self._observer.event("worker_failed", message["error"], worker=worker, stack=message["stack"])
                self._handle(c.Failed(worker, _worker_error(message)))

    def _is_resting(self, message: Message) -> bool:
        """Whether its sender now touches nothing until it is told to."""
        if message["type"] == "failed":
            return True
        return message["type"] in ("halted", "nonfinite") and message["generation"] == self._coordinator.generation

    def _progress(self) -> None:
        rows = self.memory.arrived
        arrivals = {w: (int(rows[r, ARRIVED]), int(rows[r, BEATS])) for r, w in enumerate(self._members)}
        if self._coordinator.mode is c.Mode.RUNNING and arrivals:
            self._drain(min(sequence + 1 for sequence, _ in arrivals.values()) // 4)
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
        for step in range(max(int(memory.header[GRANTED]), self._first_step), upto):
            values = rule.coefficients(step, self.program.schedule.lr(step))
            memory.coefficients[step % RING, : len(values)] = values
        memory.header[GRANTED] = upto
        if was_idle:
            self._send({w: {"type": "go"} for w in self._members})

    def _recover(self) -> c.Recovered:
        """Read how far the halted generation came; finish the update of a step whose sum was complete."""
        memory = self.memory
        arrived = [int(memory.arrived[r, ARRIVED]) for r in range(len(self._members))]
        committed = min(sequence + 1 for sequence in arrived) // 4
        self._drain(committed)
        if min(arrived) >= 4 * committed + SUMMED:
            samples = self.sampler.batch_size(committed)
            present = min(samples, self.program.shards)
            slot = committed % RING
            decision = decide(self._update_settings, memory.squares[slot], memory.losses[slot, :present], samples)
            if decision.action != "stop":
                write_down(decision, memory.decisions[slot])
                if decision.action == "update":
                    with np.errstate(all="ignore"):
                        for rank, blocks in enumerate(split_evenly(self.layout.blocks, len(arrived))):
                            SliceUpdate(memory, self._update_settings, rank, blocks).complete(committed, decision)
                committed += 1
                self._drain(committed)
        done = np.flatnonzero(memory.shard_done == committed + 1)
        return c.Recovered(committed, frozenset(done.tolist()))

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
        self._observer.evaluation(EvalRecord(step, self._epoch(step), self._last_eval["loss"], metrics))

    # --- steps that were committed -----------------------------------------------------------------------------------

    def _drain(self, upto: int) -> None:
        """Read the figures of the committed steps out of the ring and tell the observer."""
        if upto <= self._drained:
            return
        memory, program = self.memory, self.program
        steps = range(self._drained, upto)
        slots = [step % RING for step in steps]
        phases = memory.phases[slots, : len(self._members)]
        seconds = phases.sum(axis=2).max(axis=1).tolist()
        decisions, losses = memory.decisions[slots].tolist(), memory.losses[slots].tolist()
        records = []
        for i, step in enumerate(steps):
            samples = self.sampler.batch_size(step)
            is_skipped, norm, clip = decisions[i]
            loss = sum(losses[i][: min(samples, program.shards)]) / samples
            self._chain = extend_chain(self._chain, step, loss, norm)
            self._last_loss = loss
            is_last = step == upto - 1  # what costs more is told once for all steps that are drained together
            records.append(
                StepRecord(
                    step=step,
                    epoch=self._epoch(step),
                    loss=loss,
                    gradient_norm=norm,
                    clip_scale=clip,
                    learning_rate=program.schedule.lr(step),
                    samples=samples,
                    seconds=seconds[i],
                    is_skipped=bool(is_skipped),
                    parameter_norms=self._parameter_norms(slots[i], samples) if is_last else None,
                    phases=self._phases(phases.sum(axis=0)) if is_last else None,
                    digest=self._chain,
                )
            )
        self._observer.steps(records)
        if self._drained == self._first_step:
            self._observer.event("first_step", f"step {self._first_step} is committed", step=self._first_step)
        self._drained = upto

    def _phases(self, seconds: NDArray[np.float64]) -> dict[int, dict[str, float]]:
        return {w: dict(zip(PHASES, row, strict=True)) for w, row in zip(self._members, seconds.tolist(), strict=True)}

    def _parameter_norms(self, slot: int, samples: int) -> dict[str, float]:
        squares = np.bincount(
            self.layout.segment_parameters, weights=self.memory.squares[slot], minlength=len(self.layout.names)
        )
        return dict(zip(self.layout.names, (np.sqrt(squares) / samples).tolist(), strict=True))

    def _epoch(self, step: int) -> int:
        return step // self.sampler.steps_per_epoch

    # --- state -------------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Copy parameters and optimizer state, by group and name."""
        groups = {"parameters": self._parameters}
        for name, flat in zip(self.program.rule.state_names, self.memory.state, strict=True):
            groups[f"optimizer.{name}"] = self.layout.views(flat)
        return {g: {n: v.copy() for n, v in zip(self.layout.names, vs, strict=True)} for g, vs in groups.items()}

    def _initialise(self, leaves: list[Any], restore: Checkpoint | None) -> None:
        memory, rule = self.memory, self.program.rule
        for parameter, leaf in zip(self._parameters, leaves, strict=True):
            np.copyto(parameter, leaf, casting="same_kind")
        for name, flat in zip(rule.state_names, memory.state, strict=True):
            for view in self.layout.views(flat):
                view[...] = rule.state_init(name)
        if restore is None:
            return
        groups = {"parameters": memory.parameters}
        groups |= {f"optimizer.{n}": flat for n, flat in zip(rule.state_names, memory.state, strict=True)}
        for group, flat in groups.items():
            stored = restore.tensors.get(group, {})
            for name, view in zip(self.layout.names, self.layout.views(flat), strict=True):
                if name not in stored or stored[name].shape != view.shape or stored[name].dtype != view.dtype:
                    raise CheckpointError(
                        f"{restore.path}: {group} has no {view.dtype} tensor {name} of shape {view.shape}; "
                        "the checkpoint belongs to another model or optimizer"
                    )
                np.copyto(view, stored[name])
        self._first_step, self._chain = restore.step, restore.meta["chain"]
        self._last_eval = dict(restore.meta.get("eval", {}))
        # A position in the data is a step; the sampler and the schedule are functions of it.

    def _position(self, step: int) -> dict[str, int]:
        return {"step": step, "seed": self.program.seed, "epoch": self._epoch(step)}

    def _snapshot(self, step: int) -> None:
        """Copy the state now, write it in the background."""
        if self._store is None:
            return
        if self._writer is not None:
            self._writer.join()
        self._observer.flush()  # a checkpoint must not be ahead of the record of its steps
        meta = {
            "job": self._job,
            "position": self._position(step),
            "chain": self._chain,
            "numerics": self.numerics,
            "eval": self._last_eval,
        }
        self._writer = threading.Thread(
            target=self._write_checkpoint, args=(self._store, step, self._tensors(), meta), name="checkpoint"
        )
        self._writer.start()

    def _write_checkpoint(
        self, store: CheckpointStore, step: int, tensors: dict[str, dict[str, NDArray[Any]]], meta: dict[str, Any]
    ) -> None:
        try:
            store.save(step, tensors, meta)
        except CheckpointError as error:
            self._save_error = error
            self._observer.event("checkpoint_failed", str(error), step=step)
        else:
            self._save_error = None
            self._observer.checkpoint(step)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _outcome(self, seconds: float) -> Outcome:
        assert self._finish is not None
        step = self._finish.step if self._finish.status != "failed" else self._settle()
        tensors = self._tensors()
        if self._writer is not None:
            self._writer.join()
        # A result that is on no disk is not a success.
        error = self._finish.error or self._save_error
        return Outcome(
            status=self._finish.status if error is None else "failed",
            step=step,
            epoch=self._epoch(step),
            fingerprint=fingerprint(tensors, self._position(step)),
            chain=self._chain,
            numerics=self.numerics,
            parameters=unflatten(self._structure, list(tensors["parameters"].values())),
            train_loss=self._last_loss,
            eval=dict(self._last_eval),
            seconds=seconds,
            restarts=self._lost,
            error=error,
        )

    def _settle(self) -> int:
        """Bring a failed run's memory to the end of a step, keep it as a checkpoint, and return that step."""
        self.memory.header[HALT] = _FOREVER
        deadline = time.monotonic() + _FAREWELL_SECONDS
        restless = {w for w in self._members if w in self._channels} - self._at_rest
        while restless and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.05):
                if key.data is None:
                    os.read(self._wake_read, 64)
                    continue
                try:
                    while (message := self._channels[key.data].receive(timeout_seconds=0)) is not None:
                        if self._is_resting(message):
                            restless.discard(key.data)
                except ChannelClosed:
                    self._forget(key.data)
                    restless.discard(key.data)
        for worker in restless:
            self._launcher.kill(worker)
        if not self._members:
            return self._first_step
        step = self._recover().committed
        self._snapshot(step)
        return step

    def _forget(self, worker: int) -> None:
        channel = self._channels.pop(worker)
        self._selector.unregister(channel)
        channel.close()
        self._launcher.forget(worker)

    def _close(self) -> None:
        """Let the workers go, kill who does not, and give everything back."""
        self.memory.header[HALT] = _FOREVER
        self._send({w: {"type": "stop"} for w in self._channels})
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while self._channels and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.05):
                if key.data is None:
                    os.read(self._wake_read, 64)
                    continue
                try:
                    while self._channels[key.data].receive(timeout_seconds=0) is not None:
                        pass
                except ChannelClosed:
                    self._forget(key.data)
        self._launcher.close()
        for worker in list(self._channels):
            self._forget(worker)
        if self._writer is not None:
            self._writer.join()
        self._observer.flush()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.memory.close()


def _worker_error(message: Message) -> DtrainError:
    """The error of a worker, as the user is to read it."""
    text = str(message["error"])
    if message.get("place") and str(message["place"]) not in text:
        text += f" (at {message['place']})"
    kind: Callable[[str], DtrainError] = InputError if message["exit_code"] == 2 else WorkerError
    return kind(text)
