"""What `dtrain.inspect` says is so: against figures made by hand."""

from __future__ import annotations

import numpy as np

import dtrain
from dtrain.graph.inspection import summary


def test_a_residual_block() -> None:
    x = np.array([[1.0, -1.0, 2.0], [3.0, -2.0, -1.0]])
    w = np.array([0.5, 2.0, 4.0])

    def f(x):
        h = np.maximum(x, 0)
        return np.sum(h + np.tanh(w * h))

    found = {entry["op"]: entry for entry in dtrain.inspect(f, x)}
    h = np.maximum(x, 0)
    t = np.tanh(w * h)
    assert found["relu"]["dead"] == 1 / 3  # the second unit is zero for both samples
    assert found["relu"]["value"]["norm"] == np.linalg.norm(h)
    np.testing.assert_allclose(
        sorted(found["relu"]["gradient_parts"]), sorted([np.sqrt(6.0), np.linalg.norm((1 - t**2) * w)]), rtol=1e-15
    )
    assert found["tanh"]["saturated"] == np.mean(np.abs(t) > 0.99) > 0
    np.testing.assert_allclose(found["add"]["summands"], [np.linalg.norm(h), np.linalg.norm(t)], rtol=1e-15)
    np.testing.assert_allclose(found["input"]["gradient"]["norm"], np.linalg.norm(dtrain.grad(f)(x)), rtol=1e-15)
    assert found["relu"]["line"].endswith(f"test_inspection.py:{f.__code__.co_firstlineno + 1}")


def test_a_histogram_leaves_out_what_is_not_finite() -> None:
    found = summary(np.array([0.0, 1.0, 0.5, np.inf, np.nan, 1.0], np.float32))
    assert (found["not_finite"], found["low"], found["high"], sum(found["counts"])) == (2, 0.0, 1.0, 4)
    assert (found["counts"][0], found["counts"][10], found["counts"][19]) == (1, 1, 2)
    assert summary(np.full(3, 2.0))["counts"][0] == 3
    assert summary(np.array([np.nan])) == {"not_finite": 1}
