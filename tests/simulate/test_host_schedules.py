"""Random schedules on two and three hosts. A failure prints its seed; ``HostsSimulation(seed).run()`` replays it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dtrain.train import coordinator as c
from dtrain.train.hosts import Hosts
from tests.simulate.several_hosts import HostsSimulation
from tests.simulate.simulator import Violation

CHUNK = 50


@pytest.mark.parametrize("first", range(0, 250, CHUNK))
def test_every_schedule_gives_the_undisturbed_result(first: int) -> None:
    """Each step is committed once, in order, and every rest has the parameters of a run that nothing happened to."""
    for seed in range(first, first + CHUNK):
        HostsSimulation(seed).run()


def test_the_schedules_reach_what_they_are_for() -> None:
    total: Counter[str] = Counter()
    for seed in range(150):
        simulation = HostsSimulation(seed)
        total[simulation.run().status] += 1
        hosts = simulation.statistics.pop("hosts")
        total.update(simulation.statistics)
        total[f"{hosts} hosts"] += 1
    assert total["succeeded"] > 100
    assert total["begun"] > 400
    assert min(total["2 hosts"], total["3 hosts"]) > 15
    assert min(total[w] for w in ("kills", "host_losses", "link_losses", "resizes", "given_up", "late")) > 20


def test_a_seed_replays_exactly() -> None:
    digests = set()
    for seed in range(15):
        first, second = HostsSimulation(seed), HostsSimulation(seed)
        assert first.run() == second.run()
        assert first.log.digest() == second.log.digest()
        assert first.now == second.now
        digests.add(first.log.digest())
    assert len(digests) == 15


# --- the simulator finds what is broken -----------------------------------------------------------------------------


class TakesWhatIsElsewhere(c.Coordinator):
    """Counts gradients as done that lie on a host that does not take part."""

    def _begin(self, now: float) -> None:
        kept = self._done
        if kept:
            self._done = {0: frozenset[int]().union(*kept.values())}
        super()._begin(now)


class BlamesTheNeighboursOfTheSilent(c.Coordinator):
    def _silent_speaker(self, number: int) -> int | None:
        return None


class BlamesThoseWhoCouldNotGoOn(c.Coordinator):
    """Counts a member's silence from before it was waited for."""

    def _progress(self, arrivals: Mapping[int, tuple[int, int]], waiting: frozenset[int], now: float) -> None:
        since = {n: w.since for n, w in self.workers.items()}
        moved = {n for n, w in self.workers.items() if n in arrivals and arrivals[n] != w.arrival}
        super()._progress(arrivals, waiting, now)
        for number, worker in self.workers.items():
            if number not in moved:
                worker.since = since[number]


class WaitsForNobody(c.Coordinator):
    """Waits for ever where all workers are on other hosts."""

    def _is_bearable(self, reason: str) -> bool:
        return "coordinator's host" not in reason and super()._is_bearable(reason)


class HearsNoLines(c.Coordinator):
    def _watch_lines(self, slowest: int, now: float) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "words", "first"),
    [
        (TakesWhatIsElsewhere, "shard", 200),
        (BlamesTheNeighboursOfTheSilent, "killed though it is at work", 160),
        (BlamesThoseWhoCouldNotGoOn, "killed though it is at work", 1360),
        (WaitsForNobody, "no end", 100),
        (HearsNoLines, "no end", 0),
    ],
)
def test_a_broken_coordinator_is_found(make: Callable[[c.Policy], c.Coordinator], words: str, first: int) -> None:
    with pytest.raises(Violation, match=words):  # noqa: PT012
        for seed in range(first, first + 500):
            HostsSimulation(seed, make).run()


def test_a_killed_worker_that_may_still_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was to end it is silent itself."""
    monkeypatch.setattr(Hosts, "_end_condemned", lambda self, host, channel: None)
    with pytest.raises(Violation):  # noqa: PT012
        for seed in range(2750, 4000):
            HostsSimulation(seed).run()


def test_a_commit_without_the_whole_sum_of_every_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settle: Any = Hosts.settle

    def settled(self: Hosts) -> Any:
        step, _ = settle(self)
        return step + 1, {}

    monkeypatch.setattr(Hosts, "settle", settled)
    with pytest.raises((Violation, IndexError)):  # noqa: PT012
        for seed in range(20):
            HostsSimulation(seed).run()
