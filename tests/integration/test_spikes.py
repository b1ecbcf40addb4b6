"""A sample that is far from all others makes a spike, which names its step, shard and samples, with any workers."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain.jobs.build import build
from dtrain.jobs.run import run_settings
from dtrain.jobs.spec import parse_spec
from dtrain.train.observer import Observer
from tests.support import train

STEP, SHARD = 45, 2
MODEL = """
import numpy as np

def init(rng):
    return {"w": np.zeros(4), "b": np.zeros(1)}

def loss(params, batch):
    return np.square(batch["x"] @ params["w"] + params["b"][0] - batch["y"])
"""


class Events(Observer):
    def __init__(self):
        self.events = []

    def event(self, kind, text, **details):
        self.events.append((kind, text, details))


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    random = np.random.default_rng(0)
    data = {"x": random.standard_normal((1024, 4)), "y": random.standard_normal(1024)}
    job = {
        "model": {"entry": "model.py"},
        "data": {"name": "npz", "train": "data.npz"},
        "optimizer": {"name": "sgd", "lr": 1e-3, "clip_norm": 1.0},
        "batch": 16,
        "shards": 4,
        "steps": 64,
    }
    np.savez(tmp_path / "data.npz", **data)
    spec = parse_spec(job, base_dir=tmp_path)
    data["y"][build(spec).sampler().indices(STEP, SHARD)[1]] = 1e3
    np.savez(tmp_path / "data.npz", **data)
    return spec


def test_a_bad_sample_is_found(spec):
    told = []
    for workers in (0, 2):
        seen = Events()
        factor = run_settings(spec, build(spec), workers).spike_factor
        assert train(spec, workers, seen, spike_factor=factor).status == "succeeded"
        told.append([e for e in seen.events if e[0] == "spike"])
    ((_, text, details),) = told[0]
    assert (details["step"], details["shard"]) == (STEP, SHARD)
    bad = int(np.argmax(build(spec).train["y"]))
    assert bad in details["samples"]
    assert len(details["samples"]) == 4
    assert details["value"] > 10 * details["median"]
    assert details["parameter"] in ("w", "b")
    assert text.startswith(f"step {STEP}: the ")
    assert told[0] == told[1]
