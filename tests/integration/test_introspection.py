"""A run that is looked into has the same bits, and what is written is what the run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dtrain
from dtrain.graph import flatten
from dtrain.jobs.backend import LocalBackend
from dtrain.jobs.build import build
from dtrain.jobs.run import resume_job, run_job
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import parse_spec
from dtrain.monitor.lines import read_lines
from dtrain.train.checkpoint import CheckpointStore

JOB: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [8], "batch_norm": True, "dropout": 0.25},
    "data": {"name": "blobs", "samples": 50},
    "optimizer": {"name": "momentum", "lr": 0.1, "clip_norm": 0.3, "weight_decay": 0.01},
    "batch": 16,
    "shards": 4,
    "steps": 6,
}


def run(path: Path, workers: int = 0, **changed: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spec = parse_spec({**JOB, **changed})
    directory = RunDirectory.create("job", path=path)
    directory.write_job(spec)
    result = run_job(spec, build(spec), directory, LocalBackend(workers), is_quiet=True)
    return result, [line for line, _ in read_lines(path / "introspection.jsonl")]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_fingerprint_does_not_depend_on_it(tmp_path: Path, workers: int) -> None:
    plain, nothing = run(tmp_path / "plain")
    watched, lines = run(tmp_path / "watched", workers, introspect={"every": 2})
    assert nothing == []
    assert [line["step"] for line in lines] == [0, 2, 4]
    for key in ("status", "fingerprint", "digest_chain", "job_digest"):
        assert watched[key] == plain[key]
    assert [p["name"] for p in lines[0]["parameters"]] == [
        *("layers.0.beta", "layers.0.gamma", "layers.0.w", "layers.1.b", "layers.1.w")
    ]
    assert any("dead" in layer for layer in lines[0]["layers"])


def test_the_update_is_that_of_the_run_where_a_shard_is_the_batch(tmp_path: Path) -> None:
    _, lines = run(tmp_path / "run", shards=1, steps=3, introspect={"every": 1}, checkpoint={"every": 1, "keep": 9})
    store = CheckpointStore(tmp_path / "run" / "checkpoints", read_only=True)
    paths = [store.directory / f"step-{step:08d}" for step in (1, 2)]
    states = [store.load(path).tensors["parameters"] for path in paths]
    for found in lines[1]["parameters"]:
        before, after = (state[found["name"]].astype(np.float64) for state in states)
        ratio = np.linalg.norm(after - before) / np.linalg.norm(before)
        np.testing.assert_allclose(found["update_to_weight"], ratio, rtol=1e-4)


def test_a_resumed_run_tells_each_step_once(tmp_path: Path) -> None:
    _, lines = run(tmp_path / "run", introspect={"every": 1}, checkpoint={"every": 2, "keep": 9})
    (tmp_path / "run" / "result.json").unlink()
    for left in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        left.rename(tmp_path / left.name)
    resume_job(tmp_path / "run", lambda spec: LocalBackend(0), is_quiet=True)
    assert [line for line, _ in read_lines(tmp_path / "run" / "introspection.jsonl")] == lines


def test_the_shares_of_the_shards_are_those_of_the_gradient_of_the_batch(tmp_path: Path) -> None:
    plain = {"name": "mlp", "hidden": [8]}
    _, lines = run(tmp_path / "run", model=plain, shards=3, steps=1, introspect={"every": 1})
    spec = parse_spec({**JOB, "model": plain, "shards": 3, "steps": 1})
    program = build(spec)
    indices = [program.sampler().indices(0, shard) for shard in range(3)]

    def gradients(chosen: np.ndarray) -> list[np.ndarray]:
        batch = {name: array[chosen] for name, array in program.train.items()}
        found = dtrain.grad(lambda params: np.mean(program.loss(params, batch)) * len(chosen))
        return [np.asarray(g, np.float64) for g in flatten(found(program.initial_parameters()))[0]]

    whole = gradients(np.concatenate(indices))
    parts = [gradients(chosen) for chosen in indices]
    assert len(lines[0]["shards"]) == len(whole)
    for number, (name, shares) in enumerate(lines[0]["shards"].items()):
        assert name == lines[0]["parameters"][number]["name"]
        expected = [np.vdot(part[number], whole[number]) / np.vdot(whole[number], whole[number]) for part in parts]
        np.testing.assert_allclose(shares, expected, rtol=1e-3, atol=1e-5)
        assert sum(shares) == pytest.approx(1.0, abs=1e-6)
