"""Gradient rules that are defined in a script reach its workers."""

from __future__ import annotations

import subprocess
import sys

from tests.support import nothing_left_behind

SCRIPT = """
import numpy as np
import dtrain

rng = np.random.default_rng(0)
x = rng.standard_normal((300, 8))
y = np.roll(x, 1, axis=1) @ np.arange(8.0)

def kernel(x):
    return np.roll(x, 1, axis=1)

@dtrain.primitive(kernel, shape=lambda x: x.shape)
def shift(g, out, x):
    return np.roll(g, -1, axis=1)

@dtrain.custom_vjp
def half_squared(e):
    return 0.5 * e * e

half_squared.defvjp(lambda e: (half_squared(e), e), lambda e, g: (g * e,))
slope = dtrain.elementwise_grad(np.sin)

def predict(w, x):
    step = lambda total, column: (total + column[0] * column[1], None)
    return dtrain.scan(step, np.zeros_like(x[:, 0]), (shift(x * w).T, np.arange(8, dtype=x.dtype)))[0]

def loss(params, batch):
    return half_squared(dtrain.checkpoint(predict)(params["w"], batch["x"]) - batch["y"]) * slope(0.0)

for workers in (0, 2):
    result = dtrain.fit(
        loss, {"w": np.zeros(8)}, {"x": x, "y": y}, optimizer={"name": "adam", "lr": 0.1},
        epochs=20, batch=50, workers=workers, eval_data={"x": x[:50], "y": y[:50]}, progress=False,
    )
    print(result.fingerprint, result.status, result.eval["loss"] < 1e-3)
"""


def test_custom_rules_of_a_script_train_on_two_workers(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with nothing_left_behind():
        done = subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].endswith(" succeeded True")
