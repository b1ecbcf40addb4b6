"""New arrays beside a traced one, `np.array(list, like=x)`: NumPy asks x how an array is to be made (NEP 35)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph.primitive import as_tensor
from dtrain.graph.tensor import Tensor, holds_tensor


def _tensor(x: Any, dtype: Any) -> Tensor:
    if not isinstance(x, Tensor) and not holds_tensor(x):
        return as_tensor(np.asarray(x, dtype))
    x = as_tensor(x)
    return x if dtype is None or x.dtype == dtype else x.astype(dtype)  # type: ignore[no-any-return]


def array(object: Any, dtype: Any = None, *, copy: Any = True, order: Any = None, **options: Any) -> Any:
    """Record np.array, np.asarray and np.asanyarray with `like=`: nested lists of numbers, traced or not."""
    x = _tensor(object, dtype)
    while x.ndim < options.get("ndmin", 0):
        x = x[None]
    return np.copy(x) if copy and isinstance(object, Tensor) else x


def full(shape: Any, fill_value: Any, dtype: Any = None, order: Any = None, **options: Any) -> Any:
    """Record np.full with `like=`."""
    return np.copy(np.broadcast_to(_tensor(fill_value, dtype), shape))


def zeros(shape: Any, dtype: Any = float, order: Any = None, **options: Any) -> Any:
    """Record np.zeros and np.empty with `like=`: an array to assign into."""
    return full(shape, 0.0, dtype)


def ones(shape: Any, dtype: Any = None, order: Any = None, **options: Any) -> Any:
    """Record np.ones with `like=`."""
    return full(shape, 1.0, dtype)
