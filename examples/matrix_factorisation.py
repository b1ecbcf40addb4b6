"""Matrix factorisation: fill in a table of ratings of which half are known."""

import sys

import numpy as np

import dtrain

USERS, ITEMS, RANK = 60, 40, 3

rng = np.random.default_rng(0)
ratings = rng.standard_normal((USERS, RANK)) @ rng.standard_normal((RANK, ITEMS))
known = rng.random((USERS, ITEMS)) < 0.5


def entries(mask):
    user, item = np.nonzero(mask)
    return {"user": user, "item": item, "rating": ratings[mask]}


def init(rng):
    return {"users": 0.5 * rng.standard_normal((USERS, RANK)), "items": 0.5 * rng.standard_normal((ITEMS, RANK))}


def error(params, batch):
    predicted = np.sum(params["users"][batch["user"]] * params["items"][batch["item"]], axis=1)
    return predicted - batch["rating"]


def loss(params, batch):
    return error(params, batch) ** 2


def metrics(params, batch):
    return {"squared_error": error(params, batch) ** 2}


def train(workers="auto"):
    return dtrain.fit(
        loss,
        init,
        entries(known),
        optimizer={"name": "adam", "lr": 0.1},
        batch=256,
        epochs=50,
        workers=workers,
        eval_data=entries(~known),
        metrics=metrics,
        progress=False,
    )


if __name__ == "__main__":
    result = train(*map(int, sys.argv[1:]))
    spread = np.std(ratings[~known])
    print(f"error of the unknown ratings {result.eval['squared_error'] ** 0.5:.3f}, their spread {spread:.3f}")
    print("fingerprint", result.fingerprint)
