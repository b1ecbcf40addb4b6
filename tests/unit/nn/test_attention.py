"""Embedding and attention against PyTorch in float64; masks, heads, dropout and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dtrain.errors import ShapeError
from dtrain.graph import grad, step_context, value_and_grad
from dtrain.nn import attention, embedding, join_heads, multi_head_attention, split_heads


def qkv(queries: int = 4, keys: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((2, 3, n, d)) for n, d in ((queries, 5), (keys, 5), (keys, 6))]


MASK = np.random.default_rng(1).random((2, 1, 4, 4)) < 0.6
MASK[..., 0] = True


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": MASK}, {"mask": MASK, "causal": True}])
def test_attention_is_pytorchs(options: dict[str, Any]) -> None:
    inputs = qkv()
    seed = np.cos(np.arange(2 * 3 * 4 * 6.0)).reshape(2, 3, 4, 6)
    leaves = [torch.tensor(a, requires_grad=True) for a in inputs]
    seen = np.tril(np.ones((4, 4), bool)) if options.get("causal") else np.ones((4, 4), bool)
    seen = torch.tensor(seen & options.get("mask", True))
    expected = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=seen)
    (expected * torch.tensor(seed)).sum().backward()
    np.testing.assert_allclose(attention(*inputs, **options), expected.detach(), rtol=1e-11, atol=1e-13)
    value, gradients = value_and_grad(lambda *a: np.sum(seed * attention(*a, **options)), argnums=(0, 1, 2))(*inputs)
    np.testing.assert_allclose(value, (expected.detach().numpy() * seed).sum(), rtol=1e-11)
    for ours, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(ours, leaf.grad, rtol=1e-9, atol=1e-12)


def test_a_query_that_sees_nothing_gives_zeros_and_no_nan() -> None:
    q, k, v = qkv()
    mask = np.ones((4, 4), bool)
    mask[2] = False
    out = attention(q, k, v, mask)
    assert not out[:, :, 2].any()
    assert out[:, :, 1].all()
    gradient = grad(lambda q: np.sum(attention(q, k, v, mask) ** 2))(q)
    assert np.isfinite(gradient).all()
    assert not gradient[:, :, 2].any()


def test_great_scores_do_not_overflow() -> None:
    q, k, v = qkv()
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(attention(1e4 * q, 1e4 * k, v)).all()


def test_heads_are_pieces_of_the_width() -> None:
    x = np.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    assert split_heads(x, 4).shape == (2, 4, 3, 2)
    np.testing.assert_array_equal(split_heads(x, 4)[1, 2, 0], x[1, 0, 4:6])
    np.testing.assert_array_equal(join_heads(split_heads(x, 4)), x)
    whole = multi_head_attention(x, 2 * x, x + 1, heads=2, causal=True)
    np.testing.assert_array_equal(whole[..., :4], attention(x[..., :4], 2 * x[..., :4], x[..., :4] + 1, causal=True))


def test_dropout_is_of_the_step() -> None:
    def at(step: int, training: bool = True) -> Any:
        with step_context(seed=0, step=step, training=training):
            return attention(*qkv(), dropout=0.5)

    np.testing.assert_array_equal(at(1), at(1))
    assert not np.array_equal(at(1), at(2))
    np.testing.assert_array_equal(at(1, training=False), attention(*qkv()))


def test_embedding_adds_at_repeated_rows() -> None:
    table, ids = np.random.default_rng(0).standard_normal((5, 3)), np.array([[0, 2], [2, 4]])
    np.testing.assert_array_equal(embedding(table, ids), table[ids])
    gradient = grad(lambda t: np.sum(embedding(t, ids)))(table)
    np.testing.assert_array_equal(gradient, [[1] * 3, [0] * 3, [2] * 3, [0] * 3, [1] * 3])


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v = qkv()
    with pytest.raises(ShapeError, match=r"attention at .*: expected q .*, got \(2, 3, 4, 5\), \(2, 3, 4, 4\)"):
        attention(q, k[..., :4], v)
    with pytest.raises(ShapeError, match=r"split_heads at .*: 3 heads do not divide the width 8"):
        split_heads(np.ones((1, 2, 8)), 3)
