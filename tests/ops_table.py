"""Every primitive and every covered NumPy function, with sample inputs and PyTorch's form of the same computation.

The table is the test: `tests/unit/graph/test_ops.py` runs each row, and fails if a primitive or a covered function is
in no row. Inputs keep away from kinks and from the edges of domains by construction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tests.ops_rows.arrange
import tests.ops_rows.convolutions
import tests.ops_rows.edges
import tests.ops_rows.elementwise
import tests.ops_rows.linear_algebra
import tests.ops_rows.scipy_functions
import tests.ops_rows.special
import tests.ops_rows.statistics  # noqa: F401
from dtrain import graph
from tests.ops_samples import ABOVE, CUBE, INSIDE, MASK, POSITIVE, ROWS, SAMPLES, V, X, Y, real, row, tensor


def alone(x: Any) -> Any:
    """The sum over shards as it is recorded in training, by the only shard."""
    with graph.step_context(training=True):
        return graph.sum_over_shards(x * x)


# -- elementwise -------------------------------------------------------------------------------------------------------

for _name, _input in {
    "negative": X, "positive": X, "exp": X, "exp2": X, "expm1": X, "log": POSITIVE, "log2": POSITIVE, "log10": POSITIVE,
    "log1p": POSITIVE, "sqrt": POSITIVE, "square": X, "reciprocal": POSITIVE, "sin": X, "cos": X, "tan": INSIDE,
    "arcsin": INSIDE, "arccos": INSIDE, "arctan": X, "sinh": X, "cosh": X, "tanh": X, "arcsinh": X, "arccosh": ABOVE,
    "arctanh": INSIDE, "absolute": X, "sign": X, "floor": X, "ceil": X, "trunc": X,
}.items():  # fmt: skip
    row(_name, getattr(np, _name), getattr(torch, _name), _input)
row("rint", np.rint, torch.round, X)
row("fabs", np.fabs, torch.abs, X)
row("conjugate", np.conjugate, lambda x: x * 1.0, X)
row("cbrt", np.cbrt, lambda x: x ** (1 / 3), POSITIVE)
row("scalar exp", np.exp, torch.exp, np.array(0.7))
row("empty exp", np.exp, torch.exp, np.zeros((0, 3)))

for _name, _inputs in {
    "add": (X, Y), "subtract": (X, Y), "multiply": (X, Y), "divide": (X, POSITIVE), "power": (POSITIVE, Y),
    "float_power": (POSITIVE, Y), "maximum": (X, Y), "minimum": (X, Y), "hypot": (X, Y), "arctan2": (X, POSITIVE),
    "logaddexp": (X, Y), "remainder": (X, ABOVE),
}.items():  # fmt: skip
    _oracle = getattr(torch, {"power": "pow"}.get(_name, _name))
    row(_name, getattr(np, _name), _oracle, *_inputs)
    row(f"{_name} with a row", getattr(np, _name), _oracle, _inputs[0], _inputs[1][:1])
    row(f"{_name} with a scalar", getattr(np, _name), _oracle, _inputs[0], np.array(_inputs[1][0, 0]))
row("outer broadcast", lambda x, v: x[:, None] * v, lambda x, v: x[:, None] * v, real("k", 3), V)
row("same operand", lambda x: x * x + x, lambda x: x * x + x, X)
row(
    "operators",
    lambda x, y: (2.0 - x) * 3 / (1 + y) - -x + +y + abs(x),
    lambda x, y: (2.0 - x) * 3 / (1 + y) + x + y + abs(x),
    X,
    ABOVE,
)
for _p in (0.0, 1.0, 2.0, 3.0, 4.0, 0.5, -0.5, -1.0, -2.0, 2.5, 2):
    row(f"x**{_p}", lambda x, p=_p: x**p, lambda x, p=_p: x**p, POSITIVE)
row("2**x", lambda x: 2.0**x, lambda x: 2.0**x, X)
row("sum_over_shards of one", alone, lambda x: x * x, X)
row("clip", lambda x: np.clip(x, -1.03, 0.98), lambda x: torch.clip(x, -1.03, 0.98), X)
row("x.clip one side", lambda x: x.clip(min=-1.03), lambda x: torch.clip(x, -1.03), X)
row("clip traced", lambda x, v: np.clip(x, -v, v), lambda x, v: torch.clip(x, -v, v), X, np.array(0.97))
row("where", lambda x, y: np.where(MASK, x, y), lambda x, y: torch.where(tensor(MASK), x, y), X, V)
row("where of x", lambda x: np.where(x > 0, np.sin(x), 0.0), lambda x: torch.where(x > 0, torch.sin(x), 0.0), X)
row("relu", graph.relu, torch.relu, X)
row("maximum(x, 0)", lambda x: np.maximum(0, x), torch.relu, X)
row("sigmoid", graph.sigmoid, torch.sigmoid, 3 * X)
row("plain sigmoid", lambda x: 1 / (1 + np.exp(-x)), torch.sigmoid, X)
row("stop_gradient", lambda x: x * graph.stop_gradient(x), lambda x: x * x.detach(), X, orders=0)

# Comparisons and logic steer np.where; they have no gradient.


def steering(name: str, oracle: str, *, is_logical: bool) -> None:
    ours, theirs = getattr(np, name), getattr(torch, oracle)

    def function(x: Any, y: Any) -> Any:
        return np.where(ours(x > 0, y > 0) if is_logical else ours(x, y), x, 2 * y)

    def counterpart(x: Any, y: Any) -> Any:
        return torch.where(theirs(x > 0, y > 0) if is_logical else theirs(x, y), x, 2 * y)

    row(name, function, counterpart, X, Y)


def testing(name: str) -> None:
    ours, theirs = getattr(np, name), getattr(torch, name)
    row(name, lambda x: np.where(ours(x), x, 3 * x), lambda x: torch.where(theirs(x), x, 3 * x), X)


for _name in ("less", "less_equal", "greater", "greater_equal"):
    steering(_name, _name, is_logical=False)
steering("equal", "eq", is_logical=False)
steering("not_equal", "ne", is_logical=False)
for _name in ("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"):
    steering(_name, _name, is_logical=True)
for _name in ("isfinite", "isnan", "isinf", "signbit"):
    testing(_name)
row(
    "&|~",
    lambda x: np.where((x > 0) & ~(x > 1) | (x < -1), x, 0),
    lambda x: torch.where((x > 0) & ~(x > 1) | (x < -1), x, 0),
    X,
)
row("logical_not", lambda x: np.where(np.logical_not(x > 0), x, 0), lambda x: torch.where(x > 0, 0, x), X)
row("floor_divide", lambda x: x * (x // 0.7), lambda x: x * torch.floor_divide(x, 0.7).detach(), X)
row("mod operator", lambda x: x % 0.7, lambda x: x % 0.7, X)
row("isclose", lambda x: np.where(np.isclose(x, x + 1e-12), x, 0), lambda x: x * 1.0, X)

# -- reductions --------------------------------------------------------------------------------------------------------

for _axis in (None, 0, -1, (0, 2), (1,)):
    for _keep in (False, True):
        _dim = tuple(range(3)) if _axis is None else _axis
        _tag = f"{_axis} {'keepdims' if _keep else ''}"
        row(
            f"sum {_tag}",
            lambda x, a=_axis, k=_keep: np.sum(x, axis=a, keepdims=k),
            lambda x, d=_dim, k=_keep: torch.sum(x, d, keepdim=k),
            CUBE,
        )
        row(
            f"mean {_tag}",
            lambda x, a=_axis, k=_keep: x.mean(axis=a, keepdims=k),
            lambda x, d=_dim, k=_keep: torch.mean(x, d, keepdim=k),
            CUBE,
        )
        row(
            f"max {_tag}",
            lambda x, a=_axis, k=_keep: np.max(x, axis=a, keepdims=k),
            lambda x, d=_dim, k=_keep: torch.amax(x, d, keepdim=k),
            CUBE,
        )
        row(
            f"min {_tag}",
            lambda x, a=_axis, k=_keep: x.min(axis=a, keepdims=k),
            lambda x, d=_dim, k=_keep: torch.amin(x, d, keepdim=k),
            CUBE,
        )
        row(
            f"var {_tag}",
            lambda x, a=_axis, k=_keep: np.var(x, axis=a, keepdims=k),
            lambda x, d=_dim, k=_keep: torch.var(x, d, correction=0, keepdim=k),
            CUBE,
        )
        row(
            f"logsumexp {_tag}",
            lambda x, a=_axis, k=_keep: graph.logsumexp(x, axis=a, keepdims=k),
            lambda x, d=_dim, k=_keep: torch.logsumexp(x, d, keepdim=k),
            CUBE,
        )
row("mean", lambda x: np.mean(x), torch.mean, CUBE)
row("std", lambda x: np.std(x, axis=1, ddof=1), lambda x: torch.std(x, 1), CUBE)
row("x.std", lambda x: x.std(), lambda x: torch.std(x, correction=0), CUBE)
row("x.var", lambda x: x.var(0), lambda x: torch.var(x, 0, correction=0), CUBE)
row("prod", lambda x: np.prod(x, axis=1), lambda x: torch.prod(x, 1), CUBE)
row("prod of all", lambda x: x.prod(), torch.prod, X)
row(
    "prod with zeros",
    lambda x: np.prod(x, axis=1),
    lambda x: torch.prod(x, 1),
    np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 2.0], [1.0, 2.0, 3.0]]),
)
row("np.min", lambda x: np.min(x, axis=1), lambda x: torch.amin(x, 1), CUBE)
row("add.reduce", lambda x: np.add.reduce(x, axis=1), lambda x: x.sum(1), CUBE)
row("maximum.reduce", lambda x: np.maximum.reduce(x), lambda x: x.amax(0), CUBE)
row("minimum.reduce", lambda x: np.minimum.reduce(x, axis=-1), lambda x: x.amin(-1), CUBE)
row(
    "all any",
    lambda x: np.where(np.all(x > -9, axis=0) & np.any(x > 1, axis=0), x, 0),
    lambda x: torch.where((x > -9).all(0) & (x > 1).any(0), x, 0),
    X,
)
row("argmax", lambda x: x * np.argmax(x, axis=1, keepdims=True), lambda x: x * torch.argmax(x, 1, keepdim=True), X)
row("argmin", lambda x: x * np.argmin(x, axis=0), lambda x: x * torch.argmin(x, 0), X)
row("argmax of all", lambda x: x * x.argmax(), lambda x: x * torch.argmax(x), X)
row("sum of empty", lambda x: np.sum(x, axis=0), lambda x: torch.sum(x, 0), np.zeros((0, 3)))
row("sum of scalar", lambda x: np.sum(x), torch.sum, np.array(2.0))
row(
    "max ties",
    lambda x: np.max(x, axis=1),
    lambda x: torch.amax(x, 1),
    np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]),
    orders=0,
)
row("maximum ties", np.maximum, torch.maximum, np.ones(3), np.array([1.0, 2.0, 0.0]), orders=0)

# -- shapes ------------------------------------------------------------------------------------------------------------

row("reshape", lambda x: np.reshape(x, (4, -1)) * 2, lambda x: x.reshape(4, -1) * 2, CUBE)
row("x.reshape", lambda x: x.reshape(6, 4), lambda x: x.reshape(6, 4), CUBE)
row("reshape of transpose", lambda x: x.T.reshape(2, 6), lambda x: x.T.reshape(2, 6), X)
row("ravel", lambda x: np.ravel(x), lambda x: x.ravel(), X)
row("x.flatten", lambda x: x.flatten() + x.ravel(), lambda x: 2 * x.flatten(), X)
row("transpose", lambda x: np.transpose(x, (1, 2, 0)), lambda x: x.permute(1, 2, 0), CUBE)
row("x.T", lambda x: x.T @ x, lambda x: x.T @ x, X)
row("x.transpose", lambda x: x.transpose(2, 0, 1), lambda x: x.permute(2, 0, 1), CUBE)
row("swapaxes", lambda x: np.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1), CUBE)
row("x.swapaxes", lambda x: x.swapaxes(1, 2), lambda x: x.swapaxes(1, 2), CUBE)
row("moveaxis", lambda x: np.moveaxis(x, 0, -1), lambda x: torch.moveaxis(x, 0, -1), CUBE)
row("expand_dims", lambda x: np.expand_dims(x, (0, 2)), lambda x: x[None, :, None], X)
row("squeeze", lambda x: np.squeeze(x[:, :1]), lambda x: x[:, :1].squeeze(), X)
row("x.squeeze", lambda x: x[:, :1].squeeze(1), lambda x: x[:, :1].squeeze(1), X)
row("atleast_1d", lambda x: np.atleast_1d(x) * 2, lambda x: torch.atleast_1d(x) * 2, np.array(1.5))
row("broadcast_to", lambda v: np.broadcast_to(v, (3, 4)), lambda v: v.broadcast_to(3, 4), V)
row(
    "concatenate",
    lambda x, y: np.concatenate([x, y[:, :2], np.ones((3, 1))], axis=1),
    lambda x, y: torch.cat([x, y[:, :2], torch.ones(3, 1, dtype=x.dtype)], 1),
    X,
    Y,
)
row(
    "concatenate flat",
    lambda x, y: np.concatenate([x, y], axis=None),
    lambda x, y: torch.cat([x.ravel(), y.ravel()]),
    X,
    Y,
)
row("stack", lambda x, y: np.stack([x, y, x], axis=-1), lambda x, y: torch.stack([x, y, x], -1), X, Y)
row("vstack", lambda x, v: np.vstack([x, v]), lambda x, v: torch.vstack([x, v]), X, V)
row("hstack", lambda x, y: np.hstack([x, y]), lambda x, y: torch.hstack([x, y]), X, Y)
row("split", lambda x: np.split(x, 2, axis=1)[1] * np.split(x, [1, 2], axis=1)[1], lambda x: x[:, 2:] * x[:, 1:2], X)
row("copy", lambda x: np.copy(x) * x.copy(), lambda x: x * x, X)
row(
    "astype",
    lambda x: x.astype(np.float32).astype(np.float64) * np.astype(x, np.float64),
    lambda x: x.float().double() * x,
    X.astype(np.float32).astype(float),
    orders=0,
)
row("likes", lambda x: np.zeros_like(x) + 2 * np.ones_like(x) * x + np.full_like(x, 3.0), lambda x: 2 * x + 3, X)
row("full_like traced", lambda x, y: np.full_like(x, y) * x, lambda x, y: x * y, X, np.array(2.0))
row(
    "questions",
    lambda x: x * (np.ndim(x) + np.size(x) + np.shape(x)[0] + np.size(x, 1)) * np.ones(1, np.result_type(x, 1.0)),
    lambda x: x * 21,
    X,
)

row("roll", lambda x: np.roll(x, 1, axis=1) * np.roll(x, -2), lambda x: torch.roll(x, 1, 1) * torch.roll(x, -2), X)
row("roll of two axes", lambda x: np.roll(x, (1, 2), (0, 1)), lambda x: torch.roll(x, (1, 2), (0, 1)), X)
row("flip", lambda x: np.flip(x, 1) * np.flip(x), lambda x: torch.flip(x, (1,)) * torch.flip(x, (0, 1)), X)
row("tile", lambda x: np.tile(x, (2, 1, 3)), lambda x: torch.tile(x, (2, 1, 3)), X)
row("repeat", lambda x: np.repeat(x, 2, axis=1), lambda x: torch.repeat_interleave(x, 2, 1), X)
row("x.repeat", lambda x: x.repeat([1, 0, 3], 0), lambda x: torch.repeat_interleave(x, tensor([1, 0, 3]), 0), X)
row("pad", lambda x: np.pad(x, ((1, 0), (2, 3))), lambda x: torch.nn.functional.pad(x, (2, 3, 1, 0)), X)
row("tril", lambda x: np.tril(x, -1), lambda x: torch.tril(x, -1), CUBE)
row("triu", lambda x: np.triu(x), torch.triu, CUBE)
row("cumsum", lambda x: np.cumsum(x, axis=1), lambda x: torch.cumsum(x, 1), CUBE)
row("x.cumsum", lambda x: x.cumsum(), lambda x: torch.cumsum(x.ravel(), 0), X)
row("amax amin", lambda x: np.amax(x, axis=0) + np.amin(x, axis=0), lambda x: x.amax(0) + x.amin(0), X)
row("vecdot", lambda x, y: np.vecdot(x, y), torch.linalg.vecdot, X, Y)

# -- indexing ----------------------------------------------------------------------------------------------------------

row("x[1:, ::-2]", lambda x: x[1:, ::-2], lambda x: torch.flip(x, (1,))[1:, ::2], X)
row("x[1]", lambda x: x[1] * x[-1, 2], lambda x: x[1] * x[-1, 2], X)
row("x[..., None]", lambda x: x[..., None, 1:], lambda x: x[..., None, 1:], CUBE)
row("x[0, 0]", lambda x: x[0, 0], lambda x: x[0, 0], X)
row("x[rows]", lambda x: x[ROWS], lambda x: x[tensor(ROWS)], X)
row("x[turned rows]", lambda x: x[ROWS[::-1]] * 1.0, lambda x: x[tensor(ROWS[::-1].copy())], CUBE[0])
row("x[2-d rows]", lambda x: x[np.array([[0, -1], [1, 0]])] * 2, lambda x: x[tensor([[0, 1], [1, 0]])] * 2, CUBE)
row("x[rows, columns]", lambda x: x[ROWS, [0, 1, 0, 1]], lambda x: x[tensor(ROWS), [0, 1, 0, 1]], X)
row("x[:, rows]", lambda x: x[:, ROWS], lambda x: x[:, tensor(ROWS)], CUBE)
row("x[rows, :, 1]", lambda x: x[ROWS - 1, :, 1], lambda x: x[tensor(ROWS - 1), :, 1], CUBE)
row("x[mask]", lambda x: x[MASK], lambda x: x[tensor(MASK)], X)
row("x[traced rows]", lambda x: x[np.argmax(x, axis=1)], lambda x: x[torch.argmax(x, 1)], X[:, :3])
row("take", lambda x: np.take(x, ROWS, axis=1), lambda x: x[:, tensor(ROWS)], X)
row("x.take flat", lambda x: x.take(ROWS), lambda x: x.ravel()[tensor(ROWS)], X)
row(
    "take_along_axis",
    lambda x: np.take_along_axis(x, np.argsort(X, axis=1)[:, :2], axis=1),
    lambda x: torch.take_along_dim(x, tensor(np.argsort(X, axis=1)[:, :2]), 1),
    X,
)
row("iteration", lambda x: next(a * b for a, b in zip(x, x[::-1], strict=True)) * len(x), lambda x: x[0] * x[2] * 3, X)

# -- products ----------------------------------------------------------------------------------------------------------

_B, _C = real("b", 4, 5), real("d", 2, 4, 3)
row("matmul", np.matmul, torch.matmul, X, _B)
row("matmul of vectors", lambda x, y: x @ y, lambda x, y: x @ y, V, V[::-1].copy())
row("matrix @ vector", lambda x, y: x @ y, lambda x, y: x @ y, X, V)
row("vector @ matrix", lambda x, y: x @ y, lambda x, y: x @ y, V, _B)
row("batch", np.matmul, torch.matmul, CUBE, _C)
row("batch @ matrix", np.matmul, torch.matmul, CUBE, _B)
row("matrix @ batch", np.matmul, torch.matmul, X, _C)
row("batch @ vector", np.matmul, torch.matmul, CUBE, V)
row("vector @ batch", np.matmul, torch.matmul, V, _C)
row("matmul of turned", lambda x, y: x.T @ y.T, lambda x, y: x.T @ y.T, X, real("t", 5, 3))
row("matmul of sum", lambda x, y: (x @ y).sum(), lambda x, y: (x @ y).sum(), X, _B)
row("dot", np.dot, torch.matmul, X, _B)
row("x.dot", lambda x, y: x.dot(y), torch.matmul, X, V)
row("dot of scalar", lambda x, y: np.dot(x, y), torch.mul, X, np.array(2.0))
row("inner", np.inner, torch.inner, X, Y)
row("outer", np.outer, torch.outer, V, real("o", 3))
row(
    "tensordot",
    lambda x, y: np.tensordot(x, y, axes=([1, 2], [2, 1])),
    lambda x, y: torch.tensordot(x, y, dims=([1, 2], [2, 1])),
    CUBE,
    real("td", 2, 4, 3),
)
for _spec, _a, _b in (
    ("ij,jk->ik", X, _B),
    ("bij,bjk->bik", CUBE, _C),
    ("bij,bkj->bki", CUBE, CUBE + 1),
    ("ij,ij->", X, Y),
    ("i,j->ij", V, V + 1),
    ("nij,j->ni", CUBE, V),
    ("ijk,ij->i", CUBE, real("e", 2, 3)),
):
    row(
        f"einsum {_spec}", lambda x, y, s=_spec: np.einsum(s, x, y), lambda x, y, s=_spec: torch.einsum(s, x, y), _a, _b
    )
row("einsum ijk->ki", lambda x: np.einsum("ijk->ki", x), lambda x: torch.einsum("ijk->ki", x), CUBE)
row("trace", lambda x: np.trace(x), lambda x: torch.trace(x), X)
row("norm", lambda x: np.linalg.norm(x), lambda x: torch.linalg.norm(x), X)
row(
    "norm of rows",
    lambda x: np.linalg.norm(x, axis=1, keepdims=True),
    lambda x: torch.linalg.norm(x, dim=1, keepdim=True),
    X,
)
row("norm 1", lambda x: np.linalg.norm(x, 1, axis=1), lambda x: torch.linalg.norm(x, 1, dim=1), X)
row("norm inf", lambda x: np.linalg.norm(x, np.inf, axis=1), lambda x: torch.linalg.norm(x, float("inf"), dim=1), X)

# -- together ----------------------------------------------------------------------------------------------------------

row("softmax cross-entropy",
    lambda s: np.mean(graph.logsumexp(s, axis=1) - s[np.arange(3), [0, 1, 2]]),
    lambda s: torch.nn.functional.cross_entropy(s, tensor([0, 1, 2])), X)  # fmt: skip
row("two layers",
    lambda x, w, b, u: np.sum(np.square(np.tanh(x @ w + b) @ u)),
    lambda x, w, b, u: torch.sum(torch.square(torch.tanh(x @ w + b) @ u)),
    X, _B, real("b1", 5), real("u", 5, 2))  # fmt: skip

__all__ = ["SAMPLES"]
