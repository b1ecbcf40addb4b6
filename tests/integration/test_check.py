"""`dtrain check` accepts right gradients and refuses a wrong one with exit code 3."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from dtrain.commands import app

JOB = """
model: {entry: model.py}
data: {name: blobs, samples: 40}
optimizer: {name: sgd, lr: 0.1}
batch: 32
steps: 1
"""
MODEL = """
import numpy as np
import dtrain
from dtrain.nn import dropout


@dtrain.primitive(np.square, name="checked_square")
def square(g, out, x):
    return g * x * FACTOR


def init(rng):
    return {"w": rng.standard_normal((2, 3)), "b": np.ones(3)}


def loss(params, batch):
    return np.sum(square(dropout(np.tanh(batch["x"] @ params["w"]), 0.5)) + params["b"] ** 2, axis=1)
"""


def test_a_wrong_rule_is_found_in_the_parameter_that_it_concerns(tmp_path: Path) -> None:
    job, results = tmp_path / "job.yaml", {}
    job.write_text(JOB)
    for factor in ("2.0", "2.02"):
        (tmp_path / "model.py").write_text(
            MODEL.replace("FACTOR", factor).replace("checked_square", f"square_{factor.replace('.', '_')}")
        )
        results[factor] = CliRunner().invoke(app, ["check", str(job)])
    assert results["2.0"].exit_code == 0, results["2.0"].output
    rows = [line.split() for line in results["2.02"].output.splitlines()]
    assert results["2.02"].exit_code == 3
    assert {row[0]: "wrong" in row for row in rows} == {"b": False, "w": True}
