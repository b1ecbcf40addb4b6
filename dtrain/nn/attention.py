"""Embedding and attention: Vaswani et al., arXiv:1706.03762 (2017), equation 1 and section 3.2.2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtrain.errors import ShapeError
from dtrain.graph import softmax
from dtrain.graph.tensor import format_line, user_line
from dtrain.nn.layers import dropout as drop


def embedding(table: Any, ids: Any) -> Any:
    """Rows of ``table`` (rows, d) at the integers ``ids`` of any shape: (*ids.shape, d).

    Gradients add up at rows that are taken more than once. The gradient of the table is dense, unless `init` has marked
    it with ``dtrain.nn.table``.
    """
    return table[ids]


def causal_mask(queries: int, keys: int) -> np.ndarray:
    """The mask bool (queries, keys) in which query i sees the keys up to i."""
    return np.tril(np.ones((queries, keys), bool))


def attention(q: Any, k: Any, v: Any, mask: Any = None, causal: bool = False, dropout: float = 0.0) -> Any:
    """softmax(q·kᵀ/√d)·v for q (…, queries, d), k (…, keys, d) and v (…, keys, e): (…, queries, e).

    ``mask`` is bool and broadcasts to (…, queries, keys): a query sees the keys where it is true, and gives zeros where
    it sees none. ``dropout`` is the share of the weights that training drops. ShapeError for shapes that do not fit.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            f"attention at {format_line(user_line())}: expected q (…, queries, d), k (…, keys, d) and v (…, keys, e), "
            f"got {q.shape}, {k.shape} and {v.shape}"
        )
    scores = q @ np.swapaxes(k, -1, -2) * (1.0 / math.sqrt(q.shape[-1]))
    seen = mask
    if causal:
        triangle = causal_mask(q.shape[-2], k.shape[-2])
        seen = triangle if mask is None else np.logical_and(mask, triangle)
    if seen is None:
        weights = softmax(scores, axis=-1)
    else:  # a finite number instead of -inf, so that a row without a key has no nan
        weights = np.where(seen, softmax(np.where(seen, scores, -1e30), axis=-1), 0.0)
    return drop(weights, dropout) @ v


def split_heads(x: Any, heads: int) -> Any:
    """(n, time, d) to (n, heads, time, d/heads). ShapeError if the heads do not divide d."""
    n, time, d = x.shape
    if d % heads:
        raise ShapeError(f"split_heads at {format_line(user_line())}: {heads} heads do not divide the width {d}")
    return np.swapaxes(np.reshape(x, (n, time, heads, d // heads)), 1, 2)


def join_heads(x: Any) -> Any:
    """(n, heads, time, e) to (n, time, heads·e)."""
    n, heads, time, e = x.shape
    return np.reshape(np.swapaxes(x, 1, 2), (n, time, heads * e))


def multi_head_attention(
    q: Any, k: Any, v: Any, heads: int, mask: Any = None, causal: bool = False, dropout: float = 0.0
) -> Any:
    """``attention`` in each of the ``heads`` on its own part of q, k and v, all (n, time, width): (n, queries, width).

    The projections before and after are the model's.
    """
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return join_heads(attention(q, k, v, mask, causal, dropout))
