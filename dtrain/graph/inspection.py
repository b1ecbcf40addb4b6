"""What to look at when a model does not learn: histograms of activations and gradients, dead and saturated units, and
the size of what meets where a value is used several times or is a sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.graph.api import trace
from dtrain.graph.regions import reachable
from dtrain.graph.tensor import Graph, Tensor
from dtrain.graph.uses import gradients_by_use

BINS = 20
"""Bins of a histogram, of one width from the smallest finite value to the largest."""
SATURATED = 0.99
"""A tanh is saturated above this absolute value; a sigmoid where 2·sigmoid − 1 is."""
_SHOWN = {"matmul", "einsum", "tensordot", "relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "elu"}


def inspect(f: Callable[..., Any], *args: Any) -> list[dict[str, Any]]:
    """Record f on these arguments and describe its values and the gradients of the sum of what it returns.

    One entry for each float input, and each array that is a matrix product, a convolution, an activation, a sum of two
    arrays, or is used more than once, in the order of the recording. The keys: `name`, `op`, `line` and `scope` say
    which; `shape`; `value` and `gradient` are as `summary` returns; `gradient_parts`, the L2 norm of the gradient
    by each use, where there are several; `summands`, the L2 norms of the two arrays of a sum; `dead`, the fraction
    of units of a ReLU that are zero for all samples (the first axis); `saturated`, the fraction of elements of a tanh
    or sigmoid near their limits.
    """
    return inspect_graph(trace(f, *args))


def inspect_graph(graph: Graph) -> list[dict[str, Any]]:
    """As `inspect`, for a recorded graph that still has its values."""
    uses, gradients = gradients_by_use(graph)
    parts: dict[int, dict[int, NDArray[Any]]] = {}  # of each value: the gradient by each node that stands for a use
    nodes = reachable(graph.outputs, (), lambda n: n.inputs)
    for node in nodes:
        for place, source in enumerate(node.inputs):
            use = uses.get((node.index, place))
            if use is not None and use.index in gradients:
                parts.setdefault(source.index, {})[use.index] = np.asarray(gradients[use.index].value)
    found = []
    for node in nodes:
        gradient = list(parts.get(node.index, {}).values())
        if node.is_constant or node.dtype.kind != "f" or (node.op is not None and not _is_shown(node, len(gradient))):
            continue
        found.append(_entry(node, gradient))
    return found


def norm(array: Any) -> float:
    """The L2 norm, in float64."""
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(np.asarray(array, np.float64)))


def summary(array: Any) -> dict[str, Any]:
    """The `norm` (L2), `mean`, `std`, `low`, `high` and histogram `counts` of the finite elements, and how many are
    `not_finite`."""
    flat = np.asarray(array, np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    result: dict[str, Any] = {"not_finite": int(flat.size - finite.size)}
    if finite.size == 0:
        return result
    low, high = float(finite.min()), float(finite.max())
    position = np.zeros(finite.shape) if low == high else (finite / 2 - low / 2) / (high / 2 - low / 2) * BINS
    counts = np.bincount(np.minimum(position.astype(np.int64), BINS - 1), minlength=BINS)
    figures = {"norm": norm(finite), "mean": finite.mean(), "std": finite.std(), "low": low, "high": high}
    return {**result, **{name: float(value) for name, value in figures.items()}, "counts": counts.tolist()}


def _is_shown(node: Tensor, uses: int) -> bool:
    assert node.op is not None
    if node.size < 2:
        return False
    name = node.op.name
    return name in _SHOWN or name.startswith("conv") or uses > 1 or _is_relu(node) or _is_sum(node)


def _is_relu(node: Tensor) -> bool:
    assert node.op is not None
    is_zero = [i.is_constant and i.shape == () and i.value == 0 for i in node.inputs]
    return node.op.name == "relu" or (node.op.name == "maximum" and any(is_zero))


def _is_sum(node: Tensor) -> bool:
    """Whether two arrays of the same shape are added, as at the end of a branch."""
    assert node.op is not None
    return node.op.name in ("add", "subtract") and all(i.shape == node.shape and not i.is_constant for i in node.inputs)


def _entry(node: Tensor, parts: list[NDArray[Any]]) -> dict[str, Any]:
    value = np.asarray(node.value)
    entry: dict[str, Any] = {"name": node.name if node.op is None else f"{node.op.name} at {node.location}"}
    entry |= {"op": "input" if node.op is None else node.op.name, "line": node.location, "scope": node.scope}
    entry |= {"shape": list(node.shape), "value": summary(value)}
    entry["gradient"] = summary(sum(parts[1:], parts[0])) if parts else None
    if len(parts) > 1:
        entry["gradient_parts"] = [norm(part) for part in parts]
    if node.op is None:
        return entry
    if _is_sum(node):
        entry["summands"] = [norm(i.value) for i in node.inputs]
    if _is_relu(node):
        entry["dead"] = float(np.mean(~(value > 0).any(axis=0) if value.ndim > 1 else value <= 0))
    if node.op.name in ("tanh", "sigmoid"):
        centred = value if node.op.name == "tanh" else 2 * value - 1
        entry["saturated"] = float(np.mean(np.abs(centred) > SATURATED))
    return entry
