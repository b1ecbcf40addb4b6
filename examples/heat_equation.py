"""An inverse problem: how fast does a rod conduct heat?

u_t = D·u_xx on a rod whose ends are kept at 0. Each sample is an experiment: the temperatures at the start, and noisy
readings of them later. The simulation is a time-stepping loop in plain NumPy; its gradient gives the coefficient D.
"""

import sys

import numpy as np

import dtrain

TRUE_DIFFUSION = 0.12
POINTS, STEPS, DT = 32, 40, 0.002
DX = 1 / (POINTS + 1)


def simulate(u, diffusion):
    """The temperatures (experiments, points) after STEPS explicit steps."""
    for _ in range(STEPS):
        wide = np.pad(u, ((0, 0), (1, 1)))  # the ends of the rod
        u = u + diffusion * DT / DX**2 * (wide[:, 2:] - 2 * u + wide[:, :-2])
    return u


def loss(params, batch):
    predicted = simulate(batch["start"], np.exp(params["log_diffusion"]))  # positive whatever the parameter
    return np.mean((predicted - batch["end"]) ** 2, axis=1)


def experiments(n, rng):
    x = DX * np.arange(1, POINTS + 1)
    modes = np.sin(np.pi * np.arange(1, 5)[:, None] * x)
    start = rng.standard_normal((n, 4)) @ modes
    return {"start": start, "end": simulate(start, TRUE_DIFFUSION) + 0.02 * rng.standard_normal(start.shape)}


def train(workers="auto"):
    params = {"log_diffusion": np.log(0.03)}
    data = experiments(64, np.random.default_rng(0))
    rule = {"name": "adam", "lr": 0.05}
    return dtrain.fit(
        loss, params, data, optimizer=rule, batch=64, steps=150, workers=workers, dtype="float64", progress=False
    )


if __name__ == "__main__":
    result = train(*map(int, sys.argv[1:]))
    print(f"diffusion {np.exp(result.params['log_diffusion']):.4f}, true {TRUE_DIFFUSION}")
    print("fingerprint", result.fingerprint)
