"""The Neural Turing Machine: Graves, Wayne and Danihelka, arXiv:1410.5401 (2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dtrain.graph import scan, softmax
from dtrain.nn.activations import softplus
from dtrain.nn.initializers import xavier, zeros
from dtrain.nn.layers import linear, sigmoid
from dtrain.nn.memory import content_weights, interpolate, read, sharpen, shift, write
from dtrain.nn.models.model import Model, Params
from dtrain.nn.recurrent import lstm_cell, lstm_init
from dtrain.options import number

SHIFTS = 3
"""The moves −1, 0 and 1."""

BLANK = 1e-6
"""What every element of the memory is at the start of a sequence (Collier and Beel, arXiv:1807.08518)."""

FIRST = 10.0
"""The logit of the first place in the weightings at the start; of 128 places it has 99 % of the weight."""


@dataclass(frozen=True)
class NTM(Model):
    """Vectors x (n, time, inputs) to scores (n, time, outputs), by a controller of ``units`` with a memory of
    ``places`` by ``width`` that ``read_heads`` read and ``write_heads`` write.

    At each time the controller sees the input and what was read before; its heads read, then write; the scores come
    from the controller and what was read. The ``feedforward`` controller is one layer of tanh. The memory begins
    constant; what was read, the controller's state and the heads' weightings begin as parameters, the latter nearly at
    the first place: from equal weightings on equal rows no head would ever find a place of its own.
    """

    default_loss: ClassVar[str] = "binary_cross_entropy"
    reads_vectors: ClassVar[bool] = True

    controller: Literal["feedforward", "lstm"] = "lstm"
    units: int = number(100, at_least=1)
    places: int = number(128, at_least=3)
    width: int = number(20, at_least=1)
    read_heads: int = number(1, at_least=1)
    write_heads: int = number(1, at_least=1)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        heads, m, u = self.read_heads + self.write_heads, self.width, self.units
        seen = features + self.read_heads * m
        params: Params = {
            "heads": {"w": xavier(rng, (u, self._head_sizes())), "b": zeros(self._head_sizes())},
            "output": {"w": xavier(rng, (u + self.read_heads * m, classes)), "b": zeros(classes)},
            "start": {"read": zeros(self.read_heads, m), "places": zeros(heads, self.places)},
        }
        params["start"]["places"][:, 0] = FIRST
        if self.controller == "lstm":
            params["controller"] = lstm_init(rng, seen, u)
            params["start"] |= {"h": zeros(u), "c": zeros(u)}
        else:
            params["controller"] = {"w": xavier(rng, (seen, u)), "b": zeros(u)}
        return params

    def _head_sizes(self) -> int:
        heads = self.read_heads + self.write_heads
        return heads * (self.width + 3 + SHIFTS) + self.write_heads * 2 * self.width

    def predict(self, params: Params, x: Any) -> Any:
        n, start = x.shape[0], params["start"]

        def repeated(value: Any) -> Any:
            return np.broadcast_to(value, (n, *value.shape))

        state = (repeated(start["h"]), repeated(start["c"])) if self.controller == "lstm" else ()
        memory = np.full((n, self.places, self.width), BLANK, x.dtype)
        carry = (state, repeated(start["read"]), repeated(softmax(start["places"], axis=1)), memory)

        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            state, reads, weights, memory = carry
            seen = np.concatenate([x, np.reshape(reads, (n, self.read_heads * self.width))], axis=1)
            if self.controller == "lstm":
                state = lstm_cell(seen, *state, **params["controller"])
                h = state[0]
            else:
                h = np.tanh(linear(seen, **params["controller"]))
            weights, erase, add = self._address(linear(h, **params["heads"]), weights, memory)
            reads = read(weights[:, : self.read_heads], memory)
            memory = write(memory, weights[:, self.read_heads :], erase, add)
            both = np.concatenate([h, np.reshape(reads, (n, self.read_heads * self.width))], axis=1)
            return (state, reads, weights, memory), linear(both, **params["output"])

        return np.swapaxes(scan(step, carry, np.swapaxes(x, 0, 1))[1], 0, 1)

    def _address(self, z: Any, before: Any, memory: Any) -> tuple[Any, Any, Any]:
        """The weights of all heads, and what the writing ones erase and add, from the controller's numbers z."""
        n, heads, m = z.shape[0], self.read_heads + self.write_heads, self.width
        end = heads * (m + 3 + SHIFTS)
        each = np.reshape(z[:, :end], (n, heads, m + 3 + SHIFTS))
        strengths, gates, powers = softplus(each[..., m]), sigmoid(each[..., m + 1]), 1.0 + softplus(each[..., m + 2])
        content = content_weights(np.tanh(each[..., :m]), strengths, memory)
        moved = shift(interpolate(content, gates, before), softmax(each[..., m + 3 :], axis=2))
        marks = np.reshape(z[:, end:], (n, self.write_heads, 2 * m))
        return sharpen(moved, powers), sigmoid(marks[..., :m]), np.tanh(marks[..., m:])

    def weights(self, params: Params) -> list[Any]:
        inner = [params["controller"][name] for name in ("w", "u") if name in params["controller"]]
        return [*inner, params["heads"]["w"], params["output"]["w"]]
