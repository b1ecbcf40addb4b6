"""Models of sequences learn, and end with one fingerprint for every number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain.jobs.spec import load_spec
from dtrain.train.observer import Observer
from tests.support import ROOT, train


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_the_example_learns_to_one_fingerprint(name: str) -> None:
    """The shards are of unequal size, and dropout is on."""
    changes = [
        "epochs=null",
        "steps=12",
        "batch=30",
        "shards=4",
        "model.dropout=0.1",
        "model.width=16",
        "optimizer.schedule={name: constant}",
    ]
    spec = load_spec(Path(ROOT, "examples", f"characters-{name}.yaml"), [*changes, "data.window=12"])
    losses: list[float] = []

    class Watch(Observer):
        def steps(self, records: Any) -> None:
            losses.extend(record.loss for record in records)

    alone = train(spec, 1, Watch())
    assert max(losses[-3:]) < losses[0] - 0.1
    both = train(spec, 2)
    assert (both.fingerprint, both.chain, both.eval) == (alone.fingerprint, alone.chain, alone.eval)
