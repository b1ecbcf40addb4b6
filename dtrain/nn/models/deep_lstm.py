"""Deep LSTM with links from the input to each layer, and from each layer to the scores: Graves, arXiv:1308.0850.

The baseline of the Neural Turing Machine paper, without peepholes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dtrain.nn.initializers import xavier, zeros
from dtrain.nn.layers import linear
from dtrain.nn.models.model import Model, Params
from dtrain.nn.recurrent import lstm, lstm_init
from dtrain.options import number


@dataclass(frozen=True)
class DeepLSTM(Model):
    """Vectors x (n, time, inputs) to scores (n, time, outputs), by ``layers`` LSTMs of so many ``units``.

    Each layer sees the input and the layer below. The states at the start are parameters, so that there are
    4H²(2L − 1) + 6HL + 4HLI + (HL + 1)O of them; the forget gate's bias begins at 1.
    """

    default_loss: ClassVar[str] = "binary_cross_entropy"
    reads_vectors: ClassVar[bool] = True

    units: int = number(256, at_least=1)
    layers: int = number(3, at_least=1)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        size = self.units
        seen = [features, *[features + size] * (self.layers - 1)]
        layers = [{**lstm_init(rng, inputs, size), "h": zeros(size), "c": zeros(size)} for inputs in seen]
        return {"layers": layers, "head": {"w": xavier(rng, (self.layers * size, classes)), "b": zeros(classes)}}

    def predict(self, params: Params, x: Any) -> Any:
        xs = np.swapaxes(x, 0, 1)  # time first
        outputs: list[Any] = []
        for layer in params["layers"]:
            h, c = (np.broadcast_to(layer[name], (x.shape[0], self.units)) for name in ("h", "c"))
            seen = np.concatenate([xs, outputs[-1]], axis=2) if outputs else xs
            outputs.append(lstm(seen, h, c, layer["w"], layer["u"], layer["b"])[0])
        return linear(np.swapaxes(np.concatenate(outputs, axis=2), 0, 1), **params["head"])

    def weights(self, params: Params) -> list[Any]:
        return [*(layer[name] for layer in params["layers"] for name in ("w", "u")), params["head"]["w"]]
