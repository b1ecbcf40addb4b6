"""A run of the coordinator under a virtual clock: simulated workers that stall, die and join late, and slow messages.

``Simulation(seed).run()`` is a pure function of the seed. The coordinator is the real one; the shell and the workers
are written down once more, on a model of the run's memory in which every write is checked. A block of parameters is the
number of updates that it has had, a gradient is the step that it belongs to. ``Violation`` tells what went wrong.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from dtrain.comm.layout import split_evenly
from dtrain.errors import WorkerError
from dtrain.train import coordinator as c

BLOCKS = 5
GRADIENTS, SUMMED, UPDATED = 1, 2, 3
NUMERICS = {"numpy": "2.4.0"}
LONGEST_SECONDS = 1000.0

Body = Generator[float | Callable[[], Any], Any, None]
"""A worker yields how long it works, or what it waits for: a function that returns None until it is there."""


class Violation(AssertionError):
    """An invariant does not hold."""


class Halted(Exception):
    pass


@dataclass
class Row:
    """What a rank writes about its progress."""

    arrived: int
    beats: int = 0
    waits: int = 0  # for another host
    update_step: int = 0
    blocks_done: int = 0


@dataclass
class SimWorker:
    number: int
    body: Body | None = None
    inbox: list[Any] = field(default_factory=list)
    waits_for: Callable[[], Any] | None = None
    is_alive: bool = True
    is_stalled: bool = False
    is_stuck: bool = False
    woke_at: float = -math.inf
    generation: int = 0  # of which it is an active member; 0: none
    deferred: list[Callable[[], None]] = field(default_factory=list)
    sent_until: float = 0.0
    received_until: float = 0.0


class Simulation:
    """One run. ``make`` makes the coordinator, so that a test can hand in a broken one."""

    def __init__(self, seed: int, make: Callable[[c.Policy], c.Coordinator] = c.Coordinator) -> None:
        self.seed, self.random = seed, random.Random(seed)
        choose = self.random.choice
        first = choose([0, 0, 0, 3])
        self.policy = c.Policy(
            steps=first + self.random.randint(1, 25),
            shards=choose([1, 2, 4, 5, 8]),
            world_size=self.random.randint(1, 5),
            numerics=NUMERICS,
            first_step=first,
            eval_every=choose([0, 1, 4, 7]),
            checkpoint_every=choose([0, 0, 3, 10]),
            checkpoint_seconds=choose([0.0, 0.3, 2.0]),
            introspect_every=(0, 0, 3, 5)[seed % 4],
            startup_timeout_seconds=20.0,
            max_ahead=choose([2, 8, 64]),
            ahead_seconds=choose([0.1, 1.0, 5.0]),
        )
        self.coordinator = make(self.policy)
        self.deaths, self.stalls = choose([0, 1, 3, 6, 12]), choose([0, 0, 1, 3])
        self.hazard = choose([0.003, 0.01, 0.05])
        self.stop_at = self.random.uniform(0, 10) if self.random.random() < 0.2 else math.inf
        self.lost_overtakes = self.random.random() < 0.5
        self.recovers_at_once = self.random.random() < 0.5
        self.now, self._count = 0.0, 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self.workers: dict[int, SimWorker] = {}
        self.finish: c.Finish | None = None
        self.deaths_since_commit = 0
        self.log = hashlib.sha256()
        # The run's memory.
        self.halt = self.generation = 0
        self.granted = first
        self.rows: list[Row] = []
        self.members: tuple[int, ...] = ()
        self.versions, self.half_done = [first] * BLOCKS, set[int]()
        self.gradients, self.total = [-1] * self.policy.shards, [-1] * BLOCKS
        self.shard_done = [0] * self.policy.shards
        self.committed, self.evaluated_step, self.parts = first, -1, set[int]()
        self.statistics = {"begun": 0, "kills": 0, "evaluations": 0, "snapshots": 0, "introspections": 0, "shards": 0}

    def run(self) -> c.Finish:
        """Run to the end; raises Violation."""
        self.at(0.0, lambda: self.handle(c.Started()))
        self.at(0.0, self.tick)
        if self.stop_at < math.inf:
            self.at(self.stop_at, lambda: self.handle(c.StopRequested()))
        while self.finish is None:
            self.check(bool(self._heap) and self.now < LONGEST_SECONDS, f"no end after {self.now:.0f} s")
            time, _, action = heapq.heappop(self._heap)
            self.now = max(self.now, time)
            action()
            self.wake()
        self.check_end(self.finish)
        return self.finish

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(f"seed {self.seed}, {self.now:.3f} s, step {self.coordinator.committed}: {what}")

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, action))

    def delay(self) -> float:
        return self.random.choice([0.0, 0.001, 0.01, 0.1]) * self.random.random()

    # --- the shell ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        arrivals = {w: (self.rows[r].arrived, self.rows[r].beats) for r, w in enumerate(self.members)}
        self.handle(c.Progress(arrivals))
        self.at(self.now + self.random.uniform(0.01, 0.2), self.tick)

    def handle(self, event: c.Event) -> None:
        if self.finish is not None:
            return
        if isinstance(event, c.Evaluated) and event.generation == self.generation:
            self.parts.add(event.worker)
            if self.parts == set(self.members):
                self.evaluated_step = event.step
        instructions = self.coordinator.handle(event, self.now)
        if instructions:
            self.log.update(f"{self.now} {event} {instructions}\n".encode())
        state = self.coordinator
        self.check(self.committed <= state.committed <= state.granted, f"{self.committed=} after {event}: {state}")
        if state.committed > self.committed:
            self.check(min(self.versions) >= state.committed, "a step is committed that was not updated")
            self.committed, self.deaths_since_commit = state.committed, 0
        for instruction in instructions:
            self.do(instruction)

    def do(self, instruction: c.Instruction) -> None:
        match instruction:
            case c.Spawn(number):
                self.check(number not in self.workers, f"worker {number} is started twice")
                worker = self.workers[number] = SimWorker(number)
                worker.body = self.worker(worker)
                self.at(self.now + self.delay(), lambda: self.resume(worker, None))
            case c.Kill(number, reason):
                worker = self.workers[number]
                self.statistics["kills"] += 1
                is_silent = not worker.is_alive or worker.is_stalled or worker.is_stuck or self.now - worker.woke_at < 1
                self.check(is_silent, f"killed though it is at work: {reason}")
                self.at(self.now + self.delay(), lambda: self.die(worker))  # until then it may wake up and write
            case c.Halt(generation):
                self.check(generation == self.generation, "another generation than the present one is halted")
                self.halt = generation
            case c.Recover(generation):
                self.recover(generation)
            case c.Begin():
                self.begin(instruction)
            case c.Grant(step):
                self.check_grant(step)
                self.check_evaluated(is_last=False)
                self.granted = step
            case c.Evaluate(generation, step, members):
                self.check_rest(step)
                self.statistics["evaluations"] += 1
                self.parts = set()
                self.check((generation, members) == (self.generation, self.members), "an old generation evaluates")
                for number in members:
                    self.tell(self.workers[number], instruction)
            case c.Snapshot(step):
                self.check_rest(step)
                self.statistics["snapshots"] += 1
            case c.Introspect(step):
                self.check_rest(step)
                self.statistics["introspections"] += 1
            case c.Finish():
                if instruction.status == "succeeded":
                    self.check_evaluated(is_last=True)
                self.finish = instruction

    def check_rest(self, step: int) -> None:
        self.check(self.versions == [step] * BLOCKS and not self.half_done, f"no rest at step {step}: {self.versions}")

    def check_grant(self, step: int) -> None:
        policy = self.policy
        self.check(self.granted < step <= policy.steps, f"step {step} granted after {self.granted}")
        self.check(step - self.committed <= policy.max_ahead, "a grant beyond the ring of figures")
        for every in filter(None, (policy.eval_every, policy.checkpoint_every, policy.introspect_every)):
            self.check(step <= (self.committed // every + 1) * every, f"step {step} is beyond a multiple of {every}")

    def check_evaluated(self, is_last: bool) -> None:
        every, step = self.policy.eval_every, self.committed
        if every and step == self.granted and (is_last or (step > self.policy.first_step and step % every == 0)):
            self.check(self.evaluated_step == step, f"step {step} is not evaluated to the end")

    def recover(self, generation: int) -> None:
        for number in self.members:
            worker = self.workers[number]
            self.check(not worker.is_alive or worker.generation != generation, f"worker {number} is not halted")
        arrived = min(row.arrived for row in self.rows)
        committed = (arrived + 1) // 4
        if arrived >= 4 * committed + SUMMED:
            for row, (lo, hi) in zip(self.rows, split_evenly(BLOCKS, len(self.rows)), strict=True):
                start = row.blocks_done if row.update_step == committed + 1 else lo
                for block in range(start, hi):
                    self.half_done.discard(block)
                    self.update(block, committed)
            committed += 1
        self.check(not self.half_done, "a block is left half updated")
        done = frozenset(s for s, step in enumerate(self.shard_done) if step == committed + 1)
        event = c.Recovered(committed, {0: done})
        if self.recovers_at_once:
            self.handle(event)
        else:
            self.at(self.now + self.delay(), lambda: self.handle(event))

    def begin(self, begin: c.Begin) -> None:
        policy, step = self.policy, begin.step
        self.statistics["begun"] += 1
        self.check(begin.generation == self.generation + 1, "generations are not counted one by one")
        self.check(step == self.committed, f"a generation begins at step {step}")
        self.check_rest(step)
        missing = [s for s in range(policy.shards) if self.shard_done[s] != step + 1]
        self.check([s for run in begin.first for s in run] == missing, f"{missing=}, but {begin.first} are to run")
        self.check([s for r in begin.runs for s in range(*r)] == list(range(policy.shards)), f"runs {begin.runs}")
        self.check(0 < len(begin.members) <= policy.world_size, f"{len(begin.members)} members")
        self.generation, self.members, self.halt = begin.generation, begin.members, begin.generation - 1
        self.rows = [Row(4 * step) for _ in begin.members]
        for number in begin.members:
            self.tell(self.workers[number], begin)

    def check_end(self, finish: c.Finish) -> None:
        if finish.status == "failed":
            limit = 3 + self.policy.world_size
            self.check(isinstance(finish.error, WorkerError), f"failed: {finish.error!r}")
            self.check(self.deaths_since_commit > limit, f"gave up after {self.deaths_since_commit} deaths")
            return
        self.check_rest(finish.step)
        if finish.status == "stopped":
            self.check(self.stop_at <= self.now, "stopped, but nobody asked for it")
        else:
            self.check((finish.status, finish.step) == ("succeeded", self.policy.steps), f"{finish}")

    # --- messages, death, time ---------------------------------------------------------------------------------------

    def tell(self, worker: SimWorker, message: Any) -> None:
        worker.received_until = max(worker.received_until, self.now + self.delay())
        self.at(worker.received_until, lambda: worker.inbox.append(message))

    def report(self, worker: SimWorker, event: c.Event) -> None:
        worker.sent_until = max(worker.sent_until, self.now + self.delay())
        self.at(worker.sent_until, lambda: self.handle(event))

    def die(self, worker: SimWorker) -> None:
        if not worker.is_alive:
            return
        worker.is_alive, worker.waits_for, worker.body = False, None, None
        time = self.now + self.delay()
        if not self.lost_overtakes:
            time = max(time, worker.sent_until)

        def lost() -> None:
            self.deaths_since_commit += 1
            self.handle(c.Lost(worker.number, "it died"))

        self.at(time, lost)

    def resume(self, worker: SimWorker, value: Any) -> None:
        """Let a worker go on from where it waited or worked, unless it stalls or dies just there."""
        if not worker.is_alive:
            return
        if worker.is_stalled:
            worker.deferred.append(lambda: self.resume(worker, value))
            return
        if self.random.random() < self.hazard:
            if self.deaths > 0 and self.random.random() < 0.7:
                self.deaths -= 1
                self.die(worker)
                others = [w for w in self.workers.values() if w.is_alive and not w.is_stalled]
                if others and self.stalls > 0 and self.random.random() < 0.5:  # what kills one often slows another
                    self.stall(self.random.choice(others))
                return
            if self.stalls > 0:
                self.stall(worker)
                worker.deferred.append(lambda: self.resume(worker, value))
                return
        assert worker.body is not None
        wish = worker.body.send(value)
        if callable(wish):
            worker.waits_for = wish
        elif wish < math.inf:
            self.at(self.now + wish, lambda: self.resume(worker, None))
        else:
            worker.is_stuck = True

    def stall(self, worker: SimWorker) -> None:
        self.stalls -= 1
        worker.is_stalled = True
        seconds = self.random.choice([0.5, 4.0, 30.0, math.inf])
        if seconds < math.inf:
            self.at(self.now + seconds, lambda: self.unstall(worker))

    def unstall(self, worker: SimWorker) -> None:
        worker.is_stalled, worker.woke_at = False, self.now
        deferred, worker.deferred = worker.deferred, []
        for action in deferred:
            action()

    def wake(self) -> None:
        """Let the workers look at what they wait for. What a worker has seen it may act on some time later."""
        for worker in list(self.workers.values()):
            if worker.waits_for is not None and not worker.is_stalled:
                seen = worker.waits_for()
                if seen is not None:
                    worker.waits_for = None
                    self.at(self.now + self.delay(), lambda worker=worker, seen=seen: self.resume(worker, seen))

    # --- a worker ----------------------------------------------------------------------------------------------------

    def work(self) -> float:
        return self.random.choice([0.0, 0.002, 0.02]) * self.random.random()

    def worker(self, me: SimWorker) -> Body:
        is_stuck = self.deaths > 0 and self.random.random() < 0.05
        if is_stuck:
            self.deaths -= 1
        yield math.inf if is_stuck else self.random.choice([0.01, 1.0, 5.0]) * self.random.random()
        self.report(me, c.Joined(me.number, NUMERICS))
        while True:
            message = yield lambda: me.inbox.pop(0) if me.inbox else None
            while isinstance(message, c.Begin):
                me.generation = generation = message.generation
                try:
                    message = yield from self.membership(me, message)
                except Halted:
                    message = None
                    self.report(me, c.WorkerHalted(me.number, generation))
                me.generation = 0

    def membership(self, me: SimWorker, begin: c.Begin) -> Generator[Any, Any, Any]:
        """Run granted steps until a message ends the generation; return that message."""
        generation, rank, step = begin.generation, begin.members.index(me.number), begin.step
        shards: tuple[int, ...] = begin.first[rank]

        def look() -> Any:
            looks = [("go", self.granted > step), ("halt", self.halt >= generation)]
            if self.random.random() < 0.5:  # in its first loop a worker looks at the grant alone
                looks.reverse()
            return next((word for word, is_so in looks if is_so), None) or (me.inbox.pop(0) if me.inbox else None)

        while True:
            seen = yield look
            if seen == "halt" or self.halt >= generation:
                raise Halted
            if seen == "go":
                yield from self.step(generation, rank, len(begin.members), step, shards)
                step, shards = step + 1, tuple(range(*begin.runs[rank]))
            elif isinstance(seen, c.Evaluate):
                for _ in range(self.random.randint(0, 3)):
                    self.check_rest(step)
                    yield self.work()
                    self.check_rest(step)
                    self.rows[rank].beats += self.generation == generation
                    if self.halt >= generation:
                        raise Halted
                self.report(me, c.Evaluated(me.number, generation, seen.step))
            else:
                return seen

    def step(self, generation: int, rank: int, world_size: int, step: int, shards: tuple[int, ...]) -> Body:
        own = split_evenly(BLOCKS, world_size)[rank]
        for shard in shards:
            self.check_rest(step)
            yield self.work()
            self.check_rest(step)
            self.row(generation, rank).beats += 1
            self.gradients[shard], self.shard_done[shard] = step, step + 1
            self.statistics["shards"] += 1
            if self.halt >= generation:
                raise Halted
        yield from self.barrier(generation, rank, 4 * step + GRADIENTS)
        for block in range(*own):
            yield self.work()
            self.row(generation, rank)
            self.check(self.gradients == [step] * len(self.gradients), f"gradients of {self.gradients} are added")
            self.total[block] = step
        yield from self.barrier(generation, rank, 4 * step + SUMMED)
        self.check(self.total == [step] * BLOCKS, f"sums of {self.total} in step {step}")
        row = self.row(generation, rank)
        row.blocks_done, row.update_step = own[0], step + 1
        for block in range(*own):
            self.row(generation, rank)
            self.half_done.add(block)
            yield self.work()
            row = self.row(generation, rank)
            self.half_done.discard(block)
            self.update(block, step)
            row.blocks_done, row.beats = block + 1, row.beats + 1
        yield from self.barrier(generation, rank, 4 * step + UPDATED)

    def row(self, generation: int, rank: int) -> Row:
        """The rank's row, to write to it; only a member of the present generation may write to the run's memory."""
        self.check(generation == self.generation, f"generation {generation} writes in generation {self.generation}")
        return self.rows[rank]

    def update(self, block: int, step: int) -> None:
        self.check(self.versions[block] == step, f"update {step} of block {block}, which has had {self.versions}")
        self.versions[block] += 1

    def barrier(self, generation: int, rank: int, value: int) -> Body:
        self.row(generation, rank).arrived = value

        def look() -> str | None:
            if all(row.arrived >= value for row in self.rows):
                return "all"
            return "halt" if self.halt >= generation else None

        if (yield look) == "halt":
            raise Halted
