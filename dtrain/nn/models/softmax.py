"""Softmax regression: linear scores under the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dtrain.nn.initializers import normal, zeros
from dtrain.nn.layers import linear
from dtrain.nn.models.model import Model, Params


@dataclass(frozen=True)
class Softmax(Model):
    """scores = x·w + b."""

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        return {"w": normal(rng, (features, classes), std=0.01), "b": zeros(classes)}

    def predict(self, params: Params, x: Any) -> Any:
        return linear(x, params["w"], params["b"])
