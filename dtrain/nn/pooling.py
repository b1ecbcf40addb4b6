"""Pooling of one to three dimensions in PyTorch's layout: (n, channels, *size), channels before places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtrain.errors import InputError, ShapeError
from dtrain.graph.ops import pooling as ops
from dtrain.graph.ops.windows import windows
from dtrain.graph.tensor import format_line, user_line
from dtrain.nn.convolution import Sizes, per_axis


def _slide(op: str, x: Any, kernel: Sizes, stride: Sizes | None, padding: Sizes) -> dict[str, Any]:
    if not 3 <= x.ndim <= 5 or x.dtype.kind != "f":
        raise ShapeError(
            f"{op} at {format_line(user_line())}: expected floats (n, channels, *size) of 1 to 3 dimensions, got "
            f"{x.dtype} {x.shape}"
        )
    dims = x.ndim - 2
    sizes = per_axis(op, "kernel", kernel, dims, 1)
    steps = sizes if stride is None else per_axis(op, "stride", stride, dims, 1)
    around = per_axis(op, "padding", padding, dims, 0)
    if any(2 * p > k for p, k in zip(around, sizes, strict=True)):
        raise InputError(
            f"{op} at {format_line(user_line())}: expected padding of at most half the kernel {kernel!r}, got "
            f"{padding!r}"
        )
    slide = {"kernel": sizes, "stride": steps, "padding": tuple((p, p) for p in around), "dilation": (1,) * dims}
    try:
        windows(tuple(x.shape[2:]), **slide)
    except ValueError:
        raise ShapeError(
            f"{op} at {format_line(user_line())}: expected x with room for a window of kernel={kernel!r} and "
            f"padding={padding!r}, got {x.shape}"
        ) from None
    return slide


def max_pool(x: Any, kernel: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Any:
    """The largest of each window of x (n, channels, *size): (n, channels, *windows). ``stride`` is ``kernel`` if None.

    As torch.nn.functional.max_pool1d to 3d, but that ties share the gradient equally, as those of ``np.max``. Raises
    ShapeError for arrays that do not fit and InputError for settings, with the caller's line.
    """
    return ops.max_pool(x, **_slide("max_pool", x, kernel, stride, padding))


def avg_pool(
    x: Any, kernel: Sizes, stride: Sizes | None = None, padding: Sizes = 0, count_include_pad: bool = True
) -> Any:
    """The mean of each window of x (n, channels, *size), as torch.nn.functional.avg_pool1d to 3d. Errors as max_pool.

    ``count_include_pad`` says whether the zeros around x count as elements of a window.
    """
    slide = _slide("avg_pool", x, kernel, stride, padding)
    total = ops.sum_pool(x, **slide)
    if count_include_pad or not any(before for before, _ in slide["padding"]):
        return total / math.prod(slide["kernel"])
    return total / ops.sum_pool(np.ones((1, 1, *x.shape[2:]), x.dtype), **slide)
