"""The table of what is covered: which NumPy function and array method is recorded by what.

The invariant: a function that is not in these tables raises UnsupportedFunctionError with its name; nothing is
silently evaluated.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dtrain.graph.operators import ACCUMULATIONS, FUNCTIONS, METHODS, REDUCTIONS, UFUNCS
from dtrain.graph.ops import (
    accumulate,
    applying,
    arrange,
    assignment,
    choice,
    complex_numbers,
    contraction,
    convolution,
    decomposition,
    differences,
    elementwise,
    fourier,
    indexing,
    joining,
    linear,
    making,
    order,
    padding,
    polynomials,
    reduction,
    shape,
    solving,
    statistics,
    transcendental,  # noqa: F401  (its ufuncs are found among the primitives)
)
from dtrain.graph.primitive import PRIMITIVES, Ufunc
from dtrain.graph.tensor import Tensor


def _static(name: str) -> Any:
    """Answer a question about shape or dtype, which is not recorded."""
    return lambda x, *args: getattr(x, name)


def _size(x: Any, axis: Any = None) -> int:
    return int(x.size) if axis is None else int(x.shape[axis])


def _result_type(*operands: Any) -> np.dtype[Any]:
    return np.result_type(*[o.dtype if isinstance(o, Tensor) else o for o in operands])


def _isclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> Any:
    near = np.logical_and(np.abs(a - b) <= atol + rtol * np.abs(b), np.isfinite(b))
    same = np.logical_or(near, np.equal(a, b))
    return np.logical_or(same, np.logical_and(np.isnan(a), np.isnan(b))) if equal_nan else same


def _allclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> Any:
    return np.all(_isclose(a, b, rtol, atol, equal_nan))


def _array_equiv(a: Any, b: Any) -> Any:
    try:
        np.broadcast_shapes(np.shape(a), np.shape(b))
    except ValueError:
        return False
    return np.all(np.equal(a, b))


def _isin(element: Any, test_elements: Any, assume_unique: bool = False, invert: bool = False, **kind: Any) -> Any:
    found = np.any(np.expand_dims(element, -1) == np.ravel(test_elements), axis=-1)
    return np.logical_not(found) if invert else found


def _array_equal(a: Any, b: Any, equal_nan: bool = False) -> Any:
    if np.shape(a) != np.shape(b):
        return False
    same = a == b
    return np.all(np.logical_or(same, np.logical_and(a != a, b != b)) if equal_nan else same)


def _is_complex(x: Any) -> bool:
    return bool(x.dtype.kind == "c")


def _is_real(x: Any) -> bool:
    return bool(x.dtype.kind != "c")


UFUNCS.update({op.ufunc: op for op in PRIMITIVES.values() if isinstance(op, Ufunc)})
UFUNCS.update(
    {
        np.maximum: choice.relu_or_maximum,
        np.power: elementwise.power,
        np.float_power: elementwise.float_power,
        np.fabs: elementwise.fabs,
        np.divmod: elementwise.divmod_,
        np.modf: elementwise.modf,
        np.ldexp: elementwise.ldexp,
        np.conjugate: complex_numbers.conjugate,
        np.matmul: linear.matmul,
        np.vecdot: contraction.vecdot,
        np.matvec: contraction.matvec,
        np.vecmat: contraction.vecmat,
    }
)

REDUCTIONS.update(
    {
        np.add: reduction.of_ufunc(reduction.sum),
        np.multiply: reduction.of_ufunc(reduction.prod),
        np.maximum: reduction.of_ufunc(reduction.max),
        np.minimum: reduction.of_ufunc(reduction.min),
        np.logical_and: reduction.of_ufunc(reduction.all),
        np.logical_or: reduction.of_ufunc(reduction.any),
    }
)

ACCUMULATIONS.update(
    {
        np.add: accumulate.of_ufunc(accumulate.cumsum),
        np.multiply: accumulate.of_ufunc(accumulate.cumprod),
        np.maximum: accumulate.running_maximum,
        np.minimum: accumulate.running_minimum,
    }
)

FUNCTIONS.update(  # elementwise
    {
        np.where: choice.where,
        np.clip: choice.clip,
        np.select: choice.choose_by_conditions,
        np.choose: choice.choose,
        np.nan_to_num: choice.nan_to_num,
        np.round: elementwise.round_,
        np.around: elementwise.round_,
        np.fix: np.trunc,
        np.sinc: elementwise.sinc,
        np.real: complex_numbers.real,
        np.imag: complex_numbers.imag,
        np.angle: complex_numbers.angle,
        np.real_if_close: complex_numbers.real_if_close,
        np.isclose: _isclose,
        np.isposinf: lambda x: np.equal(x, np.inf),
        np.isneginf: lambda x: np.equal(x, -np.inf),
        np.isin: _isin,
        np.array_equal: _array_equal,
        np.array_equiv: _array_equiv,
        np.allclose: _allclose,
    }
)

FUNCTIONS.update(  # reductions
    {
        np.sum: reduction.sum,
        np.prod: reduction.prod,
        np.max: reduction.max,
        np.amax: reduction.max,
        np.amin: reduction.min,
        np.min: reduction.min,
        np.all: reduction.all,
        np.any: reduction.any,
        np.argmax: reduction.argmax,
        np.argmin: reduction.argmin,
        np.mean: statistics.mean,
        np.var: statistics.var,
        np.std: statistics.std,
        np.average: statistics.average,
        np.ptp: statistics.ptp,
        np.count_nonzero: statistics.count_nonzero,
        np.cov: statistics.cov,
        np.corrcoef: statistics.corrcoef,
        np.nansum: statistics.nansum,
        np.nanprod: statistics.nanprod,
        np.nanmean: statistics.nanmean,
        np.nanvar: statistics.nanvar,
        np.nanstd: statistics.nanstd,
        np.nanmax: statistics.nanmax,
        np.nanmin: statistics.nanmin,
        np.nanargmax: statistics.nanargmax,
        np.nanargmin: statistics.nanargmin,
        np.cumsum: accumulate.cumsum,
        np.cumprod: accumulate.cumprod,
        np.nancumsum: accumulate.nancumsum,
        np.nancumprod: accumulate.nancumprod,
        np.cumulative_sum: accumulate.cumulative_sum,
        np.cumulative_prod: accumulate.cumulative_prod,
        np.sort: order.sort,
        np.argsort: order.argsort,
        np.partition: order.partition,
        np.argpartition: order.argpartition,
        np.searchsorted: order.searchsorted,
        np.digitize: order.digitize,
        np.median: order.median,
        np.nanmedian: order.nanmedian,
        np.quantile: order.quantile,
        np.percentile: order.percentile,
        np.nanquantile: order.nanquantile,
        np.nanpercentile: order.nanpercentile,
        np.sort_complex: order.sort_complex,
        np.lexsort: order.lexsort,
    }
)

FUNCTIONS.update(
    {
        np.reshape: shape.reshape,
        np.ravel: shape.ravel,
        np.transpose: shape.transpose,
        np.swapaxes: shape.swapaxes,
        np.moveaxis: shape.moveaxis,
        np.expand_dims: shape.expand_dims,
        np.squeeze: shape.squeeze,
        np.broadcast_to: shape.broadcast_to,
        np.concatenate: shape.concatenate,
        np.stack: joining.stack,
        np.vstack: joining.vstack,
        np.hstack: joining.hstack,
        np.split: joining.split,
        np.atleast_1d: joining.atleast_1d,
        np.copy: shape.copy,
        np.astype: shape.astype,
        np.zeros_like: shape.zeros_like,
        np.ones_like: shape.ones_like,
        np.full_like: shape.full_like,
        np.roll: arrange.roll,
        np.flip: arrange.flip,
        np.tile: arrange.tile,
        np.flipud: arrange.flipud,
        np.fliplr: arrange.fliplr,
        np.rot90: arrange.rot90,
        np.resize: arrange.resize,
        np.diag: arrange.diag,
        np.diagflat: arrange.diagflat,
        np.diagonal: arrange.diagonal,
        np.trace: arrange.trace,
        np.linalg.diagonal: arrange.linalg_diagonal,
        np.linalg.trace: arrange.linalg_trace,
        np.compress: arrange.compress,
        np.extract: arrange.extract,
        np.delete: arrange.delete,
        np.insert: arrange.insert,
        np.bincount: arrange.bincount,
        np.matrix_transpose: shape.matrix_transpose,
        np.linalg.matrix_transpose: shape.matrix_transpose,
        np.rollaxis: shape.rollaxis,
        np.broadcast_arrays: shape.broadcast_arrays,
        np.empty_like: shape.zeros_like,
        np.atleast_2d: joining.atleast_2d,
        np.atleast_3d: joining.atleast_3d,
        np.dstack: joining.dstack,
        np.column_stack: joining.column_stack,
        np.append: joining.append,
        np.block: joining.block,
        np.array_split: joining.array_split,
        np.hsplit: joining.hsplit,
        np.vsplit: joining.vsplit,
        np.dsplit: joining.dsplit,
        np.unstack: joining.unstack,
        np.meshgrid: joining.meshgrid,
        np.diff: differences.diff,
        np.ediff1d: differences.ediff1d,
        np.gradient: differences.gradient,
        np.trapezoid: differences.trapezoid,
        np.interp: differences.interp,
        np.linspace: differences.linspace,
        np.logspace: differences.logspace,
        np.geomspace: differences.geomspace,
        np.unwrap: differences.unwrap,
        np.repeat: arrange.repeat,
        np.pad: padding.pad,
        np.tril: arrange.tril,
        np.triu: arrange.triu,
        np.take: indexing.take,
        np.take_along_axis: indexing.take_along_axis,
        np.shape: _static("shape"),
        np.ndim: _static("ndim"),
        np.size: _size,
        np.iscomplexobj: _is_complex,
        np.iscomplex: complex_numbers.iscomplex,
        np.isreal: complex_numbers.isreal,
        np.isrealobj: _is_real,
        np.result_type: _result_type,
    }
)

FUNCTIONS.update(  # with like=x of a traced x
    {
        np.array: making.array,
        np.asarray: partial(making.array, copy=False),
        np.asanyarray: partial(making.array, copy=False),
        np.full: making.full,
        np.zeros: making.zeros,
        np.empty: making.zeros,
        np.ones: making.ones,
    }
)

FUNCTIONS.update(  # products and linear algebra
    {
        np.dot: contraction.dot,
        np.inner: contraction.inner,
        np.vdot: contraction.vdot,
        np.outer: contraction.outer,
        np.tensordot: contraction.tensordot,
        np.einsum: contraction.einsum,
        np.kron: contraction.kron,
        np.cross: contraction.cross,
        np.convolve: convolution.convolve,
        np.correlate: convolution.correlate,
        np.linalg.matmul: linear.matmul,
        np.linalg.outer: contraction.outer,
        np.linalg.vecdot: contraction.linalg_vecdot,
        np.linalg.tensordot: contraction.linalg_tensordot,
        np.linalg.cross: contraction.linalg_cross,
        np.linalg.multi_dot: contraction.multi_dot,
        np.linalg.inv: solving.inv,
        np.linalg.pinv: solving.pinv,
        np.linalg.solve: solving.solve,
        np.linalg.lstsq: solving.lstsq,
        np.linalg.det: solving.det,
        np.linalg.slogdet: solving.slogdet,
        np.linalg.matrix_power: solving.matrix_power,
        np.linalg.matrix_rank: solving.matrix_rank,
        np.linalg.tensorinv: solving.tensorinv,
        np.linalg.tensorsolve: solving.tensorsolve,
        np.linalg.cholesky: decomposition.cholesky,
        np.linalg.qr: decomposition.qr,
        np.linalg.eigh: decomposition.eigh,
        np.linalg.eig: decomposition.eig,
        np.linalg.eigvals: decomposition.eigvals,
        np.linalg.eigvalsh: decomposition.eigvalsh,
        np.linalg.svd: decomposition.svd,
        np.linalg.svdvals: decomposition.svdvals,
        np.linalg.norm: decomposition.norm,
        np.linalg.vector_norm: decomposition.vector_norm,
        np.linalg.matrix_norm: decomposition.matrix_norm,
        np.linalg.cond: decomposition.cond,
    }
)

FUNCTIONS.update(  # polynomials, applied functions, indices, changes in place
    {
        np.polyval: polynomials.polyval,
        np.vander: polynomials.vander,
        np.poly: polynomials.poly,
        np.polyadd: polynomials.polyadd,
        np.polysub: polynomials.polysub,
        np.polymul: polynomials.polymul,
        np.polyder: polynomials.polyder,
        np.polyint: polynomials.polyint,
        np.polyfit: polynomials.polyfit,
        np.apply_along_axis: applying.apply_along_axis,
        np.apply_over_axes: applying.apply_over_axes,
        np.einsum_path: applying.einsum_path,
        np.diag_indices_from: applying.diag_indices_from,
        np.tril_indices_from: applying.tril_indices_from,
        np.triu_indices_from: applying.triu_indices_from,
        np.ix_: applying.ix_,
        np.nonzero: indexing.nonzero,
        np.argwhere: indexing.argwhere,
        np.flatnonzero: indexing.flatnonzero,
        np.copyto: assignment.copyto,
        np.fill_diagonal: assignment.fill_diagonal,
        np.put: assignment.put,
        np.put_along_axis: assignment.put_along_axis,
    }
)

FUNCTIONS.update(  # Fourier transforms: np.fft.fft is fourier.fft, and so on
    {
        getattr(np.fft, name): getattr(fourier, name)
        for name in (
            *("fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2"),
            *("fftn", "ifftn", "rfftn", "irfftn", "fftshift", "ifftshift"),
        )
    }
)

METHODS.update(
    {
        "getitem": indexing.getitem,
        "setitem": assignment.setitem,
        "in_place": assignment.in_place,
        "transpose": shape.transpose,
        "sum": reduction.sum,
        "mean": statistics.mean,
        "max": reduction.max,
        "min": reduction.min,
        "prod": reduction.prod,
        "var": statistics.var,
        "std": statistics.std,
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
        "cumsum": accumulate.cumsum,
        "cumprod": accumulate.cumprod,
        "ptp": statistics.ptp,
        "argsort": order.argsort,
        "argpartition": order.argpartition,
        "searchsorted": order.searchsorted,
        "round": elementwise.round_,
        "choose": choice.choose,
        "conj": complex_numbers.conjugate,
        "conjugate": complex_numbers.conjugate,
        "real": complex_numbers.real,
        "imag": complex_numbers.imag,
        "repeat": arrange.repeat,
        "diagonal": arrange.diagonal,
        "trace": arrange.trace,
        "compress": arrange.compress_method,
        "nonzero": indexing.nonzero,
        "put": assignment.put,
        "mT": shape.matrix_transpose,
        "dot": contraction.dot,
        "clip": choice.clip,
    }
)
