"""`dtrain replay` runs a step again as it was, and `dtrain diff` finds where two runs part and what differs there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from tests.support import DIGITS, dtrain, steps_of

MODEL = """
import numpy as np
def init(rng):
    return {"w": rng.standard_normal((4, 3)), "b": np.zeros(3)}
def loss(params, batch):
    s = np.tanh(batch["x"]) @ params["w"] + params["b"]
    return np.log(np.sum(np.exp(s), axis=1)) - s[np.arange(len(batch["y"])), batch["y"]]
"""


@pytest.fixture
def trained(tmp_path):
    """Trains a small job under a name; its keys, data and model may be changed."""

    def train(name, model=MODEL, x=None, workers=1, **changed):
        rng = np.random.default_rng(0)
        data = {"x": rng.standard_normal((96, 4), np.float32), "y": rng.integers(0, 3, 96)}
        np.savez(tmp_path / "data.npz", **{**data, **({} if x is None else {"x": x(data["x"].copy())})})
        (tmp_path / "model.py").write_text(model)
        spec = {**DIGITS, "model": {"entry": "model.py"}, "data": {"name": "npz", "train": "data.npz"}, "batch": 32}
        spec |= {"epochs": None, "steps": 12, "eval": {"every": None}, "shards": 4, **changed}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
        run = tmp_path / name
        done = dtrain("run", tmp_path / "job.yaml", "--run-dir", run, "--workers", workers, "-q")
        assert done.returncode == 0, done.stderr
        return run

    return train


def test_a_step_is_run_again_from_the_checkpoint_before_it(trained, tmp_path):
    run = trained("run", workers=2, checkpoint={"every": 3, "keep": 9})
    done = dtrain("replay", run, "--step", 7, "--save", tmp_path / "edges.npz")
    assert done.returncode == 0, done.stderr
    assert "step 7 of 4 shards, from step-00000006" in done.stderr
    assert done.stdout.count("shard ") == 4
    rows = [line.split() for line in done.stdout.splitlines()]
    (product,) = [row for row in rows[: len(rows) // 4] if row[1:2] == ["matmul"]]
    assert product[2] == "8×3"
    assert product[-1] == "model.py:6"
    saved = np.load(tmp_path / "edges.npz")
    number = {row[1]: row[0] for row in rows[: len(rows) // 4] if row[1:2] and row[1] in ("w", "b", "tanh", "batch.x")}
    gradient = {n: sum(saved[f"gradient.{s}.{number[n]}"].astype(np.float64) for s in range(4)) / 32 for n in "wb"}
    norm = np.sqrt(sum(np.sum(g * g) for g in gradient.values()))
    (record,) = [r for r in steps_of(run) if r["step"] == 7]
    assert norm == pytest.approx(record["gradient_norm"], rel=1e-5)
    np.testing.assert_array_equal(saved[f"value.2.{number['tanh']}"], np.tanh(saved[f"value.2.{number['batch.x']}"]))


def test_one_edge_of_one_shard_is_shown(trained):
    run = trained("run")
    done = dtrain("replay", run, "--step", 0, "--shard", 3, "--edge", 0)
    assert done.returncode == 0, done.stderr
    assert "from the beginning" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == ["shard 3", "edge 0: b", "value", "[0. 0. 0.]"]
    assert lines[4] == "gradient"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--step", 12), "--step 12: the run has committed 12 of 12 steps; give one from 0 to 11"),
        (("--step", -1), "--step -1: the run has committed 12 of 12 steps"),
        (("--step", 5, "--shard", 4), "--shard 4: step 5 has the shards 0 to 3"),
        (("--step", 5, "--edge", 99), "--edge 99: the shard has the edges 0 to"),
    ],
)
def test_a_mistake_is_one_line(trained, arguments, said):
    done = dtrain("replay", trained("run"), *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"dtrain: {said}")


def test_a_run_whose_data_has_changed_since_is_not_replayed(trained):
    run = trained("run")
    trained("other", x=lambda x: x + 1)  # over the same file
    done = dtrain("replay", run, "--step", 5)
    assert done.returncode == 3
    assert "replay: step 0 has come out otherwise than in the run, from the beginning on" in done.stderr


def test_runs_of_any_number_of_workers_are_the_same(trained):
    done = dtrain("diff", trained("one"), trained("two", workers=2, checkpoint={"every": 2}))
    assert (done.returncode, done.stdout) == (0, "the same in all 12 steps that both have\n")


def test_another_rate_shows_in_the_parameters_behind_its_first_step(trained):
    runs = (
        trained("one"),
        trained("two", optimizer={"name": "sgd", "lr": 0.2}),
    )
    done = dtrain("diff", *runs)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("job: optimizer.lr is ") for line in lines)
    assert "the runs part at step 1; the 1 before it are the same" in lines
    assert lines[-1].startswith("parameter b differs before the step: ")


def test_another_line_in_the_model_is_named_with_its_edge(trained):
    """The two models stand in different files of the run directories, so each run is replayed with its own."""
    one, two = trained("one"), trained("two", MODEL.replace("np.tanh(batch", "np.sin(batch"))
    done = dtrain("diff", one, two, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["step"] == 0
    assert found["where"]["shard"] == 0
    assert found["where"]["name"] == "tanh"
    assert found["where"]["line"] == "model.py:6"
    assert "the graphs differ, the other one has sin" in found["cause"]
    quick = dtrain("diff", one, two, "--quick")
    lines = quick.stdout.splitlines()
    assert lines[0].startswith("job: model.entry is 'model.py with SHA-256 ")
    assert lines[1] == "the runs part at step 0; the 0 before it are the same"
    assert "edge" not in quick.stdout
