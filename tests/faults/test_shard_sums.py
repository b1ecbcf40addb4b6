"""Deaths and stops between two sums over shards: what was handed in stays, and who waits is neither lost nor blamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.train.observer import Observer
from tests.faults import deaths
from tests.faults.hosts import service_on
from tests.faults.recovery import steps_lost, train_under_fire
from tests.faults.test_killed_host import Actor
from tests.support import braked_model, nothing_left_behind, spec_of, train

pytestmark = pytest.mark.timeout(300)

SCORES = 'scores = batch["x"] @ params["w"]\n'
CENTRED = (
    SCORES
    + "    total = nn.sum_over_shards(np.sum(scores, axis=0))\n"
    + "    scores = scores - total / nn.sum_over_shards(len(scores))\n"
)
SPEC = {"model__batch_norm": "synchronised", "epochs": 1}


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return train(spec_of(**SPEC), 0).fingerprint


@pytest.mark.parametrize(("phase", "workers"), [("forward", 2), ("backward", 2), ("done", 2), ("backward", 1)])
def test_a_death_between_two_sums_costs_no_step(phase: str, workers: int, fingerprint: str) -> None:
    """The last rank dies with a value of its first shard handed in, or with two of its shards done."""
    with nothing_left_behind():
        outcome, is_dead = deaths.run(spec_of(**SPEC), phase, workers - 1, workers)
    assert is_dead
    assert (outcome.status, outcome.restarts) == ("succeeded", 1)
    assert outcome.fingerprint == fingerprint


class Events(Observer):
    def __init__(self) -> None:
        self.silent: list[int] = []

    def event(self, kind, text, **details):
        if kind == "worker_silent":
            self.silent.append(details["worker"])


def test_who_waits_for_a_stopped_worker_is_not_blamed(fingerprint: str) -> None:
    seen = Events()
    with nothing_left_behind():
        outcome, is_stopped = deaths.run(spec_of(**SPEC), "forward stop", 1, 3, seen, timeout_seconds=1.5)
    assert is_stopped
    assert seen.silent == [1]
    assert (outcome.status, outcome.restarts) == ("succeeded", 1)
    assert outcome.fingerprint == fingerprint


@pytest.mark.slow
def test_random_kills_cost_no_step() -> None:
    spec = spec_of(**{**SPEC, "epochs": 60})
    with nothing_left_behind():
        outcome, steps, count = train_under_fire(spec, 2, kills=6, seed=4)
    assert count == 6
    assert steps_lost(steps.recorded, 60 * 12) == 0
    assert outcome.fingerprint == train(spec, 0).fingerprint


def test_a_death_on_another_host_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    brake = tmp_path / "brake"
    model = braked_model(brake).replace("import numpy as np\n", "import numpy as np\nfrom dtrain import nn\n")
    assert SCORES in model
    (tmp_path / "model.py").write_text(model.replace(SCORES, CENTRED))
    changed = {"epochs": None, "steps": 100, "eval": {"every": 10}, "overlap": True}
    spec = spec_of(model={"entry": "model.py"}, optimizer={"name": "momentum", "lr": 0.01}, **changed)
    where = [0, 1, 1]
    seen = Actor(brake, len(where), [lambda actor: actor.launcher.signal(actor.launcher.on(1)[0])])
    with nothing_left_behind():
        seen.service, seen.launcher = service_on(spec, where, seen)
        outcome = seen.service.run()
    assert not seen.acts
    assert (outcome.status, outcome.restarts) == ("succeeded", 1)
    assert outcome.fingerprint == train(spec, 0).fingerprint
