"""The thin shell around the coordinator: clocks, shared memory and files on one side, events on the other.

It owns the run's memory while the job lasts. All decisions are the coordinator's; what is here carries them out, the
workers' coming and going with `membership.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

from dtrain.comm.channel import Message
from dtrain.comm.memory import COEFFICIENTS, GRANTED, RING, SAMPLED
from dtrain.errors import DtrainError, InputError, WorkerError
from dtrain.monitor.records import EvalRecord
from dtrain.train import coordinator as c
from dtrain.train import events as e
from dtrain.train.alarms import Alarms, tell_nonfinite, tell_where
from dtrain.train.blame import explain_nonfinite
from dtrain.train.checkpoint import Checkpoint, CheckpointStore
from dtrain.train.evaluation import Evaluation
from dtrain.train.generation import Introductions, begin_messages
from dtrain.train.host import FOREVER
from dtrain.train.launcher import Launcher
from dtrain.train.membership import Membership
from dtrain.train.norms import SampledSteps
from dtrain.train.observer import Observer
from dtrain.train.policy import Policy
from dtrain.train.program import Program
from dtrain.train.recorder import Recorder
from dtrain.train.resident import ResidentMemory
from dtrain.train.shard import eval_chunks
from dtrain.train.snapshots import Snapshots
from dtrain.train.stacks import Whereabouts
from dtrain.train.state import RunState

_TICK_SECONDS = 0.02


def max_workers(workers: int) -> int:
    """How many ranks the memory of a run that begins with so many workers has room for on a host."""
    return max(64, workers * 2)


@dataclass(frozen=True)
class RunSettings:
    """How a run is carried out; none of it decides the result. Times in seconds, ``*_every`` in steps.

    ``norms_every`` or else ``norms_seconds`` tells how often norms are sampled (`SampledSteps`).
    """

    workers: int
    checkpoint_every: int = 0
    introspect_every: int = 0
    norms_every: int = 0
    norms_seconds: float = 1.0
    checkpoint_seconds: float = 30.0
    timeout_seconds: float = 5.0
    startup_timeout_seconds: float = 60.0
    spike_factor: float | None = None


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
        self._sampled = SampledSteps(settings.norms_every, settings.norms_seconds)
        self._resident = ResidentMemory()
        self._alarms = Alarms(self._state, self._observer, settings.spike_factor)
        self._snapshots = Snapshots(store, self._observer)
        self._last_eval = self._state.last_eval
        self._coordinator = c.Coordinator(
            Policy(
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
        self._membership = Membership(launcher, self._state.host, settings.timeout_seconds)
        self._hosts = self._membership.hosts
        self._done: dict[int, frozenset[int]] = {}
        self._done_step = -1
        self._at_rest: set[int] = set()
        self._evaluation = Evaluation(eval_chunks(program))
        self._finish: e.Finish | None = None
        self._is_stop_requested = False
        self._wanted: int | None = None
        self._lost_at = 0.0  # when the first worker was lost since the last step, if any was
        self._is_recovering = False

    @property
    def is_running(self) -> bool:
        """Whether the run has not yet come to its end."""
        return self._finish is None

    @property
    def members(self) -> tuple[int, ...]:
        """The workers of the current generation that are alive, in the order of their ranks."""
        return self._membership.present

    def request_stop(self) -> None:
        """Ask for an orderly stop at the end of the step; safe in a signal handler."""
        self._is_stop_requested = True
        self._membership.wake()

    def resize(self, workers: int) -> None:
        """Ask for another number of workers, from the next boundary on; may be called by any thread."""
        self._wanted = workers
        self._membership.wake()

    def run(self) -> Outcome:
        """Train to the end, to a stop or to a failure, and leave nothing behind."""
        start = time.monotonic()
        state = self._state
        sizes = {n: prod(s) for n, s in zip(state.layout.names, state.layout.shapes, strict=True)}
        parameters = {name: sizes[name] for name in state.layout.parameter_names}
        self._observer.started(parameters, self.program.steps, state.first_step, state.sampler.steps_per_epoch)
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
        for worker, message in self._membership.hear(_TICK_SECONDS):
            if message is None:
                self._gone(worker)
            else:
                self._hosts.heard(worker, time.monotonic())
                self._message(worker, message)
            if self._finish is not None:
                return
        self._membership.let_visitors_in()
        if self._is_stop_requested:
            self._is_stop_requested = False
            self._handle(e.StopRequested())
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self._resize(wanted)
        for worker in self._membership.overdue():
            self._gone(worker)
        self._progress()

    def _resize(self, wanted: int) -> None:
        most = self._membership.most
        if not 1 <= wanted <= most:
            text = f"{wanted} workers were asked for; this run can have 1 to {most}"
            self._observer.event("resize_refused", text, workers=wanted)
            return
        self._observer.event("resized", f"{wanted} workers are wanted", workers=wanted)
        self._handle(e.Resized(wanted))

    def _gone(self, worker: int) -> None:
        """A worker's line has ended, or it is given up."""
        if worker in self._hosts.members:  # training does not stand still for one that has yet to begin
            self._lost_at = self._lost_at or time.monotonic()
        self._resident.lost(worker)
        host = self._membership.lose(worker)
        if host is not None:
            self._done.pop(host, None)
        self._observer.event("worker_lost", f"worker {worker} died", worker=worker)
        self._handle(e.Lost(worker, "it died", host))

    def _message(self, worker: int, message: Message) -> None:
        if self._is_resting(message):
            self._at_rest.add(worker)
        match message["type"]:
            case "joined":
                self._joined(worker, message)
            case "progress" if message["generation"] == self._coordinator.generation:
                self._hosts.reported(worker, message)
            case "alive" if message.get("resident") is not None:
                self._resident.told(worker, message["resident"])
            case "meeting" if message["generation"] == self._coordinator.generation:
                self._membership.send(self._introductions.meet(worker, message["address"]))
            case "host_killed":
                self._hosts.killed(worker, message["pid"])
            case "host_stack":
                tell_where(self._observer, message["worker"], Whereabouts(**message["found"]))
            case "link_lost":
                if message["generation"] == self._coordinator.generation and self._coordinator.is_under_way:
                    self._observer.event("link_lost", message["reason"], worker=worker)
                self._handle(e.LinkLost(worker, message["generation"], message["reason"]))
            case "halted":
                self._handle(e.WorkerHalted(worker, message["generation"]))
            case "evaluated" if self._is_awaited(message):
                means = self._evaluation.add(message["sums"])
                if means is not None:
                    self._evaluated(message["step"], means)
                self._handle(e.Evaluated(worker, message["generation"], message["step"]))
            case "nonfinite" if message["generation"] == self._coordinator.generation:
                error = explain_nonfinite(self.program, self.memory, message["step"])
                tell_nonfinite(self._observer, str(error), error.place)
                self._handle(e.Failed(worker, error))
            case "failed":
                self._observer.event("worker_failed", message["error"], worker=worker, stack=message["stack"])
                self._handle(e.Failed(worker, _worker_error(message)))

    def _joined(self, worker: int, message: Message) -> None:
        text = f"worker {worker} joined"
        self._observer.event("worker_joined", text, worker=worker, pid=message["pid"], host=message["host"])
        host = self._membership.joined(worker, message)
        self._resident.joined(worker, message["pid"], is_here=host == 0)
        self._handle(e.Joined(worker, message["numerics"], host))

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
        self._handle(e.Progress(arrivals, waiting, self._hosts.silent(time.monotonic())))

    def _handle(self, event: e.Event) -> None:
        for instruction in self._coordinator.handle(event, time.monotonic()):
            self._do(instruction)

    # --- what the coordinator asks for -------------------------------------------------------------------------------

    def _do(self, instruction: e.Instruction) -> None:
        match instruction:
            case e.Spawn(worker):
                self._membership.start(worker)
            case e.Kill():
                self._kill(instruction)
            case e.Dismiss(worker):
                self._observer.event("worker_dismissed", f"worker {worker} is not wanted any more", worker=worker)
                self._membership.dismiss(worker)
            case e.Halt(generation):
                self._hosts.halt(generation)
                self._membership.send_members({"type": "go"})
            case e.Recover():
                self._handle(self._recover())
            case e.Begin():
                self._begin(instruction)
            case e.Grant(step):
                self._grant(step)
            case e.Evaluate():
                self._membership.send(self._evaluation.begin(instruction))
            case e.Snapshot(step):
                self._snapshot(step)
            case e.Introspect(step):
                self._observer.state(step, self._state.tensors())
            case e.Finish():
                self._finish = instruction

    def _kill(self, kill: e.Kill) -> None:
        """Say who is silent, and where it is; then end it."""
        self._observer.event(
            "worker_silent",
            kill.reason,
            worker=kill.worker,
            rank=kill.rank,
            step=kill.step,
            phase=kill.phase,
            seconds=kill.seconds,
        )
        found = self._membership.whereabouts(kill.worker)
        if found is not None:
            tell_where(self._observer, kill.worker, found)
        try:
            self._membership.kill(kill.worker)
        except WorkerError as error:  # a thread of this process
            where = f"; it is at {found.line}" if found is not None and found.line else ""
            self._handle(e.Failed(kill.worker, WorkerError(f"{error}{where}")))

    def _begin(self, begin: e.Begin) -> None:
        hosts = self._hosts
        hosts.set_members(begin.members)
        self._at_rest = set()
        self._is_recovering = self._lost_at > 0.0
        done = self._done if self._done_step == begin.step else {}
        self._observer.generation(begin.generation, begin.members, self._membership.lost)
        granted = int(self.memory.header[GRANTED])
        hosts.begin(begin.generation, begin.step, begin.step, self._coefficients(begin.step, granted))
        self._introductions = Introductions(hosts, begin.generation)
        self._membership.send(begin_messages(begin, hosts, done, self._launcher.address()))

    def _coefficients(self, first: int, upto: int) -> list[list[float]]:
        """The words of each of these steps: the scalars of the rule, and whether its norms are taken."""
        rule, schedule = self.program.rule, self.program.schedule
        rows = []
        for step in range(first, upto):
            row = [*rule.coefficients(step, schedule.lr(step))]
            row += [0.0] * (COEFFICIENTS - len(row))
            row[SAMPLED] = float(step in self._sampled)
            rows.append(row)
        return rows

    def _grant(self, upto: int) -> None:
        """Compute the coefficients of the granted steps once, for all ranks, then let them run."""
        granted = int(self.memory.header[GRANTED])
        first = max(granted, self._state.first_step)
        self._sampled.choose(first, upto)
        self._hosts.grant(first, self._coefficients(first, upto))
        if granted <= self._coordinator.committed:
            self._membership.send_members({"type": "go"})

    def _recover(self) -> e.Recovered:
        """Record what the halted generation has committed, and mend the step that it was in."""
        committed, self._done = self._hosts.settle()
        self._done_step = committed
        self._record(committed)
        return e.Recovered(committed, self._done)

    def _record(self, committed: int) -> None:
        """Tell the observer of the steps that were committed since the last time."""
        if committed <= self._recorder.next_step:
            return
        phases, resident = self._hosts.take_phases(), self._resident.read()
        records = self._recorder.read(committed, self._hosts.on(0), phases, resident)
        self._observer.steps(records)
        self._alarms.look(records)
        if self._is_recovering:
            seconds = round(time.monotonic() - self._lost_at, 6)
            self._observer.event("recovered", f"a step was committed {seconds:.3f} s after the loss", seconds=seconds)
            self._is_recovering, self._lost_at = False, 0.0
        if records[0].step == self._state.first_step:
            self._observer.event("first_step", f"step {records[0].step} is committed", step=records[0].step)

    def _evaluated(self, step: int, means: dict[str, float]) -> None:
        self._last_eval = means
        metrics = {n: v for n, v in means.items() if n != "loss"}
        self._observer.evaluation(EvalRecord(step, self._state.epoch(step), means["loss"], metrics))

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
            restarts=self._membership.lost,
            error=error,
        )

    def _settle(self) -> int:
        """Bring a failed run's memory to the end of a step, keep it as a checkpoint, and return that step."""
        self._hosts.halt(FOREVER)
        restless = {w for w in self.members if w not in self._at_rest}
        self._membership.listen(restless, self._is_resting)
        for worker in list(restless):
            with suppress(DtrainError):  # a thread of this process cannot be killed
                self._membership.kill(worker)
        # A killed worker is gone, and writes no more, when its line ends.
        self._membership.listen(restless, self._is_resting)
        if restless or not self._hosts.members:
            return self._recorder.next_step
        step = self._recover().committed
        self._snapshot(step)
        return step

    def _close(self) -> None:
        """Let the workers go, kill who does not, and give everything back."""
        self._hosts.halt(FOREVER)
        self._membership.close()
        self._snapshots.wait()
        self._observer.flush()
        self.memory.close()


def _worker_error(message: Message) -> DtrainError:
    """The error of a worker, as the user is to read it."""
    kind: Callable[[str], DtrainError] = InputError if message["exit_code"] == 2 else WorkerError
    return kind(str(message["error"]))
