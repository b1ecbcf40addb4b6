"""The convolutional network: convolutions with pooling, then fully connected layers (LeCun et al. 1998, with relu)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dtrain.errors import InputError
from dtrain.nn.convolution import conv
from dtrain.nn.initializers import he, xavier, zeros
from dtrain.nn.layers import dropout, linear, relu
from dtrain.nn.models.images import side_of
from dtrain.nn.models.model import Model, Params
from dtrain.nn.pooling import max_pool
from dtrain.options import number


@dataclass(frozen=True)
class ConvNet(Model):
    """Each of ``filters`` makes a convolution of so many channels, relu, and max pooling of 2 by 2 places.

    Samples are square images, channels first. The convolutions have a square ``kernel`` and zeros around the image;
    ``hidden`` are the widths of the layers behind them, ``dropout`` is the share of their outputs that training drops.
    """

    filters: tuple[int, ...] = number((16, 32), at_least=1)
    kernel: int = number(3, at_least=1)
    hidden: tuple[int, ...] = number((64,), at_least=1)
    channels: int = number(1, at_least=1)
    dropout: float = number(0.0, at_least=0, below=1)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        side = side_of("convnet", features, self.channels)
        depths = (self.channels, *self.filters)
        convolutions = []
        for before, after in pairwise(depths):
            shape = (after, before, self.kernel, self.kernel)
            convolutions.append({"w": he(rng, shape, math.prod(shape[1:])), "b": zeros(after)})
            side = (side + 2 * (self.kernel // 2) - self.kernel + 1) // 2
        if side < 1:
            size = side_of("convnet", features, self.channels)
            raise InputError(
                f"model.filters: the images of {size} by {size} are too small for {len(self.filters)} poolings; "
                "give fewer filters"
            )
        *inner, last = pairwise((depths[-1] * side * side, *self.hidden, classes))
        layers = [{"w": he(rng, shape), "b": zeros(shape[1])} for shape in inner]
        return {"convolutions": convolutions, "layers": [*layers, {"w": xavier(rng, last), "b": zeros(last[1])}]}

    def predict(self, params: Params, x: Any) -> Any:
        side = side_of("convnet", x.shape[1], self.channels)
        x = np.reshape(x, (x.shape[0], self.channels, side, side))
        for each in params["convolutions"]:
            x = conv(x, each["w"], padding=self.kernel // 2) + each["b"][:, None, None]
            x = max_pool(relu(x), 2)
        x = np.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
        *inner, last = params["layers"]
        for layer in inner:
            x = dropout(relu(linear(x, layer["w"], layer["b"])), self.dropout)
        return linear(x, last["w"], last["b"])

    def weights(self, params: Params) -> list[Any]:
        return [each["w"] for each in (*params["convolutions"], *params["layers"])]
