"""Errors of the convolutions name the operation, both shapes and the caller's line, also on plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dtrain.errors import InputError, ShapeError
from dtrain.nn import conv, conv_transpose


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
