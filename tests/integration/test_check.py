"""`dtrain check` accepts right gradients and refuses a wrong one with exit code 3."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
    verdicts = {row[0]: "wrong" in row for row in rows}
    assert (verdicts["b"], verdicts["w"], verdicts["sum"]) == (False, True, False)
    assert sum(row[0].startswith("b[") for row in rows) == 3


def figures(job: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["check", str(job), "--json", *arguments])
    return result.exit_code, json.loads(result.output)


def test_a_loss_that_is_no_sum_over_samples_is_found_in_the_sum_of_the_workers(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    for centred, code in ((False, 0), (True, 3)):
        (tmp_path / "model.py").write_text(
            "import numpy as np\n"
            "def init(rng):\n    return {'w': rng.standard_normal((2, 3))}\n"
            "def loss(params, batch):\n    h = batch['x'] @ params['w']\n"
            f"    return np.sum((h - {'h.mean(axis=0)' if centred else '0.5'}) ** 2, axis=1)\n"
        )
        found, values = figures(tmp_path / "job.yaml")
        assert found == code
        assert values["all_reduce"]["samples"] % values["all_reduce"]["shards"] != 0
        assert values["all_reduce"]["band"] == ("wrong" if centred else "right")
        assert all(row["relative_error"] < 1e-7 for row in values["gradients"])


SUMS = """
import os
import numpy as np
from dtrain.nn import dropout, sum_over_shards

def init(rng):
    return {"w": rng.standard_normal((2, 3))}

def loss(params, batch):
    scores = dropout(np.tanh(batch["x"] @ params["w"]), 0.5)
    mean = sum_over_shards(np.sum(scores, axis=0)) / sum_over_shards(len(scores))
    return np.sum((scores - mean) ** 2, axis=1) / sum_over_shards(np.sum(scores**2)) * FACTOR
"""


def test_sums_over_the_shards_are_compared_with_one_graph_of_all_shards(tmp_path: Path) -> None:
    """Each shard has a mask of its own, so that neither the whole batch nor the shards alone are the same."""
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    elsewhere = f"(1.0 + 0.01 * (os.getpid() != {os.getpid()}))"  # the workers do not do what they should
    for factor, code, band in (("1.0", 0, "right"), (elsewhere, 3, "wrong")):
        (tmp_path / "model.py").write_text(SUMS.replace("FACTOR", factor))
        found, values = figures(job, "--workers", "3")
        assert (found, values["all_reduce"]["reference"]) == (code, "shards in one graph")
        assert values["all_reduce"]["band"] == band


def test_running_values_have_no_gradient_to_check(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.replace("{entry: model.py}", "{name: mlp, hidden: [4], batch_norm: true}"))
    code, values = figures(job, "--workers", "3")
    assert (code, values["all_reduce"]["workers"], values["all_reduce"]["reference"]) == (0, 3, "shards one by one")
    names = {row["name"].partition("[")[0] for row in values["gradients"]}
    assert names == {"layers.0.w", "layers.0.gamma", "layers.0.beta", "layers.1.w", "layers.1.b"}
