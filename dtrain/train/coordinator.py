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
from dtrain.train.events import (
    Begin,
    Dismiss,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Finish,
    Grant,
    Halt,
    Instruction,
    Introspect,
    Joined,
    Kill,
    LinkLost,
    Lost,
    Progress,
    Recover,
    Recovered,
    Resized,
    Snapshot,
    Spawn,
    Started,
    StopRequested,
    WorkerHalted,
)
from dtrain.train.policy import Policy
from dtrain.train.standing import Status, Worker


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
        self._introspected = -1
        self._done: dict[int, frozenset[int]] = {}
        self._world_size = self.policy.world_size
        self._next_worker = 0
        self._losses_without_a_step = 0
        self._longest_step = 0.0
        self._last_commit = 0.0
        self._pace = 0.0  # seconds per step, smoothed
        self._is_disturbed = False
        self._is_stopping = False
        self._owes_snapshot = False
        self._silent: Mapping[int, float] = {}
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
            case Joined(worker, numerics, host):
                self._join(worker, numerics, host, now)
            case Lost(worker, reason, gone):
                if gone is not None:
                    self._done.pop(gone, None)
                self._lose(worker, reason, now)
            case LinkLost(_, generation, reason):
                if generation == self.generation and self.is_under_way and self._is_bearable(reason):
                    self._halt(now)
            case Resized(world_size):
                self._resize(world_size, now)
            case Failed(_, error):
                self._finish("failed", error)
            case WorkerHalted(worker, generation):
                if generation == self.generation and self._is(worker, Status.HALTING):
                    self.workers[worker].status = Status.READY
            case Recovered(committed, done):
                self._commit(committed, now)
                self._done = dict(done)
                self.mode = Mode.FORMING
            case Progress(arrivals, waiting, silent):
                self._silent = silent
                self._progress(arrivals, waiting, now)
            case Evaluated(worker, generation, step):
                if generation == self.generation and step == self.committed and worker in self.workers:
                    self.workers[worker].evaluating = False
            case StopRequested():
                self._is_stopping = True
        self._advance(now)
        return self._out

    @property
    def is_under_way(self) -> bool:
        """Whether the generation goes on; in one that is being halted, lines break because others have stopped."""
        return self.mode in (Mode.RUNNING, Mode.EVALUATING)

    # --- what the events mean ----------------------------------------------------------------------------------------

    def _spawn(self, now: float) -> None:
        self.workers[self._next_worker] = Worker(Status.STARTING, now)
        self._out.append(Spawn(self._next_worker))
        self._next_worker += 1

    def _join(self, worker: int, numerics: Mapping[str, str], host: int, now: float) -> None:
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
            self.workers[worker] = Worker(Status.READY, now, host)

    def _lose(self, worker: int, reason: str, now: float) -> None:
        if worker not in self.workers:
            return
        lost = self.workers.pop(worker)
        if not self._is_bearable(lost.reason or reason):
            return
        if self.policy.can_replace:
            if len(self.workers) < self._world_size:
                self._spawn(now)
        elif any(w.host == 0 for w in self.workers.values()):
            self._owes_snapshot = True  # nobody comes in its place, and the next loss may be the last
        else:
            where = " on the coordinator's host" if self.workers else ""
            self._finish("failed", WorkerError(f"no worker is left{where}, the last one: {lost.reason or reason}"))
            return
        if worker in self.members and self.is_under_way:
            self._halt(now)

    def _is_bearable(self, reason: str) -> bool:
        """Whether the run can go on after one more loss; it ends if nothing is committed between too many."""
        self._losses_without_a_step += 1
        if self._losses_without_a_step <= 3 + self._world_size:
            return True
        self._finish(
            "failed",
            WorkerError(
                f"{self._losses_without_a_step} workers or lines were lost without a step between them, the last one: "
                f"{reason}; see events.jsonl"
            ),
        )
        return False

    def _halt(self, now: float) -> None:
        """Stop all members where they are."""
        self.mode, self._is_disturbed = Mode.HALTING, True
        self._out.append(Halt(self.generation))
        for member in self.members:
            other = self.workers.get(member)
            if other is not None and other.status is Status.ACTIVE:
                other.status, other.since = Status.HALTING, now

    def _resize(self, world_size: int, now: float) -> None:
        """Take in more workers, or let some go at the next boundary."""
        self._world_size = world_size
        for _ in range(world_size - len(self.workers)):
            self._spawn(now)

    def _surplus(self) -> list[int]:
        """The workers that are too many: those that are not there yet first, then the newest.

        One on the coordinator's host stays: there is no generation without it.
        """
        if not any(w.host == 0 and w.status in (Status.READY, Status.ACTIVE) for w in self.workers.values()):
            return []
        count = max(0, len(self.workers) - self._world_size)
        order = sorted(self.workers, key=lambda w: (not self._is(w, Status.STARTING), -w))
        own = [w for w in order if self.workers[w].host == 0 and self._is(w, Status.READY, Status.ACTIVE)]
        return [w for w in order if w not in own[-1:]][:count]

    def _progress(self, arrivals: Mapping[int, tuple[int, int]], waiting: frozenset[int], now: float) -> None:
        before = self._slowest()
        for worker, arrival in arrivals.items():
            known = self.workers.get(worker)
            if known is not None:
                known.is_waiting = worker in waiting
            if known is not None and known.arrival != arrival:
                known.arrival, known.since = arrival, now
        slowest = self._slowest()
        for number, known in self.workers.items():
            is_next = slowest > before and known.status is Status.ACTIVE and known.arrival[0] == slowest
            if is_next or (number in waiting and known.status is Status.STARTING):
                known.since = now  # it could not go on before; now it is waited for
        if self.mode is Mode.RUNNING and arrivals:
            self._commit(min(sequence + 1 for sequence, _ in arrivals.values()) // 4, now)

    def _commit(self, step: int, now: float) -> None:
        count = step - self.committed
        if count <= 0:
            return
        self.committed, self._done = step, {}
        self._losses_without_a_step = 0
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
        for worker in self._surplus():
            del self.workers[worker]
            self._out.append(Dismiss(worker))
        # The ranks of a host are neighbours, so that the shards of a host are: it can add them without the others.
        idle = (w for w in self.workers if self._is(w, Status.READY, Status.ACTIVE))
        ready = tuple(sorted(idle, key=lambda w: (self.workers[w].host, w)))
        if not ready or self.workers[ready[0]].host != 0:  # the coordinator's own memory has to stay up to date
            is_hopeless = ready and not any(self._is(w, Status.STARTING, Status.KILLED) for w in self.workers)
            if is_hopeless and self._is_bearable("no worker is on the coordinator's host"):
                self._spawn(now)
            return
        if self.generation == 0 and any(w.status is Status.STARTING for w in self.workers.values()):
            return
        self.generation += 1
        self.members = ready
        for worker in ready:
            self.workers[worker].status, self.workers[worker].since = Status.ACTIVE, now
            self.workers[worker].arrival, self.workers[worker].evaluating = (-1, -1), False
        there = {self.workers[w].host for w in ready}  # what lies on a host that does not take part is no use
        done = frozenset[int]().union(*(shards for host, shards in self._done.items() if host in there))
        missing = [s for s in range(self.policy.shards) if s not in done]
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
        elif policy.introspect_every and step % policy.introspect_every == 0 and self._introspected < step:
            self._introspected = step
            self._out.append(Introspect(step))
        elif self._snapshot_is_due(now):
            self._snapshot(now)
        elif self._is_changing():
            self._begin(now)
        else:
            for member in self.members:
                self.workers[member].since = now
            self._last_commit = now
            self._grant(now)

    def _grant(self, now: float) -> None:
        """Let the members run on, unless something is to be done at a boundary."""
        policy = self.policy
        if self._is_stopping or self._is_changing():
            return
        # Without a step since the last checkpoint there is nothing to keep, and to wait for it would be for ever.
        is_newer = self.granted > self._snapshot_step
        is_due = policy.checkpoint_seconds and now - self._snapshot_time >= policy.checkpoint_seconds
        if is_newer and (is_due or self._owes_snapshot):
            return
        ahead = 2  # until the length of an undisturbed step is known
        if self._pace > 0.0:
            ahead = max(ahead, min(policy.max_ahead, int(policy.ahead_seconds / self._pace)))
        limit = min(self.committed + ahead, policy.steps)
        for every in (policy.eval_every, policy.checkpoint_every, policy.introspect_every):
            if every:
                limit = min(limit, (self.committed // every + 1) * every)
        if limit > self.granted:
            self.granted = limit
            self._out.append(Grant(limit))

    def _is_changing(self) -> bool:
        """Whether somebody waits to take part, or a member is one too many."""
        return any(w.status is Status.READY for w in self.workers.values()) or not set(self.members).isdisjoint(
            self._surplus()
        )

    def _snapshot_is_due(self, now: float) -> bool:
        policy, step = self.policy, self.committed
        if self._snapshot_step >= step:
            return False
        by_step = policy.checkpoint_every and step % policy.checkpoint_every == 0
        by_time = policy.checkpoint_seconds and now - self._snapshot_time >= policy.checkpoint_seconds
        return bool(by_step or by_time or self._owes_snapshot)

    def _snapshot(self, now: float) -> None:
        self._snapshot_step, self._snapshot_time, self._owes_snapshot = self.committed, now, False
        self._out.append(Snapshot(self.committed))

    def _watch(self, now: float) -> None:
        """Kill who has been silent for longer than its deadline; only the slowest can be to blame."""
        slowest = self._slowest()
        awaited = {n for n, w in self.workers.items() if self._is_waited_for(w, slowest)}
        for number, worker in self.workers.items():
            speaker = self._silent_speaker(number)
            if speaker is not None:  # nothing is known of this one, and what it is told may not reach it
                worker.since = now
                if number in awaited and self._silent[speaker] > self._limit(speaker)[0]:
                    self._blame(speaker, self._silent[speaker])
            elif number in awaited and now - worker.since > self._limit(number)[0]:
                self._blame(number, now - worker.since)
        self._watch_lines(slowest, now)

    def _slowest(self) -> int:
        return min((self.workers[m].arrival[0] for m in self.members if m in self.workers), default=0)

    def _is_waited_for(self, worker: Worker, slowest: int) -> bool:
        if worker.status is not Status.ACTIVE:
            return worker.status in (Status.STARTING, Status.HALTING)
        return self._is_behind(worker, slowest) and not worker.is_waiting

    def _is_behind(self, worker: Worker, slowest: int) -> bool:
        """Whether a member has something to do that the others wait for; perhaps it waits for another host itself."""
        if self.mode is Mode.EVALUATING:
            return worker.evaluating
        return self.mode is Mode.RUNNING and self.committed < self.granted and worker.arrival[0] == slowest

    def _silent_speaker(self, number: int) -> int | None:
        """Who is to tell of a worker that is alive, but says nothing itself."""
        host = self.workers[number].host
        if not host or number in self._silent:
            return None
        speaker = next((m for m in self.members if m in self.workers and self.workers[m].host == host), None)
        return speaker if speaker in self._silent else None

    def _limit(self, number: int) -> tuple[float, str]:
        """How many seconds a worker may be silent, and the setting that says so."""
        policy = self.policy
        if self.workers[number].has_stepped:
            return policy.timeout_seconds + self._longest_step, f"timeout_seconds (now {policy.timeout_seconds:g})"
        return policy.startup_timeout_seconds, f"startup_timeout_seconds (now {policy.startup_timeout_seconds:g})"

    def _blame(self, number: int, seconds: float) -> None:
        worker = self.workers[number]
        if worker.status is Status.KILLED:
            return
        rank = self.members.index(number) if number in self.members else None
        doing = "while it started"
        if worker.status is not Status.STARTING:
            doing = f"at step {self.committed}, in the phase {worker.phase}"
        worker.reason = (
            f"worker {number}{'' if rank is None else f' (rank {rank})'} was silent for {seconds:.1f} s {doing}; it is "
            f"{'replaced' if self.policy.can_replace else 'ended'}. If it was only slow, raise {self._limit(number)[1]}"
        )
        told = Kill(number, worker.reason, rank, self.committed, worker.phase, round(seconds, 3))
        worker.status = Status.KILLED
        self._out.append(told)

    def _watch_lines(self, slowest: int, now: float) -> None:
        """End a generation in which all that are behind are alive and wait for each other: a line says nothing more."""
        present = [self.workers[m] for m in self.members if m in self.workers]
        behind = [w for w in present if self._is_behind(w, slowest)]
        limit = self.policy.timeout_seconds + self._longest_step
        if behind and all(w.is_waiting and now - w.since > limit for w in behind):
            reason = (
                f"the hosts of {len(behind)} workers did not hear each other for {limit:.1f} s at step "
                f"{self.committed}; look at the network between them, or raise timeout_seconds (now "
                f"{self.policy.timeout_seconds:g})"
            )
            if self._is_bearable(reason):
                self._halt(now)
