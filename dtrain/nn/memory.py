"""A differentiable memory: how heads find their places, read, and write (Graves et al., arXiv:1410.5401, section 3).

Everything is batched: memory (n, places, width); one row of weights over the places for each head, (n, heads, places).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph import softmax

_TINY = 1e-16
"""Keeps √ and log off 0; below the last bit of every figure that is not itself 0."""


def cosine(keys: Any, memory: Any) -> Any:
    """k·M_i/(|k|·|M_i|), how like each key (n, heads, width) each place is: (n, heads, places); 0 for zeros."""
    products = keys @ np.swapaxes(memory, 1, 2)
    return products / (_length(keys)[:, :, None] * _length(memory)[:, None, :])


def _length(rows: Any) -> Any:
    return np.sqrt(np.sum(rows * rows, axis=2) + _TINY)


def content_weights(keys: Any, strengths: Any, memory: Any) -> Any:
    """softmax over the places of β·cosine; strengths β (n, heads) (equation 5)."""
    return softmax(strengths[:, :, None] * cosine(keys, memory), axis=2)


def interpolate(weights: Any, gates: Any, before: Any) -> Any:
    """g·w + (1 − g)·w_before; gates g (n, heads) in [0, 1] (equation 7)."""
    g = gates[:, :, None]
    return g * weights + (1.0 - g) * before


def shift(weights: Any, shifts: Any) -> Any:
    """Circular convolution with a distribution over moves (n, heads, moves), an odd number of them around 0; the first
    is the farthest back (equation 8). What is at place i goes to place i + move."""
    reach = shifts.shape[2] // 2
    moved = [shifts[:, :, j : j + 1] * np.roll(weights, j - reach, axis=2) for j in range(shifts.shape[2])]
    return sum(moved[1:], moved[0])


def sharpen(weights: Any, powers: Any) -> Any:
    """w^γ/Σ w^γ, as the softmax of γ·log w; powers γ (n, heads) of at least 1 (equation 9)."""
    return softmax(powers[:, :, None] * np.log(weights + _TINY), axis=2)


def read(weights: Any, memory: Any) -> Any:
    """Σ_i w_i·M_i, a vector for each head: (n, heads, width) (equation 2)."""
    return weights @ memory


def write(memory: Any, weights: Any, erase: Any, add: Any) -> Any:
    """M_i·Π(1 − w_i·e) + Σ w_i·a over the heads; erase e in [0, 1] and add a are (n, heads, width) (equations 3, 4).

    All heads erase before any of them adds, so their order does not matter.
    """
    for head in range(weights.shape[1]):
        memory = memory * (1.0 - weights[:, head, :, None] * erase[:, head, None, :])
    return memory + np.swapaxes(weights, 1, 2) @ add
