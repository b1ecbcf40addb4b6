"""Convolutions of random shapes, cut into blocks of any size, are PyTorch's; errors name the shapes and the line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dtrain.errors import InputError, ShapeError
from dtrain.graph.ops import batched_convolution as ops
from dtrain.nn import conv, conv_transpose


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_three_kernels_are_pytorchs_in_blocks_of_any_size(data: st.DataObject) -> None:
    dims, groups, samples = data.draw(st.sampled_from([1, 2, 2, 3])), data.draw(st.integers(1, 3)), 3

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    size, kernel, stride, padding, dilation = sizes(1, 8), sizes(1, 3), sizes(1, 3), sizes(0, 2), sizes(1, 3)
    assume(all(n + 2 * p > d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = random.standard_normal((samples, groups * data.draw(st.integers(1, 2)), *size))
    w = random.standard_normal((groups * data.draw(st.integers(1, 2)), x.shape[1] // groups, *kernel))
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    expected = getattr(torch.nn.functional, f"conv{dims}d")(*leaves, None, stride, padding, dilation, groups)
    g = random.standard_normal(expected.shape)
    expected.backward(torch.tensor(g))

    slide = {"stride": stride, "padding": tuple((p, p) for p in padding), "dilation": dilation, "groups": groups}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "BLOCK_BYTES", data.draw(st.sampled_from([1, 200, 1000, 1 << 20])))
        patch.setattr(np, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))  # nothing is read before written
        found = (
            ops.conv(x, w, **slide),
            ops.conv_input(g, w, size=size, **slide),
            ops.conv_weight(x, g, kernel=kernel, **slide),
        )
    for ours, theirs in zip(found, (expected.detach(), leaves[0].grad, leaves[1].grad), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "error", "message"),
    [
        ((2, 3, 5, 5), (4, 2, 3, 3), {}, ShapeError, r"got float64 \(2, 3, 5, 5\) and float64 \(4, 2, 3, 3\)"),
        ((2, 3, 2, 5), (4, 3, 3, 3), {}, ShapeError, r"room for a window of w, got \(2, 3, 2, 5\)"),
        ((2, 3, 5, 5), (4, 3, 3, 3), {"stride": 0}, InputError, "expected stride an integer of at least 1"),
    ],
)
def test_mistakes_are_named(shape: Any, kernel: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=rf"conv at \S*test_convolution.py:\d+: .*{message}"):
        conv(np.ones(shape), np.ones(kernel), **options)


def test_output_padding_is_below_the_stride() -> None:
    with pytest.raises(InputError, match=r"conv_transpose at \S*test_convolution.py:\d+: expected output_padding"):
        conv_transpose(np.ones((1, 2, 3)), np.ones((2, 2, 3)), 2, output_padding=2)
