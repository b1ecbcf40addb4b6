"""The coordinator: who takes part, what may run, and what happens when somebody dies. A state machine without I/O.

Events go in, instructions come out, and time is an argument; the shell (`service.py`) does what the instructions say.
A worker is known by a number that is never used again; in one *generation* the members hold ranks 0..W-1. Steps are
*granted*: the members run every step below ``granted`` by themselves, so the coordinator is not on the path of a step.

The invariants: ``committed <= granted``; nothing happens to membership, parameters or files unless every member is idle
(``committed == granted``) or halted; a step is committed once, whatever dies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from dtrain.comm.layout import split_evenly
from dtrain.errors import DtrainError, NumericsError, WorkerError

# --- events: what the shell has seen ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The run begins."""


@dataclass(frozen=True)
class Joined:
    """A worker is up and has said in which numerics class it computes."""

    worker: int
    numerics: Mapping[str, str]


@dataclass(frozen=True)
class Lost:
    """A worker's connection is gone: it died, or it was killed."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """A worker reports an error of the job itself: the model, the data, a value that is not finite."""

    worker: int
    error: DtrainError


@dataclass(frozen=True)
class WorkerHalted:
    """A member has stopped inside a step, as it was told to."""

    worker: int
    generation: int


@dataclass(frozen=True)
class Recovered:
    """The shell has read how far the halted generation had come, and has completed an update if one was decided.

    ``done`` are the shards whose gradients for step ``committed`` exist already.
    """

    committed: int
    done: frozenset[int]


@dataclass(frozen=True)
class Progress:
    """How far each member is: a number that grows with every step and phase, and one that grows with any work."""

    arrivals: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Evaluated:
    """A member has finished its part of an evaluation."""

    worker: int
    generation: int
    step: int


@dataclass(frozen=True)
class StopRequested:
    """A signal or a user asks to stop at the end of the step."""


Event = Started | Joined | Lost | Failed | WorkerHalted | Recovered | Progress | Evaluated | StopRequested

# --- instructions: what the shell is to do ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Spawn:
    """Start a process that will join as this worker."""

    worker: int


@dataclass(frozen=True)
class Kill:
    """End a worker for certain, and wait until it is gone: it may not write into the run's memory any more."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Halt:
    """Make every member of the generation stop where it is."""

    generation: int


@dataclass(frozen=True)
class Recover:
    """All members of the generation are halted or dead: find out how far it came, then report Recovered."""

    generation: int


@dataclass(frozen=True)
class Begin:
    """Start a generation at ``step``. Rank r runs ``first[r]`` in that step, the shards ``runs[r]`` later."""

    generation: int
    step: int
    members: tuple[int, ...]
    first: tuple[tuple[int, ...], ...]
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Grant:
    """Allow all steps below ``step``."""

    step: int


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the parameters after ``step`` steps on the held-out data."""

    generation: int
    step: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """Keep the state after ``step`` steps. The shell copies it at once and writes it in the background."""

    step: int


@dataclass(frozen=True)
class Finish:
    """The run is over: status as in Ray's words, and the error if it failed."""

    status: str
    step: int
    error: DtrainError | None = None


Instruction = Spawn | Kill | Halt | Recover | Begin | Grant | Evaluate | Snapshot | Finish


@dataclass(frozen=True)
class Policy:
    """The settings of a run that the coordinator needs. Times are in seconds; ``*_every`` are steps, 0 means never."""

    steps: int
    shards: int
    world_size: int
    numerics: Mapping[str, str]
    first_step: int = 0
    eval_every: int = 0
    checkpoint_every: int = 0
    checkpoint_seconds: float = 0.0
    timeout_seconds: float = 5.0
    startup_timeout_seconds: float = 60.0
    max_ahead: int = 64
    ahead_seconds: float = 0.1


class Status(Enum):
    STARTING = "starting"
    READY = "ready"  # joined, in no generation
    ACTIVE = "active"
    HALTING = "halting"
    KILLED = "killed"  # told to die, not yet gone


@dataclass
class Worker:
    status: Status
    since: float
    arrival: tuple[int, int] = (-1, -1)
    has_stepped: bool = False
    evaluating: bool = False
    reason: str = ""


class Mode(Enum):
    FORMING = "forming"
    RUNNING = "running"
    EVALUATING = "evaluating"
    HALTING = "halting"
    RECOVERING = "recovering"
    FINISHED = "finished"


@dataclass
class Coordinator:
    """Feed it events with ``handle(event, now)``; do what it returns, in that order."""

    policy: Policy
    generation: int = 0
    committed: int = 0
    granted: int = 0
    mode: Mode = Mode.FORMING
    workers: dict[int, Worker] = field(default_factory=dict)
    members: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.committed = self.granted = self.policy.first_step
        # A run that is resumed after its last step still owes the evaluation.
        self._evaluated = -1 if self.policy.first_step == self.policy.steps else self.policy.first_step
        self._snapshot_step = self.policy.first_step
        self._snapshot_time = 0.0
        self._done: frozenset[int] = frozenset()
        self._next_worker = 0
        self._deaths_without_a_step = 0
        self._longest_step = 0.0
        self._last_commit = 0.0
        self._pace = 0.0  # seconds per step, smoothed
        self._is_disturbed = False
        self._is_stopping = False
        self._out: list[Instruction] = []

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in one event at time ``now`` (seconds, monotonic) and return what is to be done."""
        self._out = []
        if self.mode is Mode.FINISHED:
            return self._out
        match event:
            case Started():
                self._snapshot_time = now
                for _ in range(self.policy.world_size):
                    self._spawn(now)
            case Joined(worker, numerics):
                self._join(worker, numerics, now)
            case Lost(worker, reason):
                self._lose(worker, reason, now)
            case Failed(_, error):
                self._finish("failed", error)
            case WorkerHalted(worker, generation):
                if generation == self.generation and self._is(worker, Status.HALTING):
                    self.workers[worker].status = Status.READY
            case Recovered(committed, done):
                self._commit(committed, now)
                self._done = done
                self.mode = Mode.FORMING
            case Progress(arrivals):
                self._progress(arrivals, now)
            case Evaluated(worker, generation, step):
                if generation == self.generation and step == self.committed and worker in self.workers:
                    self.workers[worker].evaluating = False
            case StopRequested():
                self._is_stopping = True
        self._advance(now)
        return self._out

    # --- what the events mean ----------------------------------------------------------------------------------------

    def _spawn(self, now: float) -> None:
        self.workers[self._next_worker] = Worker(Status.STARTING, now)
        self._out.append(Spawn(self._next_worker))
        self._next_worker += 1

    def _join(self, worker: int, numerics: Mapping[str, str], now: float) -> None:
        if not self._is(worker, Status.STARTING):  # it died or is told to die, and its word comes late
            return
        expected = self.policy.numerics
        different = [k for k in sorted({*expected, *numerics}) if expected.get(k) != numerics.get(k)]
        if different:
            name = different[0]
            self._finish(
                "failed",
                NumericsError(
                    f"worker {worker} computes in another numerics class: {name} is {numerics.get(name)!r}, the "
                    f"job's is {expected.get(name)!r}; its bits would differ. Give all workers the same "
                    "NumPy, BLAS and number of threads"
                ),
            )
        else:
            self.workers[worker] = Worker(Status.READY, now)

    def _lose(self, worker: int, reason: str, now: float) -> None:
        if worker not in self.workers:
            return
        lost = self.workers.pop(worker)
        self._deaths_without_a_step += 1
        if self._deaths_without_a_step > 3 + self.policy.world_size:
            self._finish(
                "failed",
                WorkerError(
                    f"{self._deaths_without_a_step} workers died without a step between them, the last one: "
                    f"{lost.reason or reason}; see events.jsonl"
                ),
            )
            return
        self._spawn(now)
        if worker in self.members and self.mode in (Mode.RUNNING, Mode.EVALUATING):
            self.mode, self._is_disturbed = Mode.HALTING, True
            self._out.append(Halt(self.generation))
            for member in self.members:
                other = self.workers.get(member)
                if other is not None and other.status is Status.ACTIVE:
                    other.status, other.since = Status.HALTING, now

    def _progress(self, arrivals: Mapping[int, tuple[int, int]], now: float) -> None:
        for worker, arrival in arrivals.items():
            known = self.workers.get(worker)
            if known is not None and known.arrival != arrival:
                known.arrival, known.since = arrival, now
        if self.mode is Mode.RUNNING and arrivals:
            self._commit(min(sequence + 1 for sequence, _ in arrivals.values()) // 4, now)

    def _commit(self, step: int, now: float) -> None:
        count = step - self.committed
        if count <= 0:
            return
        self.committed, self._done = step, frozenset()
        self._deaths_without_a_step = 0
        seconds = (now - self._last_commit) / count
        self._last_commit = now
        if not self._is_disturbed:  # the step that a dead worker delayed says nothing about the length of a step
            self._longest_step = max(self._longest_step, seconds)
            self._pace = seconds if self._pace == 0.0 else 0.7 * self._pace + 0.3 * seconds
        self._is_disturbed = False
        for member in self.members:
            if member in self.workers:
                self.workers[member].has_stepped = True

    def _finish(self, status: str, error: DtrainError | None = None) -> None:
        self.mode = Mode.FINISHED
        self._out.append(Finish(status, self.committed, error))

    # --- what comes next ---------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Do everything that is due, until something has to be waited for."""
        before = -1
        while len(self._out) != before and self.mode is not Mode.FINISHED:
            before = len(self._out)
            if self.mode is Mode.HALTING:
                if not any(self._is(m, Status.HALTING, Status.KILLED) for m in self.members):
                    self.mode = Mode.RECOVERING
                    self._out.append(Recover(self.generation))
            elif self.mode is Mode.FORMING and self._is_stopping and self.generation == 0:
                self._finish("stopped")
            elif self.mode is Mode.FORMING:
                self._begin(now)
            elif self.mode is Mode.EVALUATING:
                if not any(self.workers[m].evaluating for m in self.members if m in self.workers):
                    self._evaluated = self.committed
                    self.mode = Mode.RUNNING
                    before = -1
            elif self.mode is Mode.RUNNING:
                if self.committed == self.granted:
                    self._at_boundary(now)
                else:
                    self._grant(now)
        if self.mode is not Mode.FINISHED:
            self._watch(now)

    def _is(self, worker: int, *statuses: Status) -> bool:
        return worker in self.workers and self.workers[worker].status in statuses

    def _begin(self, now: float) -> None:
        """Begin a generation with everybody who is there; at the very start, wait until all are."""
        ready = tuple(w for w in sorted(self.workers) if self._is(w, Status.READY, Status.ACTIVE))
        if not ready or (self.generation == 0 and any(w.status is Status.STARTING for w in self.workers.values())):
            return
        self.generation += 1
        self.members = ready
        for worker in ready:
            self.workers[worker].status, self.workers[worker].since = Status.ACTIVE, now
            self.workers[worker].arrival, self.workers[worker].evaluating = (-1, -1), False
        missing = [s for s in range(self.policy.shards) if s not in self._done]
        first = tuple(tuple(missing[lo:hi]) for lo, hi in split_evenly(len(missing), len(ready)))
        runs = tuple(split_evenly(self.policy.shards, len(ready)))
        self._last_commit = now
        self.mode = Mode.RUNNING
        self._out.append(Begin(self.generation, self.committed, ready, first, runs))

    def _at_boundary(self, now: float) -> None:
        """All members are idle after ``committed`` steps: do the first thing that is due."""
        policy, step = self.policy, self.committed
        is_last = step >= policy.steps
        if self._is_stopping and not is_last:
            self._snapshot(now)
            self._finish("stopped")
        elif policy.eval_every and self._evaluated < step and (is_last or step % policy.eval_every == 0):
            self.mode = Mode.EVALUATING
            for member in self.members:
                self.workers[member].evaluating, self.workers[member].since = True, now
            self._out.append(Evaluate(self.generation, step, self.members))
        elif is_last:
            self._snapshot(now)
            self._finish("succeeded")
        elif self._snapshot_is_due(now):
            self._snapshot(now)
        elif any(w.status is Status.READY for w in self.workers.values()):
            self._begin(now)
        else:
            for member in self.members:
                self.workers[member].since = now
            self._last_commit = now
            self._grant(now)

    def _grant(self, now: float) -> None:
        """Let the members run on, unless something is to be done at a boundary."""
        policy = self.policy
        if self._is_stopping or any(w.status is Status.READY for w in self.workers.values()):
            return
        # Without a step since the last checkpoint there is nothing to keep, and to wait for it would be for ever.
        is_newer = self.granted > self._snapshot_step
        if is_newer and policy.checkpoint_seconds and now - self._snapshot_time >= policy.checkpoint_seconds:
            return
        ahead = policy.max_ahead
        if self._pace > 0.0:
            ahead = max(2, min(ahead, int(policy.ahead_seconds / self._pace)))
        elif self.committed == policy.first_step:
            ahead = 2
        limit = min(self.committed + ahead, policy.steps)
        for every in (policy.eval_every, policy.checkpoint_every):
            if every:
                limit = min(limit, (self.committed // every + 1) * every)
        if limit > self.granted:
            self.granted = limit
            self._out.append(Grant(limit))

    def _snapshot_is_due(self, now: float) -> bool:
        policy, step = self.policy, self.committed
        if self._snapshot_step >= step:
            return False
        by_step = policy.checkpoint_every and step % policy.checkpoint_every == 0
        by_time = policy.checkpoint_seconds and now - self._snapshot_time >= policy.checkpoint_seconds
        return bool(by_step or by_time)

    def _snapshot(self, now: float) -> None:
        self._snapshot_step, self._snapshot_time = self.committed, now
        self._out.append(Snapshot(self.committed))

    def _watch(self, now: float) -> None:
        """Kill who has been silent for longer than its deadline; only the slowest can be to blame."""
        policy = self.policy
        slowest = min((self.workers[m].arrival[0] for m in self.members if m in self.workers), default=0)
        for number, worker in self.workers.items():
            limit = policy.startup_timeout_seconds
            setting = f"startup_timeout_seconds (now {limit:g})"
            if worker.has_stepped:
                limit = policy.timeout_seconds + self._longest_step
                setting = f"timeout_seconds (now {policy.timeout_seconds:g})"
            if worker.status is Status.ACTIVE:
                is_waited_for = (self.mode is Mode.EVALUATING and worker.evaluating) or (
                    self.mode is Mode.RUNNING and self.committed < self.granted and worker.arrival[0] == slowest
                )
            else:
                is_waited_for = worker.status in (Status.STARTING, Status.HALTING)
            if is_waited_for and now - worker.since > limit:
                doing = "while it started" if worker.status is Status.STARTING else f"at step {self.committed}"
                worker.reason = (
                    f"worker {number} was silent for {now - worker.since:.1f} s {doing}; it is replaced. "
                    f"If it was only slow, raise {setting}"
                )
                worker.status = Status.KILLED
                self._out.append(Kill(number, worker.reason))
