"""Logistic regression: which features speak for class 1, and how strongly."""

import sys

import numpy as np

import dtrain

TRUE_WEIGHTS = np.array([1.5, -2.0, 0.0, 1.0])
TRUE_BIAS = -0.5

rng = np.random.default_rng(0)
x = rng.standard_normal((8000, 4))
y = (rng.random(8000) < 1 / (1 + np.exp(-(x @ TRUE_WEIGHTS + TRUE_BIAS)))).astype(float)


def loss(params, batch):
    score = batch["x"] @ params["w"] + params["b"]
    return np.logaddexp(0, score) - batch["y"] * score  # -log p(y), a loss per sample


def train(workers="auto"):
    params = {"w": np.zeros(4), "b": np.zeros(())}
    data = {"x": x, "y": y}
    rule = {"name": "sgd", "lr": 2.0}
    return dtrain.fit(loss, params, data, optimizer=rule, batch=8000, epochs=100, workers=workers, progress=False)


if __name__ == "__main__":
    result = train(*map(int, sys.argv[1:]))
    print("weights", result.params["w"].round(2), "true", TRUE_WEIGHTS)
    print("bias", result.params["b"].round(2), "true", TRUE_BIAS)
    print("fingerprint", result.fingerprint)
