"""Pooling of random shapes, cut into blocks of any size, is PyTorch's; errors name the setting and the line."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dtrain.errors import InputError, ShapeError
from dtrain.graph import grad, vjp
from dtrain.graph.ops import pooling as ops
from dtrain.nn import avg_pool, max_pool


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_and_gradients_are_pytorchs_in_blocks_of_any_size(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 2, 3]))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    size, kernel, stride = sizes(1, 8), sizes(1, 4), sizes(1, 4)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    around = (0, 0, 0) if dims == 3 else padding  # PyTorch's avg_pool3d wants a volume as large as the kernel
    assume(all(n + 2 * p >= k for n, p, k in zip(size, around, kernel, strict=True)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = random.standard_normal((3, 5, *size))
    leaf = torch.tensor(x, requires_grad=True)
    max_of, avg_of = (getattr(torch.nn.functional, f"{kind}_pool{dims}d") for kind in ("max", "avg"))
    largest, mean = max_of(leaf, kernel, stride, padding), avg_of(leaf, kernel, stride, padding)
    g = random.standard_normal(largest.shape)
    of_largest, of_mean = (torch.autograd.grad(y, leaf, torch.tensor(g))[0] for y in (largest, mean))

    slide: dict[str, Any] = {"kernel": kernel, "stride": stride}
    slide |= {"padding": tuple((p, p) for p in padding), "dilation": (1,) * dims}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "BLOCK_BYTES", data.draw(st.sampled_from([1, 700, 2000, 1 << 20])))
        patch.setattr(np, "empty", lambda shape, dtype: np.full(shape, np.nan if dtype == x.dtype else 7, dtype))
        found = max_pool(x, kernel, stride, padding), avg_pool(x, kernel, stride, padding)
        back = ops.max_pool_input(g, x, found[0], **slide), ops.sum_pool_input(g / np.prod(kernel), size=size, **slide)
        taken = ops.max_pool_taken(x, x, found[0], **slide)
    for ours, theirs in zip((*found, *back), (largest.detach(), mean.detach(), of_largest, of_mean), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(taken, found[0])


def test_ties_share_the_gradient_and_infinities_stay_where_they_are() -> None:
    x = np.array([[[2.0, 2.0, 1.0, 3.0, 0.0, 0.0]]])
    found = grad(lambda a: np.sum(max_pool(a, 2) * np.array([1.0, np.inf, 6.0])))(x)
    np.testing.assert_array_equal(found, [[[0.5, 0.5, 0.0, np.inf, 3.0, 3.0]]])


def test_a_nan_shows() -> None:
    np.testing.assert_array_equal(max_pool(np.array([[[1.0, np.nan, 2.0, 3.0]]]), 2), [[[np.nan, 3.0]]])


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize(
    ("shape", "settings", "error", "message"),
    [
        ((2, 3), (2,), ShapeError, r"expected floats \(n, channels, \*size\) .*, got float64 \(2, 3\)"),
        ((2, 3, 5, 1), (2,), ShapeError, r"room for a window of kernel=2 and padding=0, got \(2, 3, 5, 1\)"),
        ((2, 3, 5, 5), ((2, 0),), InputError, "expected kernel an integer of at least 1, or 2 of them"),
        ((2, 3, 5, 5), (3, 2, 2), InputError, "expected padding of at most half the kernel 3, got 2"),
    ],
)
def test_mistakes_are_named(pool: Any, shape: Any, settings: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=rf"{pool.__name__} at \S*test_pooling.py:\d+: .*{message}"):
        pool(np.ones(shape), *settings)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_dilation_and_ceil_mode_are_pytorchs(dims: int, ceil_mode: bool) -> None:
    random, seen = np.random.default_rng(dims), 0
    max_of, avg_of = (getattr(torch.nn.functional, f"{kind}_pool{dims}d") for kind in ("max", "avg"))
    for kernel, stride, padding, dilation in itertools.product((2, 3), (1, 2, 3), (0, 1), (1, 2)):
        x = random.standard_normal((2, 2, *(7, 6, 5)[:dims]))
        slide: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        forms: list[Any] = [(partial(max_pool, dilation=dilation, **slide), max_of, (dilation, ceil_mode))]
        if dilation == 1:
            for included in (True, False):
                forms.append((partial(avg_pool, count_include_pad=included, **slide), avg_of, (ceil_mode, included)))
        for ours, theirs, more in forms:
            found, pullback = vjp(ours, x)
            there = torch.tensor(x, requires_grad=True)
            expected = theirs(there, kernel, stride, padding, *more)
            g = random.standard_normal(found.shape)
            (back,) = torch.autograd.grad(expected, there, torch.tensor(g))
            np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-13, atol=1e-14)
            np.testing.assert_allclose(pullback(g)[0], back.numpy(), rtol=1e-12, atol=1e-13)
            seen += 1
    assert seen == 24 + 2 * 12
