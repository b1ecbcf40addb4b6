"""Random schedules of the coordinator. A failure prints its seed; ``Simulation(seed).run()`` replays it exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dtrain.train import coordinator as c
from tests.simulate.simulator import Simulation, Violation

CHUNK = 50


@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_invariants_hold_in_every_schedule(first: int) -> None:
    for seed in range(first, first + CHUNK):
        Simulation(seed).run()


def test_the_schedules_reach_what_they_are_for() -> None:
    total: Counter[str] = Counter()
    for seed in range(100):
        simulation = Simulation(seed)
        finish = simulation.run()
        total.update(simulation.statistics)
        total[finish.status] += 1
        total["repeated"] += simulation.statistics["shards"] > simulation.policy.shards * finish.step
    assert total["succeeded"] > 60
    assert total["stopped"] > 5
    assert total["begun"] > 250
    assert min(total[what] for what in ("kills", "evaluations", "snapshots", "introspections")) > 20


def test_a_seed_replays_exactly() -> None:
    digests = set()
    for seed in range(20):
        first, second = Simulation(seed), Simulation(seed)
        assert first.run() == second.run()
        assert first.log.digest() == second.log.digest()
        assert first.now == second.now
        digests.add(first.log.digest())
    assert len(digests) == 20


# --- the simulator finds broken coordinators ------------------------------------------------------------------------


class ForgetsDoneShards(c.Coordinator):
    def handle(self, event: c.Event, now: float) -> list[c.Instruction]:
        if isinstance(event, c.Recovered):
            event = c.Recovered(event.committed, {})
        return super().handle(event, now)


class BelievesOldWords(c.Coordinator):
    """Takes a member for halted whatever generation it speaks of."""

    def handle(self, event: c.Event, now: float) -> list[c.Instruction]:
        if isinstance(event, c.WorkerHalted):
            event = c.WorkerHalted(event.worker, self.generation)
        return super().handle(event, now)


class DoesNotWaitForTheKilled(c.Coordinator):
    def _is(self, worker: int, *statuses: c.Status) -> bool:
        return super()._is(worker, *(s for s in statuses if s is not c.Status.KILLED))


class DoesNotWaitForTheHalting(c.Coordinator):
    def _is(self, worker: int, *statuses: c.Status) -> bool:
        return super()._is(worker, *(s for s in statuses if s is not c.Status.HALTING))


class CommitsByTheFastest(c.Coordinator):
    def _progress(self, arrivals: Any, waiting: Any, now: float) -> None:
        super()._progress(arrivals, waiting, now)
        if self.mode is c.Mode.RUNNING and arrivals:
            self._commit(max(sequence + 1 for sequence, _ in arrivals.values()) // 4, now)


class BlamesThoseWhoWait(c.Coordinator):
    """Takes all members for equally slow."""

    def _watch(self, now: float) -> None:
        arrivals = [(w, w.arrival) for w in map(self.workers.get, self.members) if w is not None]
        for worker, _ in arrivals:
            worker.arrival = (0, 0)
        super()._watch(now)
        for worker, arrival in arrivals:
            worker.arrival = arrival


class TakesAnEvaluationForDone(c.Coordinator):
    """Does not evaluate again when a member dies during an evaluation."""

    def _lose(self, worker: int, reason: str, now: float) -> None:
        if self.mode is c.Mode.EVALUATING:
            self._evaluated = self.committed
        super()._lose(worker, reason, now)


class GivesUpAtOnce(c.Coordinator):
    def _lose(self, worker: int, reason: str, now: float) -> None:
        self._losses_without_a_step += 3
        super()._lose(worker, reason, now)


class GrantsTooFar(c.Coordinator):
    def _grant(self, now: float) -> None:
        before = self.granted
        super()._grant(now)
        if self.granted > before and self.granted + 1 <= self.policy.steps:
            self.granted += 1
            self._out[-1] = c.Grant(self.granted)


class NeverLetsReplacementsIn(c.Coordinator):
    def _at_boundary(self, now: float) -> None:
        if self.committed < self.policy.steps and any(w.status is c.Status.READY for w in self.workers.values()):
            return
        super()._at_boundary(now)


class WaitsForACheckpointOfNothing(c.Coordinator):
    """Grants nothing while the seconds between checkpoints are over, also where no step has been run since."""

    def _grant(self, now: float) -> None:
        every = self.policy.checkpoint_seconds
        if not (every and now - self._snapshot_time >= every):
            super()._grant(now)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (ForgetsDoneShards, "missing="),
        (BelievesOldWords, "is not halted"),
        (DoesNotWaitForTheKilled, "is not halted"),
        (DoesNotWaitForTheHalting, "is not halted"),
        (CommitsByTheFastest, "was not updated"),
        (BlamesThoseWhoWait, "killed though it is at work"),
        (TakesAnEvaluationForDone, "is not evaluated"),
        (GivesUpAtOnce, "gave up"),
        (GrantsTooFar, "beyond"),
        (NeverLetsReplacementsIn, "no end"),
        (WaitsForACheckpointOfNothing, "no end"),
    ],
)
def test_a_broken_coordinator_is_found(make: Callable[[c.Policy], c.Coordinator], words: str) -> None:
    with pytest.raises(Violation, match=words):  # noqa: PT012
        for seed in range(300):
            Simulation(seed, make).run()
