"""The multilayer perceptron: fully connected hidden layers, then linear scores."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from dtrain.nn.initializers import he, ones, xavier, zeros
from dtrain.nn.layers import dropout, linear, relu, sigmoid, tanh
from dtrain.nn.models.model import Model, Params
from dtrain.nn.normalisation import batch_norm
from dtrain.nn.running import running
from dtrain.options import number

ACTIVATIONS = {"relu": relu, "tanh": tanh, "sigmoid": sigmoid}


@dataclass(frozen=True)
class MLP(Model):
    """``hidden`` are the widths of the hidden layers, ``dropout`` is the share of their outputs that training drops.

    With ``batch_norm`` a hidden layer is normalised before its activation: over the shard, or ("synchronised") over the
    whole mini-batch. β takes the place of the bias.
    """

    hidden: tuple[int, ...] = number((100,), at_least=1)
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    dropout: float = number(0.0, at_least=0, below=1)
    batch_norm: Literal[False, True, "synchronised"] = False

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        *inner, last = pairwise((features, *self.hidden, classes))
        draw = he if self.activation == "relu" else xavier
        layers = [{"w": draw(rng, shape), **self._shift(shape[1])} for shape in inner]
        return {"layers": [*layers, {"w": xavier(rng, last), "b": zeros(last[1])}]}

    def _shift(self, width: int) -> Params:
        if not self.batch_norm:
            return {"b": zeros(width)}
        statistics = {"mean": running(zeros(width)), "var": running(ones(width))}
        return {"gamma": ones(width), "beta": zeros(width), **statistics}

    def predict(self, params: Params, x: Any) -> Any:
        activation = ACTIVATIONS[self.activation]
        *inner, last = params["layers"]
        for layer in inner:
            if self.batch_norm:
                learnt, statistics = (layer["gamma"], layer["beta"]), (layer["mean"], layer["var"])
                x = batch_norm(x @ layer["w"], *learnt, *statistics, synchronised=self.batch_norm == "synchronised")
            else:
                x = linear(x, layer["w"], layer["b"])
            x = dropout(activation(x), self.dropout)
        return linear(x, last["w"], last["b"])

    def weights(self, params: Params) -> list[Any]:
        return [layer["w"] for layer in params["layers"]]
