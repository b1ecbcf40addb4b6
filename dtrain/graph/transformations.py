"""Derivatives other than the gradient: jvp, elementwise_grad, hvp, jacobian, hessian.

Forward mode is two reverse sweeps: the pullback u ↦ uᵀJ is linear in u, so its own pullback at v is Jv, and the plan
leaves out what only the value of u asked for. That is right for every primitive that has a gradient rule, a user's
and a loop among them, without a second table of rules; a forward sweep would need one more rule for each.

All of them record into the graph, so they nest to any order, and are cached and planned as `grad` is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dtrain.errors import TraceError
from dtrain.graph.api import fresh, grad
from dtrain.graph.calls import Transformed, check_differentiable, is_array, is_float, name_of
from dtrain.graph.differentiate import backward
from dtrain.graph.ops.shape import alias, zeros_like
from dtrain.graph.tensor import Graph, Tensor
from dtrain.graph.tree import flatten, named_leaves, unflatten


def _pushforward(outputs: Sequence[Tensor], wrt: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return (u, uᵀJ): what the gradients with respect to `wrt` are a linear function of, and these gradients."""
    seeds = [alias(zeros_like(o)) for o in outputs]
    return seeds, backward(outputs, seeds, wrt)


def _nothing(args: Sequence[Any]) -> None:
    """Accept any arguments."""


def jvp(
    f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], *, compile: bool = True
) -> tuple[Any, Any]:
    """Return (f(*primals), J·tangents): the value, and its derivative along a direction.

    `primals` are the arguments, `tangents` trees like them; a leaf that is not floating point has the tangent None,
    and None for a float leaf means 0. The second result is a tree like the first, with None beside what is not
    floating point. Raises TraceError where structures or shapes differ.
    """
    if not isinstance(primals, list | tuple) or not isinstance(tangents, list | tuple):
        raise TypeError("jvp takes the arguments and their tangents as tuples: jvp(f, (x,), (v,))")
    if len(primals) != len(tangents):
        raise TraceError(f"jvp of {name_of(f)}: {len(primals)} arguments and {len(tangents)} tangents")
    return _pushing(f, len(primals), compile)(*primals, *tangents)  # type: ignore[no-any-return]


def _pushing(f: Callable[..., Any], count: int, compile: bool) -> Transformed:
    """Return the function of arguments and tangents that gives value and derivative."""

    def record(graph: Graph, args: Sequence[Any]) -> Any:
        primals = list(args[:count])
        wrt, directions = [], []
        for i, (primal, tangent) in enumerate(zip(primals, args[count:], strict=True)):
            leaves, structure = flatten(primal)
            arrows, other = flatten(tangent)
            if structure != other:
                raise TraceError(f"jvp of {name_of(f)}: argument {i} and its tangent differ in structure")
            names = [name for name, _ in named_leaves(primal)]
            for k, (leaf, arrow) in enumerate(zip(leaves, arrows, strict=True)):
                if arrow is None or not is_float(leaf):
                    continue
                if not is_array(arrow) or np.shape(arrow) != np.shape(leaf):
                    where = f"argument {i}" + (f" ({names[k]})" if names[k] else "")
                    shape = np.shape(arrow) if is_array(arrow) else type(arrow).__name__
                    raise TraceError(
                        f"jvp of {name_of(f)}: the tangent of {where} must have shape {np.shape(leaf)}, got {shape}"
                    )
                leaves[k] = fresh(graph, leaf)
                wrt.append(leaves[k])
                directions.append(arrow)
            primals[i] = unflatten(structure, leaves)
        result = f(*primals)
        outputs, structure = flatten(result)
        traced = [k for k, o in enumerate(outputs) if isinstance(o, Tensor) and o.dtype.kind == "f"]
        moved: list[Any] = [np.zeros_like(o) if is_float(o) else None for o in outputs]
        if traced and wrt:
            nodes = [graph.capture(outputs[k]) for k in traced]
            seeds, gradients = _pushforward(nodes, wrt)
            for k, tangent in zip(traced, backward(gradients, directions, seeds), strict=True):
                moved[k] = tangent
        return result, unflatten(structure, moved)

    return Transformed(_pushing, f, (count, compile), record, _nothing, compile)


def elementwise_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, compile: bool = True
) -> Callable[..., Any]:
    """Return a function that returns the gradient of the sum of f's result: the derivative of each element, where f
    works element by element.

    See `grad` for the arguments; f may return an array of any shape.
    """

    def total(*args: Any) -> Any:
        value = f(*args)
        if not is_array(value):
            raise TraceError(f"{name_of(f)} must return one array, got {type(value).__name__}")
        return np.sum(value)

    total.__name__ = name_of(f)
    total.__doc__ = f.__doc__
    return grad(total, argnums, compile=compile)


def hvp(f: Callable[..., Any], x: Any, v: Any, *rest: Any, compile: bool = True) -> Any:
    """Return H·v, where H is the Hessian of the scalar function f(x, *rest) with respect to x.

    v and the result are trees like x. It costs a few evaluations of f; H itself is never made.
    """
    return _curving(f, compile)(x, v, *rest)


def _curving(f: Callable[..., Any], compile: bool) -> Transformed:
    """Return the function of x, v and the other arguments that gives H·v."""

    def check(args: Sequence[Any]) -> None:
        check_differentiable(args[0], 0)

    def record(graph: Graph, args: Sequence[Any]) -> Any:
        x, v, *rest = args
        leaves, structure = flatten(x)
        directions, other = flatten(v)
        if structure != other or [np.shape(a) for a in leaves] != [np.shape(a) for a in directions]:
            raise TraceError(f"hvp of {name_of(f)}: x and v must have one structure and the same shapes")
        wrt = [fresh(graph, leaf) for leaf in leaves]
        gradients, _ = flatten(grad(f)(unflatten(structure, wrt), *rest))
        # H is symmetric: its product with v is the pullback of the gradient at v.
        return unflatten(structure, backward(gradients, directions, wrt))

    return Transformed(_curving, f, (compile,), record, check, compile)
