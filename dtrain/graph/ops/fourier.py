# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Discrete Fourier transforms along one axis as primitives; those of several axes are composed of them.

The transform is a symmetric matrix, so its adjoint (see `complex_numbers.py`) is itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dtrain.graph.ops.reduction import normalize_axes
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record

_OPPOSITE = {"backward": "forward", "forward": "backward", "ortho": "ortho"}


def _complex(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.result_type(dtype, np.complex64) if dtype.kind in "fc" else np.dtype(np.complex128)


def _same_shape(x: Any, *, axis: int, norm: str) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, _complex(x.dtype)


def _half_shape(x: Any, *, axis: int, norm: str) -> tuple[Shape, np.dtype[Any]]:
    n = x.shape[axis] // 2 + 1
    return (*x.shape[:axis], n, *x.shape[axis + 1 :]), _complex(x.dtype)


def _full_shape(x: Any, *, n: int, axis: int, norm: str) -> tuple[Shape, np.dtype[Any]]:
    dtype = np.dtype(np.float32) if _complex(x.dtype) == np.complex64 else np.dtype(np.float64)
    return (*x.shape[:axis], n, *x.shape[axis + 1 :]), dtype


def _binder(function: Callable[..., Any]) -> Callable[..., Call]:
    def bind(out: np.ndarray, x: np.ndarray, **static: Any) -> Call:
        return lambda: np.copyto(out, function(x, **static))

    return bind


def _along(x: Any, axis: int, start: Any, stop: Any) -> Any:
    return x[(slice(None),) * axis + (slice(start, stop),)]


def _widths(x: Any, axis: int, after: int) -> list[tuple[int, int]]:
    return [(0, after if i == axis else 0) for i in range(x.ndim)]


@primitive(shape=_same_shape, bind=_binder(np.fft.fft), name="fft")
def fft_(g, out, x, *, axis, norm):
    """np.fft.fft along one axis."""
    return fft_(g, axis=axis, norm=norm)


@primitive(shape=_same_shape, bind=_binder(np.fft.ifft), name="ifft")
def ifft_(g, out, x, *, axis, norm):
    """np.fft.ifft along one axis."""
    return ifft_(g, axis=axis, norm=norm)


@primitive(shape=_half_shape, bind=_binder(np.fft.rfft), name="rfft")
def rfft_(g, out, x, *, axis, norm):
    """np.fft.rfft along one axis: the first half of the transform of real numbers."""
    wide = np.pad(g, _widths(g, axis, x.shape[axis] - g.shape[axis]))
    return np.real(fft_(wide, axis=axis, norm=norm))


@primitive(shape=_full_shape, bind=_binder(np.fft.irfft), name="irfft")
def irfft_(g, out, z, *, n, axis, norm):
    """np.fft.irfft along one axis: real numbers from the first half; the halves that are not there count twice."""
    weights = np.full(z.shape[axis], 2.0, g.dtype)
    weights[0] = 1.0
    if n % 2 == 0:
        weights[-1] = 1.0
    half = np.conjugate(rfft_(g, axis=axis, norm=_OPPOSITE[norm]))
    return half * weights.reshape([-1 if i == axis else 1 for i in range(z.ndim)])


def _sized(x: Any, axis: int, n: Any) -> Any:
    """Cut or fill an axis with zeros to the length n."""
    if n is None or n == x.shape[axis]:
        return x
    return _along(x, axis, 0, int(n)) if n < x.shape[axis] else np.pad(x, _widths(x, axis, int(n) - x.shape[axis]))


def _one(op: Any, name: str) -> Any:
    def transform(a: Any, n: Any = None, axis: int = -1, norm: Any = None, out: None = None) -> Any:
        x = as_tensor(a)
        (axis,) = normalize_axes(axis, x.ndim)
        if n is not None and n < 1:
            raise ValueError(f"np.fft.{name}: expected at least one point, got n={n}")
        return record(op, (_sized(x, axis, n),), {"axis": axis, "norm": norm or "backward"})

    transform.__name__ = name
    transform.__doc__ = f"Record np.fft.{name}."
    return transform


fft, ifft, rfft = _one(fft_, "fft"), _one(ifft_, "ifft"), _one(rfft_, "rfft")


def irfft(a: Any, n: Any = None, axis: int = -1, norm: Any = None, out: None = None) -> Any:
    """Record np.fft.irfft."""
    x = as_tensor(a)
    (axis,) = normalize_axes(axis, x.ndim)
    n = 2 * (x.shape[axis] - 1) if n is None else int(n)
    return record(irfft_, (_sized(x, axis, n // 2 + 1),), {"n": n, "axis": axis, "norm": norm or "backward"})


def hfft(a: Any, n: Any = None, axis: int = -1, norm: Any = None, out: None = None) -> Any:
    """Record np.fft.hfft."""
    return irfft(np.conjugate(a), n, axis, _OPPOSITE[norm or "backward"])


def ihfft(a: Any, n: Any = None, axis: int = -1, norm: Any = None, out: None = None) -> Any:
    """Record np.fft.ihfft."""
    return np.conjugate(rfft(a, n, axis, _OPPOSITE[norm or "backward"]))


def _axes(x: Any, s: Any, axes: Any) -> list[tuple[int, Any]]:
    if axes is None:
        axes = range(x.ndim) if s is None else range(x.ndim - len(s), x.ndim)
    axes = [int(a) % x.ndim for a in axes]
    sizes = [None] * len(axes) if s is None else [None if n == -1 else n for n in s]
    return list(zip(axes, sizes, strict=True))


def _many(transform: Any, default: Any) -> Any:
    def run(a: Any, s: Any = None, axes: Any = default, norm: Any = None, out: None = None) -> Any:
        x = as_tensor(a)
        for axis, n in reversed(_axes(x, s, axes)):
            x = transform(x, n, axis, norm)
        return x

    return run


def _different(axes: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    if len({axis for axis, _ in axes}) < len(axes):
        raise ValueError("np.fft: a transform of real numbers takes each axis once; call the one-dimensional ones")
    return axes


def _many_real(default: Any) -> Any:
    def run(a: Any, s: Any = None, axes: Any = default, norm: Any = None, out: None = None) -> Any:
        x = as_tensor(a)
        *others, (axis, n) = _different(_axes(x, s, axes))
        x = rfft(x, n, axis, norm)
        for axis, n in reversed(others):
            x = fft(x, n, axis, norm)
        return x

    return run


def _many_to_real(default: Any) -> Any:
    def run(a: Any, s: Any = None, axes: Any = default, norm: Any = None, out: None = None) -> Any:
        x = as_tensor(a)
        *others, (last, n) = _different(_axes(x, s, axes))
        for axis, size in others:
            x = ifft(x, size, axis, norm)
        return irfft(x, n, last, norm)

    return run


fft2, ifft2, rfft2, irfft2 = _many(fft, (-2, -1)), _many(ifft, (-2, -1)), _many_real((-2, -1)), _many_to_real((-2, -1))
fftn, ifftn, rfftn, irfftn = _many(fft, None), _many(ifft, None), _many_real(None), _many_to_real(None)


def _shift(sign: int) -> Any:
    def shift(x: Any, axes: Any = None) -> Any:
        x = as_tensor(x)
        places = normalize_axes(axes, x.ndim)
        return np.roll(x, [n // 2 if sign > 0 else -(n // 2) for n in (x.shape[a] for a in places)], places)

    return shift


fftshift, ifftshift = _shift(1), _shift(-1)
