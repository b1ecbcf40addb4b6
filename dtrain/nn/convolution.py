"""Convolution of one to three dimensions in PyTorch's layout: (n, channels, *size), channels before places."""

from __future__ import annotations

from typing import Any

from dtrain.errors import InputError, ShapeError
from dtrain.graph.ops import batched_convolution as ops
from dtrain.graph.ops.windows import windows
from dtrain.graph.tensor import format_line, user_line

Sizes = int | tuple[int, ...]


def per_axis(op: str, name: str, value: Sizes, dims: int, least: int) -> tuple[int, ...]:
    """The setting of an operation as one integer for each dimension; InputError below ``least``."""
    sizes = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(sizes) != dims or any(not isinstance(v, int) or v < least for v in sizes):
        raise InputError(
            f"{op} at {format_line(user_line())}: expected {name} an integer of at least {least}, or {dims} of them, "
            f"got {value!r}"
        )
    return sizes


def _check(op: str, x: Any, w: Any, channels: int, groups: int, wanted: str) -> int:
    fits = x.ndim == w.ndim and 3 <= x.ndim <= 5
    per_axis(op, "groups", groups, 1, 1)
    if not fits or x.shape[1] != channels or w.shape[0] % groups or x.dtype.kind != "f" or w.dtype.kind != "f":
        raise ShapeError(
            f"{op} at {format_line(user_line())}: expected floats x (n, channels, *size) and w {wanted} of 1 to 3 "
            f"dimensions with groups={groups}, got {x.dtype} {x.shape} and {w.dtype} {w.shape}"
        )
    return int(x.ndim) - 2


def conv(x: Any, w: Any, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1, groups: int = 1) -> Any:
    """Σ w·x over the windows of x (n, channels, *size), w (out, channels/groups, *kernel): (n, out, *windows).

    As torch.nn.functional.conv1d to conv3d without the bias: add ``b[:, None, None]``. Raises ShapeError for arrays
    that do not fit and InputError for settings, with the caller's line.
    """
    dims = _check("conv", x, w, w.shape[1] * groups if w.ndim > 1 else 0, groups, "(out, channels/groups, *kernel)")
    slide = {
        "stride": per_axis("conv", "stride", stride, dims, 1),
        "padding": tuple((p, p) for p in per_axis("conv", "padding", padding, dims, 0)),
        "dilation": per_axis("conv", "dilation", dilation, dims, 1),
    }
    try:
        windows(tuple(x.shape[2:]), tuple(w.shape[2:]), **slide)
    except (ValueError, ZeroDivisionError):
        raise ShapeError(
            f"conv at {format_line(user_line())}: expected x with room for a window of w, got {x.shape} and {w.shape} "
            f"with padding={padding}, dilation={dilation}"
        ) from None
    return ops.conv(x, w, groups=groups, **slide)


def conv_transpose(
    x: Any,
    w: Any,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Any:
    """The adjoint of ``conv`` in its input: x (n, channels, *size), w (channels, out/groups, *kernel).

    As torch.nn.functional.conv_transpose1d to 3d; ``output_padding`` is below stride or dilation. Same errors.
    """
    op = "conv_transpose"
    dims = _check(op, x, w, w.shape[0] if w.ndim else 0, groups, "(channels, out/groups, *kernel)")
    s, p, d = (
        per_axis(op, "stride", stride, dims, 1),
        per_axis(op, "padding", padding, dims, 0),
        per_axis(op, "dilation", dilation, dims, 1),
    )
    more = per_axis(op, "output_padding", output_padding, dims, 0)
    size = tuple(
        (n - 1) * s[i] - 2 * p[i] + d[i] * (w.shape[2 + i] - 1) + more[i] + 1 for i, n in enumerate(x.shape[2:])
    )
    if any(m >= max(a, b) for m, a, b in zip(more, s, d, strict=True)):
        raise InputError(
            f"{op} at {format_line(user_line())}: expected output_padding below stride or dilation, got "
            f"{output_padding!r} with stride={stride!r}, dilation={dilation!r}"
        )
    slide = {"stride": s, "padding": tuple((v, v) for v in p), "dilation": d}
    try:
        if windows(size, tuple(w.shape[2:]), **slide).count != tuple(x.shape[2:]):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ShapeError(
            f"{op} at {format_line(user_line())}: no output of x {x.shape} and w {w.shape} with stride={stride}, "
            f"padding={padding}, output_padding={output_padding}, dilation={dilation}"
        ) from None
    return ops.conv_input(x, w, size=size, groups=groups, **slide)
