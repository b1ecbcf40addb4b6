"""Clipping of gradients: by the global norm (a factor, chosen once per step) and by value (elementwise)."""

from __future__ import annotations

import math

import numpy as np

from dtrain.errors import NonFiniteError
from dtrain.optim.rule import Block

NORM_EPS = 1e-6
"""Added to the norm before the division, as in torch.nn.utils.clip_grad_norm_."""


def scale(norm: float, max_norm: float) -> float:
    """The factor that brings gradients of global ``norm`` down to ``max_norm``: min(1, max_norm/(norm + 1e-6)).

    The 1e-6 is PyTorch's, so a clipped gradient ends a trifle below ``max_norm``, and one with norm within 1e-6 below
    it is clipped too. A norm that is not finite raises ``NonFiniteError``: a factor of 0 or nan would hide it.
    """
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"clip_norm: the global gradient norm is {norm}; lower the learning rate or check the data"
        )
    return min(1.0, max_norm / (norm + NORM_EPS))


def clip_by_value(gradient: Block, limit: float) -> None:
    """Bring every element of ``gradient`` into [−limit, limit], in place; nan stays nan."""
    bound = gradient.dtype.type(limit)
    np.minimum(gradient, bound, out=gradient)
    np.maximum(gradient, -bound, out=gradient)
