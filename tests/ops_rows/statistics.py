"""Rows of masked reductions, statistics, reductions that skip nan, running reductions and sorting."""

from __future__ import annotations

import numpy as np
import torch

from tests.ops_samples import CUBE, MASK, POSITIVE, V, X, Y, real, row, tensor

M = tensor(MASK)
NAN = np.where(MASK, np.nan, 0.0)
HOLES = ~np.isnan(NAN)
nan = tensor(NAN)

row("sum where", lambda x: np.sum(x, axis=1, where=MASK, initial=2.0), lambda x: (x * M).sum(1) + 2, X)
row("x.sum where", lambda x: x.sum(where=x > 0), lambda x: torch.relu(x).sum(), X)
row("prod where", lambda x: np.prod(x, axis=0, where=MASK, initial=2.0), lambda x: 2 * torch.where(M, x, 1).prod(0), X)
row("max where", lambda x: np.max(x, axis=1, where=MASK, initial=-1.37),
    lambda x: torch.where(M, x, -1.37).amax(1).clip(-1.37), X)  # fmt: skip
row("min where", lambda x: x.min(axis=1, where=MASK, initial=0.03), lambda x: torch.where(M, x, 0.03).amin(1), X)
row("max of empty", lambda x: np.max(x, axis=0, initial=1.0), None, np.zeros((0, 3)))
row("mean where", lambda x: np.mean(x, axis=1, where=MASK), lambda x: (x * M).sum(1) / M.sum(1), X)
row("var where", lambda x: np.var(x, axis=0, where=MASK | (X > 0), ddof=0.5), None, X)
row("std where", lambda x: x.std(axis=1, where=~MASK, keepdims=True), None, X)
row("var correction", lambda x: np.var(x, axis=1, correction=1), lambda x: torch.var(x, 1), X)
row("all any where", lambda x: x * (np.all(x > 0, where=x > 0) & np.any(x > 0, where=MASK)), lambda x: x * 1, X)
row("multiply.reduce", lambda x: np.multiply.reduce(x, axis=1), lambda x: x.prod(1), X)
row("logical.reduce", lambda x: x * (np.logical_and.reduce(x > 0, axis=1, keepdims=True) | np.logical_or.reduce(x > 1)),
    None, X)  # fmt: skip
row("add.reduce where", lambda x: np.add.reduce(x, where=MASK), lambda x: (x * M).sum(0), X)
row("mean of complex", lambda x, y: np.var(x + 1j * y, axis=1) + np.mean(x + 1j * y, axis=1).imag,
    lambda x, y: torch.var(torch.complex(x, y), 1, correction=0) + y.mean(1), X, Y)  # fmt: skip

row("average", lambda x: np.average(x, axis=1), lambda x: x.mean(1), X)
row("average by weights", lambda x, w: np.average(x, axis=1, weights=w), lambda x, w: (x * w).sum(1) / w.sum(1), X,
    POSITIVE)  # fmt: skip
row("average by a row", lambda x, w: np.average(x, axis=1, weights=w, keepdims=True),
    lambda x, w: (x * w).sum(1, keepdim=True) / w.sum(), X, POSITIVE[0])  # fmt: skip
row("average by two axes", lambda x, w: np.average(x, axis=(2, 0), weights=w),
    lambda x, w: torch.einsum("ijk,ki->j", x, w) / w.sum(), CUBE, real("w", 4, 2, low=0.5))  # fmt: skip
row("average returned", lambda x, w: np.multiply(*np.average(x, weights=w, returned=True)),
    lambda x, w: (x * w).sum(), X, POSITIVE)  # fmt: skip
row("average without weights returned", lambda x: np.multiply(*np.average(x, 0, returned=True)), lambda x: x.sum(0), X)
row("ptp", lambda x: np.ptp(x, axis=1, keepdims=True) + x.ptp() if hasattr(x, "ptp") else np.ptp(x, 1, keepdims=True)
    + np.ptp(x), lambda x: x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + x.max() - x.min(), X)  # fmt: skip
row("count_nonzero", lambda x: x * np.count_nonzero(x > 0, axis=0), lambda x: x * (x > 0).sum(0), X)
row("cov", lambda x: np.cov(x), torch.cov, X)
row("cov of two", lambda x, y: np.cov(x, y, rowvar=False, bias=True), None, X, Y)
row("cov of a vector", lambda v: np.cov(v, ddof=0), lambda v: torch.cov(v, correction=0), V)
row("corrcoef", lambda x: np.corrcoef(x)[0, 1:], lambda x: torch.corrcoef(x)[0, 1:], X, orders=0)

row("nansum", lambda x: np.nansum(x + NAN, axis=1), lambda x: torch.nansum(x + nan, 1), X)
row("nanprod", lambda x: np.nanprod(x + NAN, axis=1), lambda x: torch.where(M, 1, x).prod(1), X)
row("nanmean", lambda x: np.nanmean(x + NAN, axis=0, keepdims=True), lambda x: torch.nanmean(x + nan, 0, True), X)
row("nanvar", lambda x: np.nanvar(x + NAN, axis=1, ddof=1), None, X)
row("nanstd", lambda x: np.nanstd(x + NAN), lambda x: torch.std(x[tensor(HOLES)], correction=0), X)
row("nanmax", lambda x: np.nanmax(x + NAN, axis=1), lambda x: torch.where(M, -9, x).amax(1), X)
row("nanmin", lambda x: np.nanmin(x + NAN, axis=0), lambda x: torch.where(M, 9, x).amin(0), X)
row("nanargmax", lambda x: x * np.nanargmax(x + NAN, axis=0), lambda x: x * torch.where(M, -9, x).argmax(0), X)
row("nanargmin", lambda x: x * np.nanargmin(x + NAN), lambda x: x * torch.where(M, 9, x).argmin(), X)
row("nanmedian", lambda x: np.nanmedian(x + NAN, axis=1), None, X)
row("nanmedian of odd", lambda x: np.nanmedian(x + NAN, axis=0, keepdims=True), None, X)
row("nancumsum", lambda x: np.nancumsum(x + NAN, axis=1), lambda x: (x * ~M).cumsum(1), X)
row("nancumprod", lambda x: np.nancumprod(x + NAN), lambda x: torch.where(M, 1, x).ravel().cumprod(0), X)

row("cumprod", lambda x: np.cumprod(x, axis=1), lambda x: torch.cumprod(x, 1), CUBE)
row("cumprod with zeros", lambda x: x.cumprod(0), lambda x: torch.cumprod(x, 0), np.array([2.0, 0.0, 3.0, 0.0, 1.5]))
row("cumprod of empty", lambda x: np.cumprod(x, axis=1), None, np.zeros((2, 0)))
row("cumprod of scalar", lambda x: np.cumprod(x), None, np.array(2.0))
row("cumulative", lambda x: np.cumulative_sum(x, axis=1) * np.cumulative_prod(x, axis=1, include_initial=True)[:, 1:],
    lambda x: torch.cumsum(x, 1) * torch.cumprod(x, 1), X)  # fmt: skip
row("add.accumulate", lambda x: np.add.accumulate(x), lambda x: x.cumsum(0), X)
row("multiply.accumulate", lambda x: np.multiply.accumulate(x, axis=1), lambda x: x.cumprod(1), X)
row("maximum.accumulate", lambda x: np.maximum.accumulate(x, axis=1), lambda x: x.cummax(1)[0], CUBE)
row("minimum.accumulate", lambda x: np.minimum.accumulate(x), lambda x: x.cummin(0)[0], X)

row("sort", lambda x: np.sort(x, axis=0), lambda x: torch.sort(x, 0)[0], CUBE)
row("sort of all", lambda x: np.sort(x, axis=None), lambda x: torch.sort(x.ravel())[0], X)
row("argsort", lambda x: x * np.argsort(x), lambda x: x * torch.argsort(x), X)
row("x.argsort", lambda x: x * x.argsort(0, stable=True), lambda x: x * torch.argsort(x, 0), X)
row("partition", lambda x: np.partition(x, 2, axis=1)[:, 2:3], lambda x: torch.sort(x, 1)[0][:, 2:3], X)
row("argpartition", lambda x: x * np.argpartition(x, (0, 1, 2, 3), axis=1), lambda x: x * torch.argsort(x, 1), X)
row("searchsorted", lambda x, v: x * np.searchsorted(np.sort(v), x, side="right"), None, X, V)
row("digitize", lambda x: x * np.digitize(x, [-1.03, 0.1, 1.2]), None, X)
row("median of even", lambda x: np.median(x, axis=1), lambda x: torch.quantile(x, 0.5, 1), X)
row("median of odd", lambda x: np.median(x, axis=0, keepdims=True), lambda x: torch.median(x, 0, True)[0], X)
row("median of two axes", lambda x: np.median(x, axis=(0, 2)), None, CUBE)
row("median of all", lambda x: np.median(x), lambda x: torch.quantile(x, 0.5), X)
for _method in ("linear", "lower", "higher", "nearest", "midpoint"):
    row(f"quantile {_method}", lambda x, m=_method: np.quantile(x, 0.37, axis=1, method=m),
        lambda x, m=_method: torch.quantile(x, 0.37, 1, interpolation=m), CUBE)  # fmt: skip
row("quantiles", lambda x: np.quantile(x, [0.1, 0.8], axis=0, keepdims=True),
    lambda x: torch.quantile(x, tensor([0.1, 0.8], dtype=x.dtype), 0, True), X)  # fmt: skip
row("percentile", lambda x: np.percentile(x, 30), lambda x: torch.quantile(x, 0.3), X)
row("std of one element", lambda x: np.std(x[:, :1], axis=1) + x[:, 0] * np.std(x[0, :1]), lambda x: x[:, 0] * 0, X)
