# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""scipy.integrate: solutions of ordinary differential equations, of traced and of plain arrays.

Every name of scipy.integrate is here; `odeint` can be recorded. Its gradient is that of the adjoint equation, which is
solved backwards in time beside the solution itself (Pontryagin; Chen et al., arXiv:1806.07366, algorithm 2): no step of
the solver is kept. It is as exact as the solver's tolerances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import integrate

from dtrain.errors import TraceError
from dtrain.graph import Tensor, flatten, unflatten, value_and_grad
from dtrain.graph.calls import is_float
from dtrain.graph.ops.joining import graph_of
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record
from dtrain.graph.tensor import format_line, holds_tensor, stacked, user_line

__all__ = ["odeint"]

Options = tuple[tuple[str, Any], ...]


def __getattr__(name: str) -> Any:
    return getattr(integrate, name)


def _shape(y0: Any, t: Any, *args: Any, func: Any, options: Options) -> tuple[Shape, np.dtype[Any]]:
    if len(y0.shape) != 1 or len(t.shape) != 1:
        raise ValueError("not vectors")
    return (t.shape[0], y0.shape[0]), np.dtype(np.float64)


def _expects(*inputs: Any, **static: Any) -> str:
    return "a state (n,) and times (m,)"


def _bind(out: np.ndarray, y0: np.ndarray, t: np.ndarray, *args: np.ndarray, func: Any, options: Options) -> Call:
    return lambda: np.copyto(out, integrate.odeint(func, y0, t, args, **dict(options)))


@primitive(shape=_shape, bind=_bind, expects=_expects, name="odeint")
def odeint_(g, out, y0, t, *args, func, options):
    """scipy.integrate.odeint of func(y, t, *args). The rule solves for the state, its adjoint and the gradients of the
    arguments together, from each time back to the one before."""
    adjoint = _Adjoint(func, y0.shape[0], [a.shape for a in args])
    pulled, of_start, of_args = g[-1], np.zeros_like(g[0, 0]), [np.zeros_like(a) for a in args]
    of_times = []
    for i in range(t.shape[0] - 1, 0, -1):
        of_time = np.sum(func(out[i], t[i], *args) * g[i])
        of_times.append(of_time)
        state = adjoint.packed(out[i], pulled, of_start - of_time, of_args)
        both = np.stack([t[i], t[i - 1]])
        back = record(odeint_, (state, both, *args), {"func": adjoint, "options": options})[1]
        _, pulled, of_start, of_args = adjoint.unpacked(back)
        pulled = pulled + g[i - 1]
    return pulled, np.stack([of_start, *of_times[::-1]]), *of_args


class _Adjoint:
    """The slope of (y, adjoint of y, gradient of the first time, gradients of the arguments), as one vector."""

    def __init__(self, func: Callable[..., Any], n: int, shapes: Sequence[Shape]) -> None:
        self.n, self.shapes = n, list(shapes)

        def product(y, t, args, adjoint):
            slope = func(y, t, *args)
            return np.sum(slope * adjoint), slope

        self.pull = value_and_grad(product, (0, 1, 2), has_aux=True)

    def packed(self, y: Any, adjoint: Any, time: Any, args: Sequence[Any]) -> Any:
        return np.concatenate([y, adjoint, np.reshape(time, (1,)), *[np.reshape(a, (-1,)) for a in args]])

    def unpacked(self, state: Any) -> tuple[Any, Any, Any, list[Any]]:
        n, place, args = self.n, 2 * self.n + 1, []
        for shape in self.shapes:
            size = int(np.prod(shape))
            args.append(np.reshape(state[place : place + size], shape))
            place += size
        return state[:n], state[n : 2 * n], state[2 * n], args

    def __call__(self, state: Any, t: Any, *args: Any) -> Any:
        y, adjoint, _, _ = self.unpacked(state)
        time = t if isinstance(t, Tensor) else np.float64(t)
        (_, slope), (of_y, of_t, of_args) = self.pull(y, time, list(args), adjoint)
        return self.packed(slope, -of_y, -of_t, [-a for a in of_args])


def odeint(func: Callable[..., Any], y0: Any, t: Any, args: tuple[Any, ...] = (), **options: Any) -> Any:
    """Return the solution of dy/dt = func(y, t, *args) at the times t, of shape (len(t), len(y0)), in float64.

    `args` are arrays, numbers, or trees of them; what func closes over has no gradient. The options of SciPy are passed
    on; `full_output`, `Dfun` and `tcrit` are refused for traced arrays.
    """
    where = format_line(user_line())
    leaves, structure = flatten(tuple(args))
    places = [k for k, leaf in enumerate(leaves) if is_float(leaf)]
    is_time_first = options.pop("tfirst", False)

    def slope(y: Any, time: Any, *values: Any) -> Any:
        filled = list(leaves)
        for k, value in zip(places, values, strict=True):
            filled[k] = value
        found = func(*((time, y) if is_time_first else (y, time)), *unflatten(structure, filled))
        found = stacked(found) if holds_tensor(found) else found
        if isinstance(found, Tensor) and not any(isinstance(x, Tensor) for x in (y, time, *values)):
            raise TraceError(
                f"odeint at {where}: the function closes over a traced array, which would have no gradient; pass it in "
                "args="
            )
        return found

    traced = [x for x in (y0, t, *leaves) if isinstance(x, Tensor) or holds_tensor(x)]
    if not traced:
        return integrate.odeint(slope, y0, t, tuple([leaves[k] for k in places]), **options)
    refused = sorted({"Dfun", "full_output", "tcrit", "col_deriv", "ml", "mu"} & {k for k, v in options.items() if v})
    if refused:
        raise TraceError(f"odeint at {where}: {', '.join(refused)} with traced arrays is not covered; leave it out")
    graph = graph_of(traced)
    inputs: list[Any] = [as_tensor(x, graph) for x in (y0, t, *[leaves[k] for k in places])]
    inputs = [x if x.dtype == np.float64 else x.astype(np.float64) for x in inputs]
    inputs[0] = np.atleast_1d(inputs[0])
    return record(odeint_, inputs, {"func": slope, "options": tuple(sorted(options.items()))})
