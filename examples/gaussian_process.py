"""A Gaussian process: hyper-parameters by maximum likelihood over several data sets.

Each sample is a data set of its own: 25 places, and one noisy function read at them. All have the same length scale,
amplitude and noise, which maximise the product of their marginal likelihoods.
"""

import sys

import numpy as np

import dtrain

TRUE = {"length": 0.3, "amplitude": 1.5, "noise": 0.2}
SETS, POINTS = 64, 25


def covariance(x, length, amplitude, noise):
    """The covariance (sets, points, points) of what is read at the places x (sets, points)."""
    distance = x[:, :, None] - x[:, None, :]
    return amplitude**2 * np.exp(-0.5 * (distance / length) ** 2) + noise**2 * np.eye(POINTS)


def loss(params, batch):
    """Minus the log marginal likelihood of each set: ½ yᵀK⁻¹y + ½ log|K| + ½ n log 2π."""
    k = covariance(batch["x"], **{name: np.exp(value) for name, value in params.items()})
    y = batch["y"][:, :, None]
    white = np.linalg.solve(np.linalg.cholesky(k), y)  # K = LLᵀ, so yᵀK⁻¹y = |L⁻¹y|²
    fit = np.sum(white**2, axis=(1, 2))
    _, log_determinant = np.linalg.slogdet(k)
    return 0.5 * (fit + log_determinant + POINTS * np.log(2 * np.pi))


def data_sets(rng):
    x = rng.random((SETS, POINTS))
    root = np.linalg.cholesky(covariance(x, **TRUE))
    return {"x": x, "y": (root @ rng.standard_normal((SETS, POINTS, 1)))[:, :, 0]}


def train(workers="auto"):
    params = {"length": np.log(1.0), "amplitude": np.log(0.5), "noise": np.log(0.5)}  # their logarithms: all positive
    data = data_sets(np.random.default_rng(0))
    rule = {"name": "adam", "lr": 0.05}
    return dtrain.fit(
        loss, params, data, optimizer=rule, batch=SETS, steps=120, workers=workers, dtype="float64", progress=False
    )


if __name__ == "__main__":
    result = train(*map(int, sys.argv[1:]))
    for name, true in TRUE.items():
        print(f"{name} {np.exp(result.params[name]):.3f}, true {true}")
    print("fingerprint", result.fingerprint)
