"""Activations beside relu, tanh and sigmoid: each elementwise, and finite wherever x and the result are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtrain.graph import normal_cdf
from dtrain.nn.layers import relu, sigmoid


def gelu(x: Any) -> Any:
    """x·Φ(x), Φ the distribution of the standard normal (Hendrycks and Gimpel, arXiv:1606.08415)."""
    return x * normal_cdf(x)


def gelu_tanh(x: Any) -> Any:
    """The form of gelu with tanh: ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))). It differs from gelu by up to 5e-4."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


def silu(x: Any) -> Any:
    """x·σ(x), also called swish."""
    return x * sigmoid(x)


def softplus(x: Any) -> Any:
    """log(1 + e^x) = max(x, 0) + log(1 + e^−|x|), without overflow. Its derivative is σ(x)."""
    return np.logaddexp(x, np.zeros_like(x))


def leaky_relu(x: Any, slope: float = 0.01) -> Any:
    """x where x > 0, else slope·x."""
    return np.where(x > 0, x, slope * x)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x where x > 0, else α·(e^x − 1) (Clevert et al., arXiv:1511.07289)."""
    return np.where(x > 0, x, alpha * np.expm1(np.clip(x, -np.inf, 0.0)))


def selu(x: Any) -> Any:
    """elu with the two constants that keep mean 0 and variance 1 (Klambauer et al., arXiv:1706.02515)."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


def relu6(x: Any) -> Any:
    """min(max(x, 0), 6)."""
    return np.where(x > 6, 6.0, relu(x))


def hard_sigmoid(x: Any) -> Any:
    """min(max(x + 3, 0), 6)/6."""
    return relu6(x + 3.0) * (1.0 / 6.0)


def hard_tanh(x: Any) -> Any:
    """min(max(x, −1), 1)."""
    return np.clip(x, -1.0, 1.0)
