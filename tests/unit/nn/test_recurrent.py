"""Recurrent cells and loops: values and gradients of PyTorch, as a scan and as a Python loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dtrain.graph import value_and_grad
from dtrain.nn import gru, gru_cell, lstm, lstm_cell, rnn_cell

TIME, N, D, SIZE = 5, 3, 4, 6


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape) * 0.5 for shape in shapes]


def parameters(gates: int, states: int) -> list[np.ndarray]:
    """xs, the first states, w, u, b and b_u."""
    wide = gates * SIZE
    return arrays((TIME, N, D), *[(N, SIZE)] * states, (D, wide), (SIZE, wide), (wide,), (wide,))


def agree(function: Any, theirs: Any, inputs: list[np.ndarray]) -> None:
    """Compare Σ cos(i)·out, and its gradient with respect to every input."""

    def weighted(*args: Any) -> Any:
        out = function(*args)
        return np.sum(out * np.cos(np.arange(np.prod(out.shape)).reshape(out.shape)))

    value, gradients = value_and_grad(weighted, argnums=tuple(range(len(inputs))))(*inputs)
    leaves = [torch.tensor(a, requires_grad=True) for a in inputs]
    out = theirs(*leaves)
    expected = (out * torch.cos(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-11)
    np.testing.assert_allclose(weighted(*inputs), expected.item(), rtol=1e-11)
    for ours, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(ours, leaf.grad, rtol=1e-9, atol=1e-11)


def looped(kind: str, xs: Any, states: tuple[Any, ...], w: Any, u: Any, b: Any, b_u: Any) -> torch.Tensor:
    cell = {"rnn": torch.rnn_tanh_cell, "lstm": torch.lstm_cell, "gru": torch.gru_cell}[kind]
    out, hidden = [], states if kind == "lstm" else states[0]
    for x in xs:
        hidden = cell(x, hidden, w.T, u.T, b, b_u)
        out.append(hidden[0] if kind == "lstm" else hidden)
    return torch.stack(out)


def test_rnn_is_pytorchs() -> None:
    def ours(xs: Any, h: Any, w: Any, u: Any, b: Any, b_u: Any) -> Any:
        out = []
        for x in xs:
            h = rnn_cell(x, h, w, u, b + b_u)
            out.append(h)
        return np.stack(out)

    agree(ours, lambda xs, h, *p: looped("rnn", xs, (h,), *p), parameters(1, 1))


@pytest.mark.parametrize("is_loop", [False, True])
def test_lstm_is_pytorchs(is_loop: bool) -> None:
    def ours(xs: Any, h: Any, c: Any, w: Any, u: Any, b: Any, b_u: Any) -> Any:
        if not is_loop:
            return lstm(xs, h, c, w, u, b + b_u)[0]
        out = []
        for x in xs:
            h, c = lstm_cell(x, h, c, w, u, b + b_u)
            out.append(h)
        return np.stack(out)

    agree(ours, lambda xs, h, c, *p: looped("lstm", xs, (h, c), *p), parameters(4, 2))


@pytest.mark.parametrize("is_loop", [False, True])
def test_gru_is_pytorchs(is_loop: bool) -> None:
    def ours(xs: Any, h: Any, w: Any, u: Any, b: Any, b_u: Any) -> Any:
        if not is_loop:
            return gru(xs, h, w, u, b, b_u)[0]
        out = []
        for x in xs:
            h = gru_cell(x, h, w, u, b, b_u)
            out.append(h)
        return np.stack(out)

    agree(ours, lambda xs, h, *p: looped("gru", xs, (h,), *p), parameters(3, 1))


def test_the_two_forms_of_a_gru() -> None:
    xs, h, w, u, b, b_u = parameters(3, 1)
    r, z = (1 / (1 + np.exp(-(xs[0] @ w + h @ u + b + b_u)[:, i * SIZE : (i + 1) * SIZE])) for i in (0, 1))
    new = (xs[0] @ w + b)[:, 2 * SIZE :] + (r * h) @ u[:, 2 * SIZE :] + b_u[2 * SIZE :]
    before = gru_cell(xs[0], h, w, u, b, b_u, reset_after=False)
    np.testing.assert_allclose(before, (1 - z) * np.tanh(new) + z * h, rtol=1e-12)
    assert not np.allclose(before, gru_cell(xs[0], h, w, u, b, b_u))


def test_the_last_state_is_returned() -> None:
    xs, h, c, w, u, b, _ = parameters(4, 2)
    states, (last, _) = lstm(xs, h, c, w, u, b)
    np.testing.assert_array_equal(states[-1], last)
    states, last = gru(*parameters(3, 1))
    np.testing.assert_array_equal(states[-1], last)
