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


def _slide(
    op: str, x: Any, kernel: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> dict[str, Any]:
    if not 3 <= x.ndim <= 5 or x.dtype.kind != "f":
        raise ShapeError(
            f"{op} at {format_line(user_line())}: expected floats (n, channels, *size) of 1 to 3 dimensions, got "
            f"{x.dtype} {x.shape}"
        )
    dims = x.ndim - 2
    sizes = per_axis(op, "kernel", kernel, dims, 1)
    steps = sizes if stride is None else per_axis(op, "stride", stride, dims, 1)
    around = per_axis(op, "padding", padding, dims, 0)
    apart = per_axis(op, "dilation", dilation, dims, 1)
    widths = [d * (k - 1) + 1 for k, d in zip(sizes, apart, strict=True)]
    if any(2 * p > k for p, k in zip(around, widths, strict=True)):
        raise InputError(
            f"{op} at {format_line(user_line())}: expected padding of at most half the kernel {kernel!r}, got "
            f"{padding!r}"
        )
    more = [
        _missing(n, p, width, s) if ceil_mode else 0
        for n, p, width, s in zip(x.shape[2:], around, widths, steps, strict=True)
    ]
    pairs = tuple((p, p + m) for p, m in zip(around, more, strict=True))
    slide = {"kernel": sizes, "stride": steps, "padding": pairs, "dilation": apart}
    try:
        windows(tuple(x.shape[2:]), **slide)
    except ValueError:
        raise ShapeError(
            f"{op} at {format_line(user_line())}: expected x with room for a window of kernel={kernel!r} and "
            f"padding={padding!r}, got {x.shape}"
        ) from None
    return slide


def _missing(n: int, padding: int, width: int, stride: int) -> int:
    """How far a last window that begins inside of x or of what is before it reaches over the padding behind it."""
    rest = n + 2 * padding - width
    last = -(-rest // stride) * stride
    if last >= n + padding:
        last -= stride
    return max(last - rest, 0)


def max_pool(
    x: Any,
    kernel: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Any:
    """The largest of each window of x (n, channels, *size): (n, channels, *windows). ``stride`` is ``kernel`` if None.

    A window's elements are ``dilation`` apart. With ``ceil_mode`` there is a last window that x fills in part. As
    torch.nn.functional.max_pool1d to 3d, but that ties share the gradient equally, as those of ``np.max``. Raises
    ShapeError for arrays that do not fit and InputError for settings, with the caller's line.
    """
    return ops.max_pool(x, **_slide("max_pool", x, kernel, stride, padding, dilation, ceil_mode))


def avg_pool(
    x: Any,
    kernel: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    count_include_pad: bool = True,
    ceil_mode: bool = False,
) -> Any:
    """The mean of each window of x (n, channels, *size), as torch.nn.functional.avg_pool1d to 3d. Errors as max_pool.

    ``count_include_pad`` says whether the zeros of the padding count as elements of a window; what a last window of
    ``ceil_mode`` has beyond them never does.
    """
    slide = _slide("avg_pool", x, kernel, stride, padding, 1, ceil_mode)
    total = ops.sum_pool(x, **slide)
    is_partial = any(after > before for before, after in slide["padding"])
    if not is_partial and (count_include_pad or not any(before for before, _ in slide["padding"])):
        return total / math.prod(slide["kernel"])
    size = x.shape[2:]
    if count_include_pad:
        size = tuple([n + 2 * before for n, (before, _) in zip(size, slide["padding"], strict=True)])
        slide = {**slide, "padding": tuple((0, after - before) for before, after in slide["padding"])}
    return total / ops.sum_pool(np.ones((1, 1, *size), x.dtype), **slide)
