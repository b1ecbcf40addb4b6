"""Recurrent cells, and LSTM and GRU over a sequence. Weights of all gates lie side by side, in PyTorch's order.

``x`` is (n, d) and ``h`` (n, size); ``w`` (d, gates·size) and ``u`` (size, gates·size) are the transposes of PyTorch's
``weight_ih`` and ``weight_hh``; biases are (gates·size,).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph import scan
from dtrain.nn.initializers import xavier, zeros
from dtrain.nn.layers import sigmoid


def _gates(x: Any, count: int) -> list[Any]:
    size = x.shape[-1] // count
    return [x[..., i * size : (i + 1) * size] for i in range(count)]


def rnn_cell(x: Any, h: Any, w: Any, u: Any, b: Any) -> Any:
    """tanh(x·w + h·u + b): Elman (1990)."""
    return np.tanh(x @ w + h @ u + b)


def _lstm_step(projected: Any, h: Any, c: Any, u: Any) -> tuple[Any, Any]:
    i, f, g, o = _gates(projected + h @ u, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def lstm_init(rng: np.random.Generator, inputs: int, size: int) -> dict[str, Any]:
    """Fresh float32 w, u and b of an LSTM; the forget gate's bias begins at 1 (Jozefowicz et al. 2015)."""
    bias = zeros(4 * size)
    bias[size : 2 * size] = 1
    return {
        "w": xavier(rng, (inputs, 4 * size), fan_out=size),
        "u": xavier(rng, (size, 4 * size), fan_out=size),
        "b": bias,
    }


def lstm_cell(x: Any, h: Any, c: Any, w: Any, u: Any, b: Any) -> tuple[Any, Any]:
    """The next (h, c) of an LSTM with forget gate (Gers et al. 2000); gates in the order input, forget, cell, output.

    c' = σ(f)·c + σ(i)·tanh(g), h' = σ(o)·tanh(c').
    """
    return _lstm_step(x @ w + b, h, c, u)


def _gru_step(projected: Any, h: Any, u: Any, b_u: Any, reset_after: bool) -> Any:
    r_x, z_x, n_x = _gates(projected, 3)
    r_u, z_u, n_u = _gates(u, 3)
    r_b, z_b, n_b = _gates(b_u, 3)
    r = sigmoid(r_x + h @ r_u + r_b)
    z = sigmoid(z_x + h @ z_u + z_b)
    recurrent = r * (h @ n_u + n_b) if reset_after else (r * h) @ n_u + n_b
    return (1.0 - z) * np.tanh(n_x + recurrent) + z * h


def gru_cell(x: Any, h: Any, w: Any, u: Any, b: Any, b_u: Any, reset_after: bool = True) -> Any:
    """The next h of a GRU; gates in the order reset r, update z, new n: h' = (1 − z)·n + z·h.

    With ``reset_after``, n = tanh(x·w + b + r·(h·u + b_u)), the form of PyTorch and cuDNN; without, n = tanh(x·w + b +
    (r·h)·u + b_u), that of Cho et al. (arXiv:1406.1078).
    """
    return _gru_step(x @ w + b, h, u, b_u, reset_after)


def lstm(xs: Any, h: Any, c: Any, w: Any, u: Any, b: Any) -> tuple[Any, tuple[Any, Any]]:
    """Run ``lstm_cell`` over xs (time, n, d): all h (time, n, size), and the last (h, c). The graph does not grow with
    the time. The products of all x are one."""

    def step(carry: tuple[Any, Any], projected: Any) -> tuple[tuple[Any, Any], Any]:
        carry = _lstm_step(projected, *carry, u)
        return carry, carry[0]

    last, states = scan(step, (h, c), xs @ w + b)
    return states, last


def gru(xs: Any, h: Any, w: Any, u: Any, b: Any, b_u: Any, reset_after: bool = True) -> tuple[Any, Any]:
    """Run ``gru_cell`` over xs (time, n, d): all h (time, n, size), and the last h."""

    def step(h: Any, projected: Any) -> tuple[Any, Any]:
        h = _gru_step(projected, h, u, b_u, reset_after)
        return h, h

    last, states = scan(step, h, xs @ w + b)
    return states, last
