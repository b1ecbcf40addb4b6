"""Workers and whole hosts that come, go, stop and die in the middle of a run: the result has the same bits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dtrain.jobs.spec import JobSpec
from dtrain.monitor.records import EvalRecord
from dtrain.train.observer import Observer
from dtrain.train.service import Outcome, Service
from tests.faults.hosts import HostsLauncher, service_on
from tests.support import braked_model, nothing_left_behind, spec_of, train

Act = Callable[["Actor"], None]


def job() -> JobSpec:
    """A job that lasts as long as its brake is there."""
    return spec_of(
        model={"entry": "my_model.py"},
        optimizer={"name": "momentum", "lr": 0.01},
        epochs=None,
        steps=400,
        eval={"every": 20},
    )


class Actor(Observer):
    """Does one thing after the other, each when all workers are there that should be; then releases the brake."""

    def __init__(self, brake: Path, workers: int, acts: Sequence[Act]) -> None:
        self.brake, self.workers, self.acts = brake, workers, list(acts)
        self.events: list[tuple[str, str]] = []
        self.sizes: list[int] = []
        self.stopped: int
        self.service: Service
        self.launcher: HostsLauncher

    def evaluation(self, record: EvalRecord) -> None:
        if len(self.service.members) != self.workers:
            return
        if self.acts:
            self.acts.pop(0)(self)
        else:
            self.brake.unlink(missing_ok=True)

    def generation(self, generation: int, members: tuple[int, ...], restarts: int) -> None:
        self.sizes.append(len(members))

    def event(self, kind: str, text: str, **details: Any) -> None:
        self.events.append((kind, text))

    def of(self, kind: str) -> list[str]:
        return [text for k, text in self.events if k == kind]


@pytest.fixture
def brake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "brake"
    (tmp_path / "my_model.py").write_text(braked_model(made))
    return made


def run(brake: Path, where: list[int], *acts: Act, timeout_seconds: float = 20.0) -> tuple[Outcome, Actor]:
    """Run the job on these hosts while all that is done to it, and compare it with an undisturbed run."""
    seen = Actor(brake, len(where), acts)
    with nothing_left_behind():
        seen.service, seen.launcher = service_on(job(), where, seen, timeout_seconds)
        outcome = seen.service.run()
    assert not seen.acts, "the run was over before all was done to it"
    alone = train(job(), 0)
    assert outcome.status == "succeeded", outcome.error
    assert outcome.fingerprint == alone.fingerprint
    assert outcome.chain == alone.chain
    return outcome, seen


def kill(*hosts_and_indexes: tuple[int, int]) -> Act:
    """Kill the n-th worker of a host, of all these at once."""

    def act(seen: Actor) -> None:
        for worker in [seen.launcher.on(host)[index] for host, index in hosts_and_indexes]:
            seen.launcher.signal(worker)

    return act


def stop(host: int, index: int) -> Act:
    def act(seen: Actor) -> None:
        seen.stopped = seen.launcher.on(host)[index]
        seen.launcher.signal(seen.stopped, signal.SIGSTOP)

    return act


def resize(workers: int) -> Act:
    def act(seen: Actor) -> None:
        seen.workers = workers
        seen.service.resize(workers)

    return act


def test_hosts_make_the_bits_of_one_process(brake: Path) -> None:
    outcome, seen = run(brake, [0, 1, 1, 2])
    assert outcome.restarts == 0
    assert seen.of("link_lost") == []


@pytest.mark.parametrize(
    ("where", "acts"),
    [
        ([0, 1, 1], [kill((1, 0)), kill((1, 1))]),
        ([0, 1, 1], [kill((1, 0), (1, 1)), kill((0, 0), (1, 0))]),
        ([0, 1, 2], [kill((0, 0)), kill((1, 0))]),
    ],
    ids=["one of a host", "a whole host", "the only one of a host"],
)
def test_deaths_change_no_bit(brake: Path, where: list[int], acts: list[Act]) -> None:
    outcome, _ = run(brake, where, *acts)
    assert outcome.restarts >= len(acts)


@pytest.mark.slow
def test_deaths_change_no_bit_of_a_table(brake: Path) -> None:
    """The rows that the hosts have told each other are sent again, and rows that are kept are kept where they are."""
    model = Path("my_model.py")
    text = model.read_text().replace("0.01}", '0.01, "rows": table(rng.standard_normal((17, 10)) * 0.1)}')
    changed = text.replace(
        '@ params["w"]', '@ params["w"] + np.sum(params["rows"][(batch["x"] * 16).astype(np.int64)], axis=1)'
    )
    model.write_text("from dtrain.nn import table\n" + changed)
    assert changed.count("rows") == 2
    outcome, _ = run(brake, [0, 1, 1], kill((1, 0)), kill((0, 0), (1, 1)))
    assert outcome.restarts >= 2


@pytest.mark.parametrize("index", [0, 1], ids=["first", "second"])
def test_a_stopped_rank_of_another_host_is_blamed_alone(brake: Path, index: int) -> None:
    """If it is the first, it is the one that tells how far the others there are, and passes on what they wait for."""
    outcome, seen = run(brake, [0, 1, 1, 1], stop(1, index), timeout_seconds=2.0)
    (text,) = seen.of("worker_silent")
    assert text.startswith(f"worker {seen.stopped} (rank ")
    (where,) = seen.of("worker_stack")  # one beside it has looked
    assert where.startswith(f"worker {seen.stopped} is stopped")
    assert outcome.restarts == 1


def test_a_run_that_shrinks_and_grows_loses_nobody(brake: Path) -> None:
    """A worker that is let go says nothing to the memory that it shared with others of its host."""
    outcome, seen = run(brake, [0, 1, 1, 1], resize(3), resize(2), resize(4))
    assert outcome.restarts == 0
    assert seen.of("worker_silent") == []
    assert seen.sizes[0] == seen.sizes[-1] == 4
    assert {2, 3} <= set(seen.sizes)
