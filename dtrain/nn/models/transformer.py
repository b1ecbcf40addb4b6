"""A small GPT: Radford et al., "Language models are unsupervised multitask learners" (2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dtrain.errors import InputError
from dtrain.nn.activations import gelu
from dtrain.nn.attention import embedding, multi_head_attention
from dtrain.nn.initializers import normal, ones, zeros
from dtrain.nn.layers import dropout, linear
from dtrain.nn.models.model import Model, Params
from dtrain.nn.normalisation import layer_norm
from dtrain.options import number

STD = 0.02


@dataclass(frozen=True)
class Transformer(Model):
    """Integers x (n, time) to scores (n, time, classes) of the next; each place sees itself and those before it.

    ``layers`` blocks of causal attention with so many ``heads`` and a perceptron 4·``width`` wide, each with a layer
    norm before it; learnt positions; gelu. ``dropout`` is the share that training drops of the weights of attention,
    of the sum of embeddings, and of what each half of a block adds.
    """

    reads_integers: ClassVar[bool] = True

    width: int = number(64, at_least=1)
    heads: int = number(4, at_least=1)
    layers: int = number(2, at_least=1)
    dropout: float = number(0.0, at_least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise InputError(
                f"model.heads: {self.heads} heads do not divide the width {self.width}; change one of them"
            )

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        def layer(fan_in: int, fan_out: int, std: float = STD) -> Params:
            return {"w": normal(rng, (fan_in, fan_out), std), "b": zeros(fan_out)}

        def norm() -> Params:
            return {"gamma": ones(d), "beta": zeros(d)}

        d = self.width
        last = STD * (2 * self.layers) ** -0.5  # for what is added 2·layers times
        return {
            "token": normal(rng, (classes, d), STD),
            "position": normal(rng, (features, d), STD),
            "blocks": [
                {
                    "norm1": norm(),
                    "qkv": layer(d, 3 * d),
                    "out": layer(d, d, last),
                    "norm2": norm(),
                    "up": layer(d, 4 * d),
                    "down": layer(4 * d, d, last),
                }
                for _ in range(self.layers)
            ],
            "norm": norm(),
            "head": normal(rng, (d, classes), STD),
        }

    def predict(self, params: Params, x: Any) -> Any:
        h = dropout(embedding(params["token"], x) + params["position"], self.dropout)
        for block in params["blocks"]:
            q, k, v = np.split(linear(layer_norm(h, **block["norm1"]), **block["qkv"]), 3, axis=-1)
            seen = multi_head_attention(q, k, v, self.heads, causal=True, dropout=self.dropout)
            h = h + dropout(linear(seen, **block["out"]), self.dropout)
            wide = gelu(linear(layer_norm(h, **block["norm2"]), **block["up"]))
            h = h + dropout(linear(wide, **block["down"]), self.dropout)
        return layer_norm(h, **params["norm"]) @ params["head"]

    def weights(self, params: Params) -> list[Any]:
        inner = [block[name]["w"] for block in params["blocks"] for name in ("qkv", "out", "up", "down")]
        return [params["token"], params["position"], *inner, params["head"]]
