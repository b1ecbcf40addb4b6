"""A character model of LSTM layers: Graves, arXiv:1308.0850 (2013), without its links between layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dtrain.nn.attention import embedding
from dtrain.nn.initializers import normal, xavier, zeros
from dtrain.nn.layers import dropout, linear
from dtrain.nn.models.model import Model, Params
from dtrain.nn.recurrent import lstm, lstm_init
from dtrain.options import number


@dataclass(frozen=True)
class LSTM(Model):
    """Integers x (n, time) to scores (n, time, classes) of the next, by ``layers`` LSTMs of so many ``units``.

    ``width`` is that of the embedding, ``dropout`` the share that training drops of what each layer gives. The states
    begin at 0 in every window; the forget gate's bias begins at 1 (Jozefowicz et al. 2015).
    """

    reads_integers: ClassVar[bool] = True

    width: int = number(32, at_least=1)
    units: int = number(128, at_least=1)
    layers: int = number(1, at_least=1)
    dropout: float = number(0.0, at_least=0, below=1)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        sizes = [self.width, *[self.units] * (self.layers - 1)]
        layers = [lstm_init(rng, size, self.units) for size in sizes]
        return {
            "token": normal(rng, (classes, self.width), 1.0),
            "layers": layers,
            "head": {"w": xavier(rng, (self.units, classes)), "b": zeros(classes)},
        }

    def predict(self, params: Params, x: Any) -> Any:
        h = np.swapaxes(embedding(params["token"], x), 0, 1)  # time first
        for layer in params["layers"]:
            start = np.zeros((x.shape[0], self.units), h.dtype)
            h = dropout(lstm(h, start, start, **layer)[0], self.dropout)
        return linear(np.swapaxes(h, 0, 1), **params["head"])

    def weights(self, params: Params) -> list[Any]:
        inner = [layer[name] for layer in params["layers"] for name in ("w", "u")]
        return [params["token"], *inner, params["head"]["w"]]
