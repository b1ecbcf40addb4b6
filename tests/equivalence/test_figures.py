"""The figures of a sampled step are functions of the job, as the result is, and say what they are said to."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain.graph.tree import named_leaves
from dtrain.jobs.watcher import Watcher
from dtrain.monitor.records import StepRecord
from dtrain.train.observer import Observer
from dtrain.train.service import Outcome
from tests.support import spec_of, train

KEYS = ("parameter_norms", "weight_norms", "update_norms", "noise")
STEPS = 14  # an epoch has 12 steps, the last of them ragged


class Watch(Observer):
    """Keeps the records."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def steps(self, records):
        self.records.extend(records)


def figures(workers: int, norms_every: int = 1, **changes: object) -> tuple[dict[int, dict[str, object]], Outcome]:
    """The sampled figures by step, and how the run ended."""
    watch = Watch()
    changes = {"epochs": None, "steps": STEPS, **changes}
    outcome = train(spec_of(**changes), workers, watch, norms_every=norms_every)
    assert outcome.status == "succeeded"
    sampled = [record for record in watch.records if record.noise is not None]
    return {record.step: {key: getattr(record, key) for key in KEYS} for record in sampled}, outcome


def norms(tree: object) -> dict[str, float]:
    return {name: float(np.linalg.norm(np.ravel(leaf).astype(np.float64))) for name, leaf in named_leaves(tree)}


def test_they_are_the_same_for_any_number_of_workers() -> None:
    alone, outcome = figures(0)
    assert sorted(alone) == list(range(STEPS))
    for workers in (2, 3):
        others, other = figures(workers)
        assert others == alone
        assert other.fingerprint == outcome.fingerprint


def test_they_are_the_same_where_shards_sum_something_in_the_middle_of_a_step() -> None:
    """Synchronised batch norm: the calls of a shard are cut into stretches, and so is the forward pass."""
    alone, _ = figures(0, model__batch_norm="synchronised", steps=3)
    others, _ = figures(2, model__batch_norm="synchronised", steps=3)
    assert others == alone
    assert [step for step, each in alone.items() if each["noise"]["variance"] > 0] == [0, 1, 2]


def test_they_are_the_norms_of_the_parameters_and_of_what_they_have_moved() -> None:
    found, last = figures(0)
    _, before = figures(0, steps=STEPS - 1)
    assert found[STEPS - 1]["weight_norms"] == pytest.approx(norms(last.parameters), rel=1e-5)
    pairs = zip(named_leaves(last.parameters), named_leaves(before.parameters), strict=True)
    moved = {name: float(np.linalg.norm((new - old).ravel())) for (name, new), (_, old) in pairs}
    assert found[STEPS - 1]["update_norms"] == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_step_that_is_not_finite_is_counted(action: str) -> None:
    spec = spec_of(epochs=None, steps=3, on_nonfinite=action, optimizer={"name": "sgd", "lr": 1e30})
    watcher = Watcher(None, is_quiet=True)

    class Told(Watch):
        def event(self, kind, text, **details):
            watcher.event(kind, text, **details)

        def steps(self, records):
            watcher.steps(records)
            super().steps(records)

    told = Told()
    with np.errstate(all="ignore"):
        outcome = train(spec, 0, told, norms_every=1)
    assert all((record.weight_norms is None) == record.is_skipped for record in told.records)
    assert outcome.status == ("failed" if action == "stop" else "succeeded")
    values = {metric.name: values for metric, values in watcher.metrics.snapshot()}
    skipped = values["dtrain_skipped_steps_total"][()]
    assert values["dtrain_nonfinite_steps_total"] == {(): 1.0 if action == "stop" else skipped}
    assert (skipped > 0) == (action == "skip")


def test_sampling_changes_no_bit_of_the_training() -> None:
    _, with_norms = figures(0)
    first, without = figures(0, norms_every=1000)
    assert list(first) == [0]
    assert with_norms.fingerprint == without.fingerprint
