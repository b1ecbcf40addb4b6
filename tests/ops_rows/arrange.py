"""Rows of rearranging, joining, splitting, padding, differences and interpolation."""

from __future__ import annotations

import numpy as np
import torch

from tests.ops_samples import CUBE, MASK, POSITIVE, V, X, Y, real, row, tensor

SCALAR = np.array(0.7)
pad = torch.nn.functional.pad

row("tile once", lambda x: np.tile(x, 2) + np.tile(x, np.array([2])), lambda x: 2 * torch.tile(x, (2,)), X)
row("flipud fliplr", lambda x: np.flipud(x) * np.fliplr(x), lambda x: torch.flipud(x) * torch.fliplr(x), X)
for _k in range(-1, 4):
    row(f"rot90 {_k}", lambda x, k=_k: np.rot90(x, k, (0, 2)), lambda x, k=_k: torch.rot90(x, k, (0, 2)), CUBE)
row("resize", lambda x: np.resize(x, (5, 3)), None, X)
for _k in (-2, 0, 1):
    row(f"diag {_k}", lambda v, k=_k: np.diag(v, k), lambda v, k=_k: torch.diag(v, k), V)
    row(f"diag of a matrix {_k}", lambda x, k=_k: np.diag(x, k), lambda x, k=_k: torch.diag(x, k), X)
row("diagflat", lambda x: np.diagflat(x, 1), lambda x: torch.diagflat(x, 1), X)
row("diagonal", lambda x: np.diagonal(x, 1, 2, 0) * x.diagonal(1, 2, 0), lambda x: x.diagonal(1, 2, 0) ** 2, CUBE)
row("linalg.diagonal", lambda x: np.linalg.diagonal(x, offset=-1), lambda x: x.diagonal(-1, -2, -1), CUBE)
row("trace of axes", lambda x: np.trace(x, 1, 2, 1) + x.trace(0, 1, 2), None, CUBE)
row("linalg.trace", lambda x: np.linalg.trace(x), lambda x: x.diagonal(0, 1, 2).sum(-1), CUBE)
row("tril of a vector", lambda v: np.tril(v), lambda v: torch.tril(v.broadcast_to(4, 4)), V)
row("compress", lambda x: np.compress([True, False, True], x, axis=0) * x.compress([0, 1, 1], axis=0),
    lambda x: x[[0, 2]] * x[1:], X)  # fmt: skip
row("extract", lambda x: np.extract(MASK, x), lambda x: x[tensor(MASK)], X)
row("delete", lambda x: np.delete(x, 1, axis=1), lambda x: x[:, [0, 2, 3]], X)
row("delete of many", lambda x: np.delete(x, [0, -1]), lambda x: x.ravel()[1:-1], X)
row("insert", lambda x, v: np.insert(x, 1, v, axis=0), lambda x, v: torch.cat([x[:1], v[None], x[1:]]), X, V)
row("insert a column", lambda x: np.insert(x, 2, x[:, 0], axis=1), None, X)
row("insert at many", lambda x, v: np.insert(x, [3, -4, 1, 3], v, axis=1), None, X, V)
row("insert at a slice", lambda x: np.insert(x, slice(1, 3), x[:, :2], axis=1), None, X)
row("insert into all", lambda x: np.insert(x, 5, x[0, 0]), None, X)
row("bincount", lambda v: np.bincount([0, 2, 2, 1], v, minlength=4), lambda v: torch.bincount(
    tensor([0, 2, 2, 1]), v, 4) if False else torch.stack([v[0], v[3], v[1] + v[2], 0 * v[0]]), V)  # fmt: skip
row("mT", lambda x: np.matrix_transpose(x) * np.linalg.matrix_transpose(x) * x.mT, lambda x: x.mT**3, CUBE)
row("rollaxis", lambda x: np.rollaxis(x, 2) * 2, lambda x: 2 * x.permute(2, 0, 1), CUBE)
row("rollaxis to", lambda x: np.rollaxis(x, 0, -1), lambda x: x.permute(1, 0, 2), CUBE)
row("broadcast_arrays", lambda x, v: np.multiply(*np.broadcast_arrays(x, v)), lambda x, v: x * v, X, V)
row("empty_like", lambda x: x + 0 * np.nan_to_num(np.empty_like(x)), lambda x: x * 1, X)

row("atleast", lambda v, s: np.atleast_2d(v) * np.atleast_3d(v) + np.atleast_2d(s) + np.atleast_1d(v, s)[1],
    lambda v, s: v[None] * v[None, :, None] + 2 * s, V, SCALAR)  # fmt: skip
row("atleast of a matrix", lambda x: np.atleast_3d(x) * np.atleast_2d(x)[:, :, None], lambda x: x[..., None] ** 2, X)
row("dstack", lambda x, y: np.dstack([x, y]), lambda x, y: torch.dstack([x, y]), X, Y)
row("dstack of vectors", lambda v: np.dstack((v, 2 * v)), lambda v: torch.dstack((v, 2 * v)), V)
row("column_stack", lambda x, v: np.column_stack([v[:3], x, np.ones(3)]), None, X, V)
row("append", lambda x, v: np.append(x, v), lambda x, v: torch.cat([x.ravel(), v]), X, V)
row("append rows", lambda x, y: np.append(x, y, axis=0), lambda x, y: torch.cat([x, y]), X, Y)
row("block", lambda x, v: np.block([[x, np.ones((3, 1))], [v, 2.0]]), lambda x, v: torch.cat(
    [torch.cat([x, torch.ones(3, 1, dtype=x.dtype)], 1), torch.cat([v, tensor([2.0], dtype=v.dtype)])[None]]),
    X, V)  # fmt: skip
row("block of vectors", lambda v: np.block([v, 2 * v[:2]]), lambda v: torch.cat([v, 2 * v[:2]]), V)
row("array_split", lambda x: np.array_split(x, 3, axis=1)[0] * np.array_split(x, 3, axis=1)[2],
    lambda x: x[:, :2] * x[:, 3:], X)  # fmt: skip
row("hsplit vsplit dsplit", lambda x: np.hsplit(x, 3)[1] * np.dsplit(x, 2)[0][:, :1, :1] + np.vsplit(x, [1])[1],
    None, CUBE)  # fmt: skip
row("hsplit of a vector", lambda v: np.hsplit(v, 2)[1], lambda v: v[2:], V)
row("unstack", lambda x: np.multiply(*np.unstack(x)), lambda x: x[0] * x[1], CUBE)
row("meshgrid", lambda v, x: np.multiply(*np.meshgrid(v, x[0])), lambda v, x: v[None] * x[0][:, None], V, X)
row("meshgrid ij", lambda v, x: np.multiply(*np.meshgrid(v, x[:, 0], indexing="ij")), None, V, X)
row("meshgrid sparse", lambda v: np.meshgrid(v, v, [1.0, 2.0], sparse=True)[2] * v[:2], lambda v:
    (tensor([1.0, 2.0], dtype=v.dtype) * v[:2])[None, None], V)  # fmt: skip

row("pad edge", lambda x: np.pad(x, ((0, 0), (1, 2), (2, 0)), mode="edge"),
    lambda x: pad(x[None], (2, 0, 1, 2), "replicate")[0], CUBE)  # fmt: skip
row("pad reflect", lambda x: np.pad(x, ((0, 0), (2, 1), (3, 2)), mode="reflect"),
    lambda x: pad(x, (3, 2, 2, 1), "reflect"), CUBE)  # fmt: skip
row("pad wrap", lambda x: np.pad(x, ((0, 0), (2, 1), (3, 2)), mode="wrap"),
    lambda x: pad(x[None], (3, 2, 2, 1), "circular")[0], CUBE)  # fmt: skip
row("pad constant", lambda x: np.pad(x, 2, constant_values=1.5), lambda x: pad(x, (2, 2, 2, 2), value=1.5), X)
row("pad constants", lambda x: np.pad(x, ((1, 2), (0, 1)), constant_values=((1.0, 2.0), (3.0, 4.0))), None, X)
row("pad pair", lambda x: np.pad(x, (1, 2), constant_values=(1.0, 2.0)), None, X)
row("pad traced", lambda x, s: np.pad(x, 1, constant_values=s) if np.ndim(s) == 0 else x,
    lambda x, s: pad(x - s, (1, 1, 1, 1)) + s, X, SCALAR)  # fmt: skip
for _mode in ("symmetric", "linear_ramp", "maximum", "mean", "median", "minimum"):
    row(f"pad {_mode}", lambda x, m=_mode: np.pad(x, ((2, 1), (1, 3)), mode=m), None, X)
row("pad ramp to", lambda x: np.pad(x, 2, mode="linear_ramp", end_values=(1.0, -1.0)), None, X)
row("pad mean of two", lambda x: np.pad(x, 1, mode="mean", stat_length=2), None, X)
row("pad by a dict", lambda x: np.pad(x, {-1: (1, 2)}, mode="edge"), None, X)

row("diff", lambda x: np.diff(x, axis=1), lambda x: torch.diff(x, dim=1), CUBE)
row("diff twice", lambda x: np.diff(x, 2), lambda x: torch.diff(x, 2), X)
row("diff with ends", lambda x, y: np.diff(x, prepend=0.0, append=y[:, :1]),
    lambda x, y: torch.diff(torch.cat([0 * x[:, :1], x, y[:, :1]], 1)), X, Y)  # fmt: skip
row("diff of zero times", lambda x: np.diff(x, 0) * 2, lambda x: 2 * x, X)
row("ediff1d", lambda x: np.ediff1d(x, to_begin=0.0, to_end=[1.0, 2.0]), None, X)
row("gradient", lambda x: np.gradient(x, axis=1), lambda x: torch.gradient(x, dim=1)[0], CUBE)
row("gradient in both", lambda x: np.multiply(*np.gradient(x, 0.5)),
    lambda x: torch.mul(*torch.gradient(x, spacing=0.5)), X)  # fmt: skip
row("gradient of order 2", lambda x: np.gradient(x, 0.5, axis=1, edge_order=2),
    lambda x: torch.gradient(x, spacing=0.5, dim=1, edge_order=2)[0], X)  # fmt: skip
_grid = np.array([0.0, 0.5, 1.5, 1.75])
for _order in (1, 2):
    row(f"gradient on a grid {_order}", lambda x, o=_order: np.gradient(x, _grid.astype(x.dtype), axis=1, edge_order=o),
        lambda x, o=_order: torch.gradient(x, spacing=(tensor(_grid),), dim=1, edge_order=o)[0], X)  # fmt: skip
row("gradient on a traced grid", lambda x, p: np.gradient(x, np.cumsum(p), axis=1), None, X, POSITIVE[0])
row("trapezoid", lambda x: np.trapezoid(x, dx=0.5, axis=0), lambda x: torch.trapezoid(x, dx=0.5, dim=0), X)
row("trapezoid on a grid", lambda x, v: np.trapezoid(x, v), lambda x, v: torch.trapezoid(x, v), X, np.sort(V))
row("trapezoid on grids", lambda x, y: np.trapezoid(x, y, axis=0), None, X, np.sort(Y, axis=0))
row("interp", lambda x, v, f: np.interp(x, v, f), None, X, np.sort(V), real("fp", 4))
row("interp with ends", lambda x, f: np.interp(3 * x, [-1.0, 0.1, 2.0], f, left=0.0, right=9.0), None, X, V[:3])
row("interp of one", lambda x, f: np.interp(x, [0.0], f[:1]), None, X, V)
row("polyval", lambda p, x: np.polyval(p, x), lambda p, x: ((p[0] * x + p[1]) * x + p[2]) * x + p[3], V, X)
row("polyval of numbers", lambda x: np.polyval([2.0, 0.0, 1.0], x), lambda x: 2 * x * x + 1, X)
row("vander", lambda v: np.vander(v, 3) @ np.vander(v[:3], increasing=True),
    lambda v: torch.stack([v * v, v, v**0], 1) @ torch.stack([v[:3] ** 0, v[:3], v[:3] ** 2], 1), V)  # fmt: skip
row("linspace", lambda a, b: np.linspace(a, b, 5), lambda a, b: a + (b - a) * torch.arange(5) / 4, SCALAR,
    np.array(2.1))  # fmt: skip
row("logspace", lambda v: np.logspace(v, 1.5, 4, base=2.0, axis=1) * np.logspace(0.5, v, 4, endpoint=False).T, None, V)
row("linspace of rows", lambda v: np.linspace(v, 3.0, 4, endpoint=False, axis=1), None, V)
row("linspace step", lambda v: np.linspace(0.0, v, 4, retstep=True)[1], lambda v: v / 3, V)
row("unwrap", lambda x: np.unwrap(3 * x), None, X)
row("unwrap by", lambda x: np.unwrap(3 * x, discont=2.5, axis=0, period=2.0), None, X)

row("reshape in Fortran order", lambda x: np.reshape(x, (4, -1), order="F") * np.reshape(x, (4, 6), "F"),
    lambda x: x.permute(2, 1, 0).reshape(6, 4).T ** 2, CUBE)  # fmt: skip
row("ravel in Fortran order", lambda x: x.ravel("F") * np.ravel(x, order="F"), lambda x: x.T.ravel() ** 2, X)
row("reshape by name", lambda x: np.reshape(x, shape=(4, 3)), lambda x: x.reshape(4, 3), X)
row("array_equal", lambda x: np.where(np.array_equal(x, x + 0, equal_nan=True), x, 0) * (1 - np.array_equal(x, X[0])),
    lambda x: x * 1, X)  # fmt: skip
row("questions about complex", lambda x: x * (np.isrealobj(x) + np.iscomplexobj(x)), lambda x: x * 1, X)


# -- item assignment ---------------------------------------------------------------------------------------------------


def assigned(index, *, to=lambda x: np.sin(x)):
    """Return a function that assigns to a part of a copy of x."""

    def function(x, v):
        u = x * v
        u[index] = to(x)[index]
        return u * u

    return function


row("u[0, 1:] = v", assigned((0, slice(1, None))), None, X, V)
row("u[..., ::-2] = v", assigned((..., slice(None, None, -2))), None, CUBE, V)
row("u[mask] = v", assigned(MASK), None, X, V)
row("u[rows] = v", assigned(np.array([2, 0])), None, X, V)


def overwritten(x, v):
    u = np.zeros_like(x)
    u[np.array([1, 1, 0]), np.array([2, 2, 3])] = v[:3]
    return u * x


row("u[rows, columns] = v, the last counts", overwritten, None, X, V)

row("array like", lambda x: np.array([x[0, 0], 2 * x[1, 1], x[2, 3]], like=x) * np.asarray(x[0, :3], like=x)
    + np.asanyarray([1, 2, 3], x.dtype, like=x), lambda x: torch.stack([x[0, 0], 2 * x[1, 1], x[2, 3]])
    * x[0, :3] + torch.tensor([1, 2, 3]), X)  # fmt: skip
row("full like", lambda x: np.full((2, 4), x[0], like=x) + np.zeros(4, x.dtype, like=x) + np.ones(4, x.dtype, like=x)
    + 0 * np.empty(4, x.dtype, like=x), lambda x: x[:1].repeat(2, 1) + 1, X)  # fmt: skip
row("lists beside traced arrays",
    lambda x: np.maximum([x[0, 1], x[0, 0], 9.0, -9.0], x) * np.multiply(x, [x[0, 0]] * 4),
    lambda x: torch.maximum(torch.stack([x[0, 1], x[0, 0], x[0, 0] * 0 + 9, x[0, 0] * 0 - 9]), x) * x * x[0, 0],
    X)  # fmt: skip
for _mode in ("reflect", "symmetric"):
    row(f"pad {_mode} odd", lambda x, m=_mode: np.pad(x, ((2, 0), (1, 3)), mode=m, reflect_type="odd"), None, X)
