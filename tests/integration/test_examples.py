"""The worked examples find what they look for, with the same bits for one and for two workers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def check_logistic_regression(example, result):
    """The weights are those of Newton's method."""
    x = np.column_stack([example.x, np.ones(len(example.x))])
    found = np.zeros(5)
    for _ in range(10):
        p = sigmoid(x @ found)
        found += np.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (example.y - p))
    np.testing.assert_allclose([*result.params["w"], result.params["b"]], found, atol=2e-3)
    np.testing.assert_allclose(found, [*example.TRUE_WEIGHTS, example.TRUE_BIAS], atol=0.1)


def check_mlp(example, result):
    assert result.eval["accuracy"] > 0.98


def check_heat_equation(example, result):
    assert np.exp(result.params["log_diffusion"]) == pytest.approx(example.TRUE_DIFFUSION, rel=0.01)


def check_matrix_factorisation(example, result):
    unknown = example.ratings[~example.known]
    assert result.eval["squared_error"] ** 0.5 < 0.1 * np.std(unknown)


def check_gaussian_process(example, result):
    """No other hyper-parameters near by are more likely, by the formula with the inverse and the eigenvalues."""
    data = example.data_sets(np.random.default_rng(0))

    def unlikelihood(**logs):
        k = example.covariance(data["x"], **{name: np.exp(value) for name, value in logs.items()})
        fit = np.einsum("si,sij,sj->", data["y"], np.linalg.inv(k), data["y"])
        return 0.5 * (fit + np.sum(np.log(np.linalg.eigvalsh(k))) + data["y"].size * np.log(2 * np.pi))

    found = result.params
    least = unlikelihood(**found)
    assert result.loss * example.SETS == pytest.approx(least, rel=1e-4)
    for name in found:
        for change in (-0.03, 0.03):
            assert unlikelihood(**{**found, name: found[name] + change}) > least
        assert np.exp(found[name]) == pytest.approx(example.TRUE[name], rel=0.15)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_finds_what_it_looks_for_with_any_number_of_workers(path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    script = subprocess.run(
        [sys.executable, path, "2"], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert script.returncode == 0, script.stderr
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = example.train(workers=1)
    assert script.stdout.splitlines()[-1] == f"fingerprint {result.fingerprint}"
    globals()[f"check_{path.stem}"](example, result)


def test_every_example_is_listed():
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".yaml")]
    assert len(names) > 5
    for name in names:
        assert f"[{name}]({name})" in listed
