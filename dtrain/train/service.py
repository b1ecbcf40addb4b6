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
from typing import Any

from dtrain.comm.channel import Channel, ChannelClosed, Message
from dtrain.comm.host import host_id
from dtrain.comm.layout import split_evenly
from dtrain.comm.memory import GRANTED, RING
from dtrain.errors import DtrainError, InputError, WorkerError
from dtrain.monitor.records import EvalRecord
from dtrain.train import coordinator as c
from dtrain.train import events as e
from dtrain.train.blame import explain_nonfinite
from dtrain.train.checkpoint import Checkpoint, CheckpointStore
from dtrain.train.host import FOREVER
from dtrain.train.hosts import Hosts, held
from dtrain.train.launcher import Launcher
from dtrain.train.observer import Observer
from dtrain.train.program import Program
from dtrain.train.recorder import Recorder
from dtrain.train.shard import eval_chunks
from dtrain.train.snapshots import Snapshots
from dtrain.train.state import RunState

_TICK_SECONDS = 0.02
_FAREWELL_SECONDS = 2.0


def max_workers(workers: int) -> int:
    """How many ranks the memory of a run that begins with so many workers has room for on a host."""
    return max(64, workers * 2)


@dataclass(frozen=True)
class RunSettings:
    """How a run is carried out; none of it decides the result. Times in seconds, ``*_every`` in steps."""

    workers: int
    checkpoint_every: int = 0
    introspect_every: int = 0
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
                introspect_every=settings.introspect_every,
                checkpoint_seconds=settings.checkpoint_seconds,
                timeout_seconds=settings.timeout_seconds,
                startup_timeout_seconds=settings.startup_timeout_seconds,
                max_ahead=RING // 2,
                can_replace=launcher.can_replace,
            )
        )
        self._hosts = Hosts(self._state.host, host_id(), settings.timeout_seconds, self._kill)
        self._channels = self._hosts.channels
        self._pids: dict[int, int] = {}
        self._done: dict[int, frozenset[int]] = {}
        self._done_step = -1
        self._farewells: dict[int, float] = {}  # killed on another host, and when it is given up
        self._at_rest: set[int] = set()
        self._sums: dict[int, dict[str, float]] = {}
        self._chunks = eval_chunks(program)
        self._lost = 0
        self._finish: e.Finish | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._is_stop_requested = False
        self._wanted: int | None = None
        self._lost_at = 0.0  # when the first worker was lost since the last step, if any was
        self._is_recovering = False
        launcher.attach(self._wake)

    def _wake(self) -> None:
        with suppress(OSError):
            os.write(self._wake_write, b"x")

    @property
    def is_running(self) -> bool:
        """Whether the run has not yet come to its end."""
        return self._finish is None

    @property
    def members(self) -> tuple[int, ...]:
        """The workers of the current generation that are alive, in the order of their ranks."""
        return tuple(w for w in self._hosts.members if w in self._channels)

    def request_stop(self) -> None:
        """Ask for an orderly stop at the end of the step; safe in a signal handler."""
        self._is_stop_requested = True
        self._wake()

    def resize(self, workers: int) -> None:
        """Ask for another number of workers, from the next boundary on; may be called by any thread."""
        self._wanted = workers
        self._wake()

    def run(self) -> Outcome:
        """Train to the end, to a stop or to a failure, and leave nothing behind."""
        start = time.monotonic()
        state = self._state
        names, steps_per_epoch = state.layout.parameter_names, state.sampler.steps_per_epoch
        self._observer.started(names, self.program.steps, state.first_step, steps_per_epoch)
        try:
            self._handle(e.Started())
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
        for visitor in self._launcher.visitors():
            self._let_in(*visitor)
        if self._is_stop_requested:
            self._is_stop_requested = False
            self._handle(e.StopRequested())
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self._resize(wanted)
        now = time.monotonic()
        for worker in [w for w, when in self._farewells.items() if now > when]:
            self._gone(worker)
        self._progress()

    def _resize(self, wanted: int) -> None:
        most = self.memory.dimensions.max_workers if self._launcher.can_replace else len(self._hosts.members)
        if not 1 <= wanted <= most:
            text = f"{wanted} workers were asked for; this run can have 1 to {most}"
            self._observer.event("resize_refused", text, workers=wanted)
            return
        self._observer.event("resized", f"{wanted} workers are wanted", workers=wanted)
        self._handle(e.Resized(wanted))

    def _let_in(self, worker: int, channel: Channel, hello: dict[str, Any]) -> None:
        """A worker has come in by itself: tell it the job and where the memory of its host is."""
        self._channels[worker] = channel
        self._selector.register(channel, selectors.EVENT_READ, worker)
        self._pids[worker] = int(hello["pid"])
        if self._hosts.place(worker, hello["host"]) == 0:
            self._welcome(worker, (os.getpid(), self.memory.fd))
        else:
            self._welcome(worker, self._hosts.memory_for(worker))

    def _welcome(self, worker: int, memory: tuple[int, int] | bool | None) -> None:
        if memory is False:  # another worker of its host is making it
            return
        self._hosts.send(
            worker,
            {
                "type": "welcome",
                "worker": worker,
                "memory": memory,
                "is_remote": self._hosts.host_of[worker] != 0,
                "max_workers": self.memory.dimensions.max_workers,
                **self._launcher.welcome(worker),
            },
        )

    def _receive(self, worker: int) -> None:
        channel = self._channels[worker]
        while self._finish is None:
            try:
                message = channel.receive(timeout_seconds=0)
            except ChannelClosed:
                self._gone(worker)
                return
            if message is None:
                return
            self._message(worker, message)

    def _gone(self, worker: int) -> None:
        """A worker's line has ended, or it is given up."""
        self._lost += 1
        self._launcher.has_lost = True
        if worker in self._hosts.members:  # training does not stand still for one that has yet to begin
            self._lost_at = self._lost_at or time.monotonic()
        host = self._hosts.host_of.get(worker, 0)
        if worker in self._channels:
            self._forget(worker)
        self._farewells.pop(worker, None)
        process = self._pids.pop(worker, None)
        if process is not None:  # a line may break while its process is there, which may not write any more
            self._hosts.kill(worker, process)
        is_host_gone, queued = self._hosts.forget(worker)
        gone = self._done.pop(host, frozenset()) if is_host_gone else frozenset()
        for other in queued:
            self._welcome(other, self._hosts.memory_for(other))
        self._observer.event("worker_lost", f"worker {worker} died", worker=worker)
        self._handle(e.Lost(worker, "it died", gone))

    def _kill(self, worker: int) -> None:
        """End a worker that is silent; one on another host ends by the hand of one beside it, or is given up."""
        if self._hosts.host_of.get(worker, 0) == 0 and worker in self._channels:
            self._launcher.kill(worker)
            return
        process = self._pids.get(worker)
        is_dying = process is not None and self._hosts.kill(worker, process)
        self._launcher.dismiss(worker)
        self._farewells[worker] = time.monotonic() + (_FAREWELL_SECONDS if is_dying else 0.0)

    def _message(self, worker: int, message: Message) -> None:
        if self._is_resting(message):
            self._at_rest.add(worker)
        match message["type"]:
            case "joined":
                host = self._hosts.host_of.setdefault(worker, 0)
                self._observer.event("worker_joined", f"worker {worker} joined", worker=worker, pid=message["pid"])
                for other in self._hosts.joined(worker, message):
                    self._welcome(other, self._hosts.memory_for(other))
                self._handle(e.Joined(worker, message["numerics"], host))
            case "progress" if message["generation"] == self._coordinator.generation:
                self._hosts.reported(worker, message)
            case "meeting" if message["generation"] == self._coordinator.generation:
                self._introduce(worker, message)
            case "link_lost":
                if message["generation"] == self._coordinator.generation and self._coordinator.is_under_way:
                    self._observer.event("link_lost", message["reason"], worker=worker)
                self._handle(e.LinkLost(worker, message["generation"], message["reason"]))
            case "halted":
                self._handle(e.WorkerHalted(worker, message["generation"]))
            case "evaluated" if self._is_awaited(message):
                self._sums.update({int(k): v for k, v in message["sums"].items()})
                if message["sums"] and len(self._sums) == self._chunks:
                    self._evaluated(message["step"])
                self._handle(e.Evaluated(worker, message["generation"], message["step"]))
            case "nonfinite" if message["generation"] == self._coordinator.generation:
                error = explain_nonfinite(self.program, self.memory, message["step"])
                self._handle(e.Failed(worker, error))
            case "failed":
                self._observer.event("worker_failed", message["error"], worker=worker, stack=message["stack"])
                self._handle(e.Failed(worker, _worker_error(message)))

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
        arrivals, waiting = self._hosts.arrivals(time.monotonic())
        if self._coordinator.mode is c.Mode.RUNNING and arrivals:
            self._record(min(sequence + 1 for sequence, _ in arrivals.values()) // 4)
        self._handle(e.Progress(arrivals, waiting))

    def _handle(self, event: e.Event) -> None:
        for instruction in self._coordinator.handle(event, time.monotonic()):
            self._do(instruction)

    # --- what the coordinator asks for -------------------------------------------------------------------------------

    def _do(self, instruction: e.Instruction) -> None:
        match instruction:
            case e.Spawn(worker):
                channel = self._launcher.start(worker, self.memory)
                if channel is not None:
                    self._channels[worker] = channel
                    self._selector.register(channel, selectors.EVENT_READ, worker)
            case e.Kill(worker, reason):
                self._observer.event("worker_silent", reason, worker=worker)
                self._kill(worker)
            case e.Dismiss(worker):
                self._dismiss(worker)
            case e.Halt(generation):
                self._hosts.halt(generation)
                self._send({w: {"type": "go"} for w in self._hosts.members})
            case e.Recover():
                self._handle(self._recover())
            case e.Begin():
                self._begin(instruction)
            case e.Grant(step):
                self._grant(step)
            case e.Evaluate(generation, step, members):
                self._sums = {}
                parts = split_evenly(self._chunks, len(members))
                self._send(
                    {
                        w: {"type": "evaluate", "generation": generation, "step": step, "chunks": part}
                        for w, part in zip(members, parts, strict=True)
                    }
                )
            case e.Snapshot(step):
                self._snapshot(step)
            case e.Introspect(step):
                self._observer.state(step, self._state.tensors())
            case e.Finish():
                self._finish = instruction

    def _send(self, messages: Mapping[int, Message]) -> None:
        for worker, message in messages.items():
            self._hosts.send(worker, message)

    def _dismiss(self, worker: int) -> None:
        """Let a worker go that is at rest."""
        self._observer.event("worker_dismissed", f"worker {worker} is not wanted any more", worker=worker)
        self._hosts.send(worker, {"type": "stop"})
        if worker in self._channels:
            self._forget(worker)
        self._hosts.forget(worker)
        self._launcher.dismiss(worker)

    def _begin(self, begin: e.Begin) -> None:
        hosts = self._hosts
        hosts.set_members(begin.members)
        self._at_rest = set()
        self._is_recovering = self._lost_at > 0.0
        done = self._done if self._done_step == begin.step else {}
        self._observer.generation(begin.generation, begin.members, self._lost)
        granted = int(self.memory.header[GRANTED])
        hosts.begin(begin.generation, begin.step, begin.step, self._coefficients(begin.step, granted))
        numbers = (0, *hosts.others)
        where = [hosts.host_of[w] for w in begin.members]
        runs = [range(*run) for run in begin.runs]
        self._meetings: dict[int, Any] = {}
        for rank, worker in enumerate(begin.members):
            local = hosts.on(where[rank])
            message: Message = {
                "type": "begin",
                "generation": begin.generation,
                "step": begin.step,
                "rank": local.index(worker),
                "world_size": len(local),
                "first": begin.first[rank],
                "run": begin.runs[rank],
            }
            if len(numbers) > 1:
                message |= {
                    "part": {
                        "host": numbers.index(where[rank]),
                        "hosts": len(numbers),
                        "rank": local.index(worker),
                        "ranks": len(local),
                    },
                    "first_held": held(numbers, where, begin.first, done),
                    "held": held(numbers, where, runs, {}),
                    "leaders": [hosts.on(n)[0] for n in numbers],
                    "address": self._launcher.address() if where[rank] == 0 else "",
                }
            hosts.send(worker, message)

    def _introduce(self, worker: int, message: Message) -> None:
        """The first rank of a host says where it can be met; when all have, all are told."""
        self._meetings[self._hosts.host_of[worker]] = message["address"]
        numbers = (0, *self._hosts.others)
        if all(n in self._meetings for n in numbers):
            peers = {
                "type": "peers",
                "generation": message["generation"],
                "addresses": [self._meetings[n] for n in numbers],
            }
            self._send({self._hosts.on(n)[0]: peers for n in numbers})

    def _coefficients(self, first: int, upto: int) -> list[list[float]]:
        rule, schedule = self.program.rule, self.program.schedule
        return [list(rule.coefficients(step, schedule.lr(step))) for step in range(first, upto)]

    def _grant(self, upto: int) -> None:
        """Compute the coefficients of the granted steps once, for all ranks, then let them run."""
        granted = int(self.memory.header[GRANTED])
        first = max(granted, self._state.first_step)
        self._hosts.grant(first, self._coefficients(first, upto))
        if granted <= self._coordinator.committed:
            self._send({w: {"type": "go"} for w in self._hosts.members})

    def _recover(self) -> e.Recovered:
        """Record what the halted generation has committed, and mend the step that it was in."""
        committed, self._done = self._hosts.settle()
        self._done_step = committed
        self._record(committed)
        return e.Recovered(committed, frozenset[int]().union(*self._done.values()))

    def _record(self, committed: int) -> None:
        """Tell the observer of the steps that were committed since the last time."""
        records = self._recorder.read(committed, self._hosts.on(0), self._hosts.phases)
        if not records:
            return
        self._observer.steps(records)
        if self._is_recovering:
            seconds = round(time.monotonic() - self._lost_at, 6)
            self._observer.event("recovered", f"a step was committed {seconds:.3f} s after the loss", seconds=seconds)
            self._is_recovering, self._lost_at = False, 0.0
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
        self._hosts.halt(FOREVER)
        restless = {w for w in self.members if w not in self._at_rest}
        self._listen(restless, self._is_resting)
        for worker in list(restless):
            with suppress(DtrainError):  # a thread of this process cannot be killed
                self._kill(worker)
        self._listen(restless, self._is_resting)  # a killed worker is gone, and writes no more, when its line ends
        if restless or not self._hosts.members:
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
                    worker = key.data
                    self._forget(worker)
                    self._hosts.forget(worker)
                    workers.discard(worker)

    def _forget(self, worker: int) -> None:
        channel = self._channels.pop(worker)
        self._selector.unregister(channel)
        channel.close()
        self._launcher.forget(worker)

    def _close(self) -> None:
        """Let the workers go, kill who does not, and give everything back."""
        self._hosts.halt(FOREVER)
        self._send({w: {"type": "stop", "lost": self._lost} for w in self._channels})
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
