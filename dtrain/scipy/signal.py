"""scipy.signal: convolution and correlation of arrays of any number of axes, of traced and of plain arrays.

Every name of scipy.signal is here; those that are defined below can be recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import signal

from dtrain.errors import ShapeError
from dtrain.graph import Tensor
from dtrain.graph.ops.batched_convolution import conv
from dtrain.graph.ops.contraction import pair
from dtrain.graph.tensor import format_line, user_line

__all__ = ["convolve", "correlate", "fftconvolve"]


def __getattr__(name: str) -> Any:
    return getattr(signal, name)


def _both(name: str, in1: Any, in2: Any, mode: str) -> tuple[Any, Any]:
    if isinstance(in1, Tensor) or isinstance(in2, Tensor):
        x, y = pair(in1, in2)
    else:
        x, y = np.asarray(in1), np.asarray(in2)
    where = format_line(user_line())
    if x.ndim != y.ndim:
        raise ShapeError(f"{name} at {where}: expected two arrays of as many axes, got {x.shape} and {y.shape}")
    if mode not in ("full", "same", "valid"):
        raise ValueError(f"{name} at {where}: mode is full, same or valid, got {mode!r}")
    if mode == "valid":
        fits = [n >= m for n, m in zip(x.shape, y.shape, strict=True)]
        if not all(fits) and any(n > m for n, m in zip(x.shape, y.shape, strict=True)):
            raise ShapeError(
                f"{name} at {where}: in mode valid one array is the larger along every axis, got {x.shape} "
                f"and {y.shape}"
            )
    return x, y


def _is_smaller(x: Any, y: Any) -> bool:
    return any(n < m for n, m in zip(x.shape, y.shape, strict=True))


def _part(full: Any, x: Any, y: Any, mode: str) -> Any:
    """Take what a mode keeps of the full convolution."""
    if mode == "full":
        return full
    if mode == "same":
        starts = [(m - 1) // 2 for m in y.shape]
        sizes = x.shape
    else:
        starts = [min(n, m) - 1 for n, m in zip(x.shape, y.shape, strict=True)]
        sizes = tuple([max(n, m) - min(n, m) + 1 for n, m in zip(x.shape, y.shape, strict=True)])
    return full[tuple([slice(start, start + n) for start, n in zip(starts, sizes, strict=True)])]


def convolve(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Any:
    """Return the convolution of two arrays of as many axes; `mode` is full, same (the shape of in1, centred) or valid
    (without the borders). The method is always direct."""
    x, y = _both("convolve", in1, in2, mode)
    if x.ndim == 0:
        return x * y
    if x.ndim == 1 and x.dtype.kind == y.dtype.kind == "f":
        return _part(np.convolve(x, y), x, y, mode)
    if mode == "valid" and _is_smaller(x, y):
        x, y = y, x
    if x.dtype.kind == "c" or y.dtype.kind == "c":
        return _complex_convolve(x, y, mode)
    ones = (1,) * x.ndim
    edges = [(0, 0) if mode == "valid" else (m - 1, m - 1) for m in y.shape]
    turned = np.flip(y)
    found = conv(x[None, None], turned[None, None], groups=1, stride=ones, padding=tuple(edges), dilation=ones)[0, 0]
    return _part(found, x, y, mode) if mode == "same" else found


def _complex_convolve(x: Any, y: Any, mode: str) -> Any:
    a, b, c, d = np.real(x), np.imag(x), np.real(y), np.imag(y)
    real = convolve(a, c, mode) - convolve(b, d, mode)
    return real + 1j * (convolve(a, d, mode) + convolve(b, c, mode))


def correlate(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Any:
    """Return the correlation of two arrays of as many axes: the convolution with in2 turned and conjugated."""
    x, y = _both("correlate", in1, in2, mode)
    return convolve(x, np.flip(np.conjugate(y)), mode)


def fftconvolve(in1: Any, in2: Any, mode: str = "full", axes: None = None) -> Any:
    """Return the convolution by Fourier transforms, along all axes."""
    x, y = _both("fftconvolve", in1, in2, mode)
    if axes is not None:
        raise ValueError(f"fftconvolve at {format_line(user_line())}: axes= of a part of the axes is not covered")
    size = tuple([n + m - 1 for n, m in zip(x.shape, y.shape, strict=True)])
    if x.ndim == 0:
        return x * y
    is_complex = "c" in (x.dtype.kind, y.dtype.kind)
    to, back = (np.fft.fftn, np.fft.ifftn) if is_complex else (np.fft.rfftn, np.fft.irfftn)
    every = tuple(range(x.ndim))
    return _part(back(to(x, size, every) * to(y, size, every), size, every), x, y, mode)
