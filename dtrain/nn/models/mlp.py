"""The multilayer perceptron: fully connected hidden layers, then linear scores."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from dtrain.nn.initializers import he, xavier, zeros
from dtrain.nn.layers import dropout, linear, relu, sigmoid, tanh
from dtrain.nn.models.model import Model, Params
from dtrain.options import number

ACTIVATIONS = {"relu": relu, "tanh": tanh, "sigmoid": sigmoid}


@dataclass(frozen=True)
class MLP(Model):
    """``hidden`` are the widths of the hidden layers, ``dropout`` is the share of their outputs that training drops."""

    hidden: tuple[int, ...] = number((100,), at_least=1)
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    dropout: float = number(0.0, at_least=0, below=1)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        *inner, last = pairwise((features, *self.hidden, classes))
        draw = he if self.activation == "relu" else xavier
        layers = [{"w": draw(rng, shape), "b": zeros(shape[1])} for shape in inner]
        return {"layers": [*layers, {"w": xavier(rng, last), "b": zeros(last[1])}]}

    def predict(self, params: Params, x: Any) -> Any:
        activation = ACTIVATIONS[self.activation]
        *inner, last = params["layers"]
        for layer in inner:
            x = dropout(activation(linear(x, layer["w"], layer["b"])), self.dropout)
        return linear(x, last["w"], last["b"])

    def weights(self, params: Params) -> list[Any]:
        return [layer["w"] for layer in params["layers"]]
