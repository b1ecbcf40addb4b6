"""AlexNet: Krizhevsky, Sutskever and Hinton (2012), and its later form: Krizhevsky, arXiv:1404.5997 (2014)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from dtrain.errors import InputError
from dtrain.nn.convolution import conv
from dtrain.nn.initializers import he, normal, xavier, zeros
from dtrain.nn.layers import dropout, linear, relu, tanh
from dtrain.nn.models.images import side_of
from dtrain.nn.models.model import Model, Params
from dtrain.nn.normalisation import local_response_norm
from dtrain.nn.pooling import max_pool
from dtrain.options import number


class Conv(NamedTuple):
    """One convolution: filters of ``kernel`` by ``kernel`` places."""

    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


class Form(NamedTuple):
    """One form of the network: five convolutions, whether the first two are normalised, and the layers behind them."""

    convolutions: tuple[Conv, ...]
    is_normalised: bool
    hidden: tuple[int, int] = (4096, 4096)


FORMS = {
    "2012": Form(
        (Conv(96, 11, 4), Conv(256, 5, 1, 2, 2), Conv(384, 3, 1, 1), Conv(384, 3, 1, 1, 2), Conv(256, 3, 1, 1, 2)), True
    ),
    "ungrouped": Form(
        (Conv(96, 11, 4), Conv(256, 5, 1, 2), Conv(384, 3, 1, 1), Conv(384, 3, 1, 1), Conv(256, 3, 1, 1)), True
    ),
    "one-weird-trick": Form(
        (Conv(64, 11, 4, 2), Conv(192, 5, 1, 2), Conv(384, 3, 1, 1), Conv(256, 3, 1, 1), Conv(256, 3, 1, 1)), False
    ),
    "small": Form(
        (Conv(32, 5, 1, 2), Conv(64, 5, 1, 2, 2), Conv(96, 3, 1, 1), Conv(96, 3, 1, 1, 2), Conv(64, 3, 1, 1, 2)),
        True,
        (256, 256),
    ),
}
"""The paper's, with and without its groups, for images of 227 by 227; the later one for 224 by 224; and one for small
images, 32 by 32 say."""

POOLED = (0, 1, 4)
"""The convolutions with a max pooling of 3 by 3 places, 2 apart, behind them: neighbours overlap."""

BIASED = (1, 3, 4)
"""The convolutions whose biases begin at 1, as do those of the hidden layers, so that their relus are on at first."""


@dataclass(frozen=True)
class AlexNet(Model):
    """Five convolutions and three linear layers on square images, channels first.

    ``form`` is one of ``FORMS``. Weights begin at N(0, 0.01²), or with ``initial: he`` at 2/fan_in as their variance,
    which a small network needs. ``dropout`` is of the hidden layers. The paper compares ``activation`` relu and tanh.
    """

    form: Literal["2012", "ungrouped", "one-weird-trick", "small"] = "2012"
    activation: Literal["relu", "tanh"] = "relu"
    initial: Literal["paper", "he"] = "paper"
    channels: int = number(3, at_least=1)
    dropout: float = number(0.5, at_least=0, below=1)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        form, depth = FORMS[self.form], self.channels
        side = size = side_of("alexnet", features, self.channels)
        is_paper = self.initial == "paper"
        convolutions = []
        for i, each in enumerate(form.convolutions):
            shape = (each.filters, depth // each.groups, each.kernel, each.kernel)
            w = normal(rng, shape, 0.01) if is_paper else he(rng, shape, math.prod(shape[1:]))
            bias = zeros(each.filters) + np.float32(is_paper and i in BIASED)
            convolutions.append({"w": w, "b": bias})
            side, depth = (side + 2 * each.padding - each.kernel) // each.stride + 1, each.filters
            side = (side - 3) // 2 + 1 if i in POOLED else side
            if side < 1:
                raise InputError(
                    f"model.form: the images of {size} by {size} are too small for {self.form}; choose small, or give "
                    "larger images"
                )
        *inner, last = pairwise((depth * side * side, *form.hidden, classes))
        layers = [
            {"w": normal(rng, s, 0.01) if is_paper else he(rng, s), "b": zeros(s[1]) + np.float32(is_paper)}
            for s in inner
        ]
        w = normal(rng, last, 0.01) if is_paper else xavier(rng, last)
        return {"convolutions": convolutions, "layers": [*layers, {"w": w, "b": zeros(classes)}]}

    def predict(self, params: Params, x: Any) -> Any:
        form, active = FORMS[self.form], relu if self.activation == "relu" else tanh
        side = side_of("alexnet", x.shape[1], self.channels)
        x = np.reshape(x, (x.shape[0], self.channels, side, side))
        for i, (each, layer) in enumerate(zip(form.convolutions, params["convolutions"], strict=True)):
            x = conv(x, layer["w"], each.stride, each.padding, groups=each.groups) + layer["b"][:, None, None]
            x = active(x)
            if form.is_normalised and i < 2:
                x = local_response_norm(x)
            if i in POOLED:
                x = max_pool(x, 3, stride=2)
        x = np.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
        *inner, last = params["layers"]
        for layer in inner:
            x = dropout(active(linear(x, layer["w"], layer["b"])), self.dropout)
        return linear(x, last["w"], last["b"])

    def weights(self, params: Params) -> list[Any]:
        return [each["w"] for each in (*params["convolutions"], *params["layers"])]
