"""Running values: state of a model that is not learnt but averaged over the steps, as the statistics of batch norm.

A running value is a leaf of the parameters that ``running`` has marked in ``init``. In training every shard reports its
own value of it, once; when the step is committed their mean, weighted with the shards' samples, is folded in:
running ← (1 − momentum)·running + momentum·mean. Invariant: nothing else changes it. It has no gradient, and no part in
the gradient's norm, in clipping or in weight decay. The mark is on the array; a plain array is a parameter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.errors import InputError, ShapeError, TraceError
from dtrain.graph.context import Report, require_context
from dtrain.graph.tensor import Tensor, active_graph, format_line, user_line


class Running(np.ndarray[Any, Any]):
    """An array that is marked. The mark survives copies, views, ``astype`` and pickling; results of arithmetic are
    plain arrays."""

    momentum: float

    def __array_finalize__(self, source: Any) -> None:
        self.momentum = getattr(source, "momentum", 0.1)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __reduce_ex__(self, protocol: Any) -> Any:
        return running, (np.asarray(self), self.momentum)


def running(array: Any, momentum: float = 0.1) -> Running:
    """Mark an array of floats as a running value; ``momentum``, above 0 and at most 1, is the weight of a new value."""
    if not 0.0 < momentum <= 1.0:
        raise InputError(f"running: momentum: expected above 0 and at most 1, got {momentum}")
    marked = np.asarray(array).view(Running)
    marked.momentum = float(momentum)
    return marked


def report(leaf: Any, value: Any) -> None:
    """Report this shard's ``value`` of a running value: ``leaf`` as it is in ``params``, ``value`` of its shape.

    It is taken as a mean over the shard's samples, and is not differentiated through. In training each running value is
    reported exactly once; in evaluation nothing happens. Raises TraceError outside of a step context.
    """
    context = require_context("report")
    line = format_line(user_line())
    shape = value.shape if isinstance(value, Tensor) else np.shape(value)
    if shape != leaf.shape:
        raise ShapeError(f"report at {line}: expected a value of shape {leaf.shape}, got {shape}")
    if context.reports is None or not context.training:
        return
    graph = active_graph()
    if graph is not None and graph.depth:
        raise TraceError(f"report at {line}: is within a loop; return the value from its body and report it after")
    context.reports.append(Report(leaf, value, line))
