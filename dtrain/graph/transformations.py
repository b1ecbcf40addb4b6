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
from dtrain.graph.api import as_argnums, fresh, grad, positions_of
from dtrain.graph.calls import Transformed, check_differentiable, is_array, is_float, name_of
from dtrain.graph.differentiate import backward
from dtrain.graph.ops.shape import alias, zeros_like
from dtrain.graph.scanning import scan
from dtrain.graph.tensor import Graph, Tensor
from dtrain.graph.tree import flatten, named_leaves, unflatten


def _pushforward(outputs: Sequence[Tensor], wrt: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return (u, uᵀJ): what the gradients with respect to `wrt` are a linear function of, and these gradients."""
    seeds = [alias(zeros_like(o)) for o in outputs]
    return seeds, backward(outputs, seeds, wrt)


def _nothing(args: Sequence[Any]) -> None:
    """Accept any arguments."""


def _static(argnums: int | Sequence[int]) -> int | tuple[int, ...]:
    return argnums if isinstance(argnums, int) else tuple(argnums)


def _from_front(f: Callable[..., Any], argnums: int | Sequence[int], args: Sequence[Any]) -> int | tuple[int, ...]:
    """Return `argnums` counted from the front."""
    positions = positions_of(f, as_argnums(argnums), args)
    return positions[0] if isinstance(argnums, int) else tuple(positions)


def _check(f: Callable[..., Any], argnums: int | Sequence[int]) -> Callable[[Sequence[Any]], None]:
    """Return what checks that the arguments named by `argnums` are there and are floats."""

    def check(args: Sequence[Any]) -> None:
        for p in positions_of(f, as_argnums(argnums), args):
            check_differentiable(args[p], p)

    return check


def jvp(
    f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], *, compile: bool = True
) -> tuple[Any, Any]:
    """Return (f(*primals), J·tangents): the value, and its derivative along a direction.

    `primals` are the arguments, `tangents` trees like them; a leaf that is neither floating point nor complex has the
    tangent None, and None for a float leaf means 0. The second result is a tree like the first, with None beside what
    is neither floating point nor complex. Raises TraceError where structures or shapes differ.
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
        traced = [k for k, o in enumerate(outputs) if isinstance(o, Tensor) and o.dtype.kind in "fc"]
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

    def record(graph: Graph, args: Sequence[Any]) -> Any:
        return grad(total, _from_front(f, argnums, args))(*args)

    return Transformed(elementwise_grad, f, (_static(argnums), compile), record, _check(f, argnums), compile)


def hvp(f: Callable[..., Any], x: Any, v: Any, *rest: Any, compile: bool = True) -> Any:
    """Return H·v, where H is the Hessian of the scalar function f(x, *rest) with respect to x.

    v and the result are trees like x. It costs a few evaluations of f; H itself is never made.
    """
    return _curving(f, compile)(x, v, *rest)


def _curving(f: Callable[..., Any], compile: bool) -> Transformed:
    """Return the function of x, v and the other arguments that gives H·v."""

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

    return Transformed(_curving, f, (compile,), record, _check(f, 0), compile)


def jacobian(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, compile: bool = True, holomorphic: bool = False
) -> Callable[..., Any]:
    """Return a function that returns the matrix of first derivatives of f.

    For an array x and a result y it has the shape y.shape + x.shape. Where the result is a tree, so is the Jacobian,
    with, in place of each array, a tree like the argument (a tuple of trees for a tuple of `argnums`). It is made row
    by row in reverse mode, or column by column in forward mode where x has fewer elements than y, by a loop (`scan`),
    so the graph does not grow with the size. See `grad` for the arguments, for `compile` and, with complex numbers, for
    `holomorphic`.
    """

    def record(graph: Graph, args: Sequence[Any]) -> Any:
        return _jacobian(graph, f, argnums, args, holomorphic)

    return Transformed(jacobian, f, (_static(argnums), compile, holomorphic), record, _check(f, argnums), compile)


def hessian(f: Callable[..., Any], argnums: int | Sequence[int] = 0, compile: bool = True) -> Callable[..., Any]:
    """Return a function that returns the matrix of second derivatives of the scalar function f.

    It is the Jacobian of the gradient: for an array x it has the shape x.shape + x.shape; for a tree {"a", "b"} it is
    {"a": {"a", "b"}, "b": {"a", "b"}}. `hvp` gives its product with a vector without making it.
    """

    def record(graph: Graph, args: Sequence[Any]) -> Any:
        positions = _from_front(f, argnums, args)
        return _jacobian(graph, grad(f, positions), positions, args, holomorphic=False)

    return Transformed(hessian, f, (_static(argnums), compile), record, _check(f, argnums), compile)


def _jacobian(
    graph: Graph, f: Callable[..., Any], argnums: int | Sequence[int], args: Sequence[Any], holomorphic: bool
) -> Any:
    new = list(args)
    wrt: list[Tensor] = []
    structures = []
    for p in positions_of(f, as_argnums(argnums), args):
        leaves, structure = flatten(args[p])
        nodes = [fresh(graph, leaf) for leaf in leaves]
        wrt += nodes
        structures.append((structure, len(nodes)))
        new[p] = unflatten(structure, nodes)
    result = f(*new)
    outputs, out_structure = flatten(result)
    for (name, _), o in zip(named_leaves(result), outputs, strict=True):
        if np.iscomplexobj(o) and not holomorphic:
            where = f" ({name})" if name else ""
            raise TraceError(
                f"jacobian of {name_of(f)}: its result{where} is complex; differentiate np.real and np.imag of it, or "
                "give holomorphic=True if it is a holomorphic function"
            )
        if not is_float(o):
            what = o.dtype if hasattr(o, "dtype") else type(o).__name__
            where = f" ({name})" if name else ""
            raise TraceError(f"jacobian of {name_of(f)}: its result{where} of type {what} has no derivative")
    traced = [graph.capture(o) for o in outputs if isinstance(o, Tensor)]
    was_eager = graph.is_eager
    graph.is_eager = False
    try:
        is_real = all(node.dtype.kind == "f" for node in (*wrt, *traced))  # columns would lose imaginary parts
        if is_real and sum(w.size for w in wrt) < sum(o.size for o in traced):
            found = _by_columns(traced, wrt)
        else:
            found = [_rows(o, wrt) for o in traced]
    finally:
        graph.is_eager = was_eager
    rows = iter(found)
    parts = []
    for o in outputs:
        blocks: list[Any]
        if isinstance(o, Tensor):
            blocks = [np.reshape(b, (*o.shape, *w.shape)) for b, w in zip(next(rows), wrt, strict=True)]
        else:
            blocks = [np.zeros((*np.shape(o), *w.shape), w.dtype) for w in wrt]
        trees = []
        for structure, count in structures:
            trees.append(unflatten(structure, blocks[:count]))
            blocks = blocks[count:]
        parts.append(trees[0] if isinstance(argnums, int) else tuple(trees))
    return unflatten(out_structure, parts)


def _rows(output: Tensor, wrt: Sequence[Tensor]) -> list[Any]:
    """Return the derivatives of each element of the output, stacked, for each of `wrt`."""
    places = np.arange(output.size).reshape(output.shape)

    def row(nothing: None, i: Any) -> tuple[None, list[Tensor]]:
        return None, backward([output], [np.equal(places, i).astype(output.dtype)], wrt)

    _, rows = scan(row, None, np.arange(output.size))
    return rows  # type: ignore[no-any-return]


def _by_columns(outputs: Sequence[Tensor], wrt: Sequence[Tensor]) -> list[list[Any]]:
    """Return the same as `_rows` of each output, from derivatives along each element of `wrt`."""
    seeds, gradients = _pushforward(outputs, wrt)
    columns = [_rows(g, seeds) for g in gradients]
    return [[np.moveaxis(c[k], 0, -1) for c in columns] for k in range(len(outputs))]
