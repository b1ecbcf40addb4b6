"""A multi-layer perceptron that tells two interleaved half moons apart."""

import sys
from itertools import pairwise

import numpy as np

import dtrain


def half_moons(n, rng):
    angle = np.pi * rng.random(n)
    y = rng.integers(0, 2, n)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = np.where(y[:, None] == 0, upper, [1.0, 0.5] - upper)
    return {"x": x + 0.1 * rng.standard_normal((n, 2)), "y": y}


def init(rng):
    sizes = [2, 32, 32, 2]
    return [{"w": rng.standard_normal((m, n)) * np.sqrt(2 / m), "b": np.zeros(n)} for m, n in pairwise(sizes)]


def scores(params, x):
    *hidden, last = params
    for layer in hidden:
        x = np.maximum(x @ layer["w"] + layer["b"], 0)
    return x @ last["w"] + last["b"]


def loss(params, batch):
    s = scores(params, batch["x"])
    s = s - np.max(s, axis=1, keepdims=True)
    log_p = s - np.log(np.sum(np.exp(s), axis=1, keepdims=True))
    return -log_p[np.arange(len(s)), batch["y"]]


def metrics(params, batch):
    return {"accuracy": np.argmax(scores(params, batch["x"]), axis=1) == batch["y"]}


def train(workers="auto"):
    rng = np.random.default_rng(0)
    return dtrain.fit(
        loss,
        init,
        half_moons(1024, rng),
        optimizer={"name": "adam", "lr": 0.01},
        batch=128,
        epochs=20,
        workers=workers,
        eval_data=half_moons(512, rng),
        metrics=metrics,
        progress=False,
    )


if __name__ == "__main__":
    result = train(*map(int, sys.argv[1:]))
    print(f"test accuracy {result.eval['accuracy']:.1%}")
    print("fingerprint", result.fingerprint)
