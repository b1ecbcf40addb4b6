"""The table of what is covered: which NumPy function and array method is recorded by what.

The invariant: a function that is not in these tables raises UnsupportedFunctionError with its name; nothing is
silently evaluated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph.operators import FUNCTIONS, METHODS, REDUCTIONS, UFUNCS
from dtrain.graph.ops import arrange, elementwise, indexing, linear, reduction, shape
from dtrain.graph.primitive import PRIMITIVES, Ufunc
from dtrain.graph.tensor import Tensor


def _static(name: str) -> Any:
    """Answer a question about shape or dtype, which is not recorded."""
    return lambda x, *args: getattr(x, name)


def _size(x: Any, axis: Any = None) -> int:
    return int(x.size) if axis is None else int(x.shape[axis])


def _result_type(*operands: Any) -> np.dtype[Any]:
    return np.result_type(*[o.dtype if isinstance(o, Tensor) else o for o in operands])


def _atleast_1d(x: Any) -> Any:
    return x if x.ndim else np.reshape(x, (1,))


def _float_power(x: Any, y: Any) -> Any:
    """np.float_power computes in float64 at least."""
    x, y = (shape.astype(o, np.float64) if isinstance(o, Tensor) else np.asarray(o, np.float64)[()] for o in (x, y))
    return elementwise.power(x, y)


def _isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> Any:
    return np.abs(a - b) <= atol + rtol * np.abs(b)


UFUNCS.update({op.ufunc: op for op in PRIMITIVES.values() if isinstance(op, Ufunc)})
UFUNCS[np.maximum] = elementwise.relu_or_maximum
UFUNCS[np.power] = elementwise.power
UFUNCS[np.float_power] = _float_power
UFUNCS[np.fabs] = elementwise.absolute
UFUNCS[np.matmul] = linear.matmul
UFUNCS[np.vecdot] = arrange.vecdot
UFUNCS[np.conjugate] = lambda x: x

REDUCTIONS.update(
    {
        np.add: reduction.add_reduce,
        np.maximum: reduction.max_reduce,
        np.minimum: reduction.min_reduce,
    }
)

FUNCTIONS.update(
    {
        np.sum: reduction.sum,
        np.mean: reduction.mean,
        np.max: reduction.max,
        np.amax: reduction.max,
        np.amin: reduction.min,
        np.min: reduction.min,
        np.prod: reduction.prod,
        np.var: reduction.var,
        np.std: reduction.std,
        np.all: reduction.all,
        np.any: reduction.any,
        np.argmax: reduction.argmax,
        np.argmin: reduction.argmin,
        np.where: elementwise.where,
        np.clip: elementwise.clip,
        np.reshape: shape.reshape,
        np.ravel: shape.ravel,
        np.transpose: shape.transpose,
        np.swapaxes: shape.swapaxes,
        np.moveaxis: shape.moveaxis,
        np.expand_dims: shape.expand_dims,
        np.squeeze: shape.squeeze,
        np.broadcast_to: shape.broadcast_to,
        np.concatenate: shape.concatenate,
        np.stack: shape.stack,
        np.vstack: shape.vstack,
        np.hstack: shape.hstack,
        np.split: shape.split,
        np.atleast_1d: _atleast_1d,
        np.copy: shape.copy,
        np.astype: shape.astype,
        np.zeros_like: shape.zeros_like,
        np.ones_like: shape.ones_like,
        np.full_like: shape.full_like,
        np.roll: arrange.roll,
        np.flip: arrange.flip,
        np.tile: arrange.tile,
        np.repeat: arrange.repeat,
        np.pad: arrange.pad,
        np.tril: arrange.tril,
        np.triu: arrange.triu,
        np.cumsum: arrange.cumsum,
        np.take: indexing.take,
        np.take_along_axis: indexing.take_along_axis,
        np.dot: linear.dot,
        np.inner: linear.inner,
        np.outer: linear.outer,
        np.tensordot: linear.tensordot,
        np.einsum: linear.einsum,
        np.trace: linear.trace,
        np.linalg.norm: linear.norm,
        np.isclose: _isclose,
        np.shape: _static("shape"),
        np.ndim: _static("ndim"),
        np.size: _size,
        np.result_type: _result_type,
    }
)

METHODS.update(
    {
        "getitem": indexing.getitem,
        "transpose": shape.transpose,
        "sum": reduction.sum,
        "mean": reduction.mean,
        "max": reduction.max,
        "min": reduction.min,
        "prod": reduction.prod,
        "var": reduction.var,
        "std": reduction.std,
        "all": reduction.all,
        "any": reduction.any,
        "argmax": reduction.argmax,
        "argmin": reduction.argmin,
        "reshape": shape.reshape,
        "ravel": shape.ravel,
        "flatten": shape.ravel,
        "swapaxes": shape.swapaxes,
        "squeeze": shape.squeeze,
        "astype": shape.astype,
        "copy": shape.copy,
        "take": indexing.take,
        "cumsum": arrange.cumsum,
        "repeat": arrange.repeat,
        "dot": linear.dot,
        "clip": elementwise.clip,
    }
)
