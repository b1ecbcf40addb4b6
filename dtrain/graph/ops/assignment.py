# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Item assignment, x[i] = v, recorded as a new value that the user's handle of x then stands for.

The old value lives on in the graph under a node of its own, so everything that was computed from it stays right.
Views of x taken before the assignment would have changed with it in NumPy: using one afterwards is an error.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import numpy as np

from dtrain.errors import ShapeError, TraceError
from dtrain.graph.conversions import carries_gradient
from dtrain.graph.ops.indexing import Template, gather, real_index, slice_, template_of
from dtrain.graph.ops.reduction import normalize_axes
from dtrain.graph.ops.shape import alias
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record
from dtrain.graph.tensor import Tensor, format_line, user_line


def _assign_shape(x: Any, v: Any, *arrays: Any, index: Template) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, x.dtype


def _assign_run(out: np.ndarray, x: np.ndarray, v: np.ndarray, index: tuple[Any, ...]) -> None:
    np.copyto(out, x)
    out[index] = v


def _assign_bind(out: np.ndarray, x: np.ndarray, v: np.ndarray, *arrays: np.ndarray, index: Template) -> Call:
    return partial(_assign_run, out, x, v, real_index(index, arrays))


@primitive(shape=_assign_shape, bind=_assign_bind)
def assign(g, out, x, v, *arrays, index):
    """x with v at an index. Where an element was assigned more than once, the last one counts."""
    zero = np.zeros((), g.dtype)
    if not arrays:
        return assign(g, zero, index=index), slice_(g, index=index)
    taken = gather(g, *arrays, index=index)
    return (
        assign(g, zero, *arrays, index=index),
        np.where(is_last(taken, *arrays, shape=x.shape, index=index), taken, 0),
        *[None] * len(arrays),
    )


def _last_shape(taken: Any, *arrays: Any, shape: Shape, index: Template) -> tuple[Shape, np.dtype[Any]]:
    return taken.shape, np.dtype(bool)


def _last_bind(out: np.ndarray, taken: np.ndarray, *arrays: np.ndarray, shape: Shape, index: Template) -> Call:
    owner = np.empty(shape, np.intp)
    places = np.arange(out.size).reshape(out.shape)

    def run() -> None:
        where = real_index(index, arrays)
        owner[where] = places
        np.equal(owner[where], places, out)

    return run


@primitive(shape=_last_shape, bind=_last_bind, is_differentiable=False)
def is_last(taken, *arrays, shape, index):
    """Whether an assigned element was not overwritten by a later one of the same index."""


class OutdatedView(Tensor):
    """A view of an array that was assigned to after the view was taken."""

    __slots__ = ()

    def _fail(self) -> NoReturn:
        raise TraceError(
            f"a view of a traced array at {format_line(user_line())} is older than an assignment to that array; take "
            "it again after the assignment, or .copy() it before"
        )

    def __getattribute__(self, name: str) -> Any:
        if name in ("_fail", "__class__"):
            return object.__getattribute__(self, name)
        object.__getattribute__(self, "_fail")()


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """Record x[index] = value: the handle x stands for the new value from here on."""
    where = format_line(user_line())
    if x.graph.depth and x.op is None and not x.is_constant:
        raise TraceError(f"assignment to an array from outside of a loop at {where}: use x = x.copy() in the body")
    if x.op is None and not x.is_constant:
        raise TraceError(f"assignment to an argument at {where} would change the caller's array: use x = x.copy()")
    # zeros_like and full_like are recorded as a broadcast; np.broadcast_to itself is read-only in NumPy.
    if x.op is not None and x.op.is_view and x.op.name != "broadcast_to":
        raise TraceError(
            f"assignment to a view of a traced array (or to an argument) at {where}: assign to the array itself, as "
            "in x[0, 1] = v instead of row = x[0]; row[1] = v, or use x = x.copy()"
        )
    new: Any
    if isinstance(index, Tensor) and index.dtype.kind == "b":
        if np.ndim(value):
            raise TraceError(
                f"assignment of an array at a traced mask at {where} is not covered; use np.where(mask, values, x)"
            )
        mask: Any = np.reshape(index, index.shape + (1,) * (x.ndim - index.ndim))
        new = np.where(mask, value, x)
        new = new.astype(x.dtype) if new.dtype != x.dtype else new
    else:
        template, arrays = template_of(index)
        is_slice = isinstance(value, Tensor) and value.op is slice_ and value.inputs[0] is x
        if is_slice and not arrays and value.static["index"] == template:
            return  # what y[0] += 1 has put there already
        v: Any = as_tensor(value, x.graph)
        if v.dtype.kind == "c" and x.dtype.kind != "c":
            raise TraceError(f"assignment of complex numbers to an array of {x.dtype} at {where}: use np.real")
        if x.dtype.kind in "biu" and carries_gradient(v):
            raise TraceError(
                f"assignment of {v.dtype} to an array of {x.dtype} at {where}: it would lose the gradient; make the "
                "array of floats, or round with x.astype(int)"
            )
        if v.dtype != x.dtype:
            v = v.astype(x.dtype)
        room = x[index].shape
        while v.ndim > len(room) and v.shape[0] == 1:
            v = np.reshape(v, v.shape[1:])
        new = record(assign, (x, np.broadcast_to(v, room), *arrays), {"index": template})
    if new.graph is not x.graph:
        raise TraceError(f"assignment to an array from outside of a loop at {where}: use x = x.copy() in the body")
    _rebind(x, new)


def in_place(x: Tensor, new: Any) -> Any:
    """Record x += y and its kin, given x + y: every name of x stands for the new value from here on, as in NumPy.

    A number, and an argument of the function, is not changed: there the name alone is bound to the new value.
    """
    if not x.shape or x.op is None or x.op is alias:
        return new
    if new.shape != x.shape:
        raise ShapeError(f"in-place operation at {format_line(user_line())}: {new.shape} does not fit into {x.shape}")
    if not np.can_cast(new.dtype, x.dtype, "same_kind"):
        raise TraceError(f"in-place operation at {format_line(user_line())}: {new.dtype} does not fit into {x.dtype}")
    if x.op is slice_:  # as in y[0] += 1
        base, index = x.inputs[0], real_index(x.static["index"])
        setitem(base, index, new)
        return base[index]
    if x.op.is_view and x.op.name != "broadcast_to":
        raise TraceError(
            f"in-place operation on a view of a traced array (or on an argument) at {format_line(user_line())}: write "
            "x = x + y instead of x += y, or use x = x.copy()"
        )
    if new.graph is not x.graph:
        return new
    _rebind(x, new if new.dtype == x.dtype else new.astype(x.dtype))
    return x


def _changed(x: Any, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise TraceError(
            f"{name} of a traced array into a plain one at {format_line(user_line())}: it would lose the gradient; "
            "make the array with np.zeros_like(x) of a traced x"
        )
    return x


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    """Record np.copyto into an array that was made from traced ones."""
    x = _changed(dst, "np.copyto")
    setitem(x, ..., src if where is True else np.where(where, src, x))


def fill_diagonal(a: Any, val: Any, wrap: bool = False) -> None:
    """Record np.fill_diagonal into an array that was made from traced ones."""
    x = _changed(a, "np.fill_diagonal")
    places = np.zeros(x.shape, bool)
    np.fill_diagonal(places, True, wrap)
    index = np.nonzero(places)
    count = len(index[0])
    value = val if np.ndim(val) == 0 else np.resize(np.reshape(val, -1), count)
    setitem(x, index, value)


def put(a: Any, ind: Any, v: Any, mode: str = "raise") -> None:
    """Record np.put at plain places into an array that was made from traced ones."""
    x = _changed(a, "np.put")
    ind = np.asarray(ind).reshape(-1)
    if mode == "raise":
        ind = np.where(ind < 0, ind + x.size, ind)
    index = np.unravel_index(
        ind % x.size if mode == "wrap" else np.clip(ind, 0, x.size - 1) if mode == "clip" else ind, x.shape
    )
    setitem(x, index, v if np.ndim(v) == 0 else np.resize(v, ind.size))


def put_along_axis(arr: Any, indices: Any, values: Any, axis: Any) -> None:
    """Record np.put_along_axis into an array that was made from traced ones."""
    x = _changed(arr, "np.put_along_axis")
    if axis is None:
        put(x, indices, values)
        return
    (a,) = normalize_axes(axis, x.ndim)
    along = [[-1 if i == j else 1 for i in range(x.ndim)] for j in range(x.ndim)]
    index = [indices if i == a else np.arange(n).reshape(along[i]) for i, n in enumerate(x.shape)]
    setitem(x, tuple(index), values)


def _clone(node: Tensor) -> Tensor:
    """Return a copy of the handle that takes its place in the graph."""
    other = Tensor.__new__(Tensor)
    for name in Tensor.__slots__:
        if name != "__weakref__":
            setattr(other, name, getattr(node, name))
    node.graph.nodes[node.index] = other
    return other


def _rebind(x: Tensor, new: Tensor) -> None:
    graph = x.graph
    nodes = graph.nodes
    moved = {id(x): _clone(x)}
    shown = {id(x)}
    outdated = []
    for node in nodes[x.index + 1 :]:
        is_view = node.op is not None and node.op.is_view and node.op is not alias  # an alias stands for the value
        is_of_view = is_view and node.inputs and id(node.inputs[0]) in shown
        if any(id(i) in moved for i in node.inputs):
            node.inputs = tuple([moved.get(id(i), i) for i in node.inputs])
        # A single element is a number in NumPy, not a view.
        if is_of_view and (node.shape or node.op.name != "slice"):  # type: ignore[union-attr]
            shown.add(id(node))
            moved[id(node)] = _clone(node)
            outdated.append(node)
    for table in (graph._constants, graph._scalars):
        for key, node in table.items():
            if node is x:
                table[key] = moved[id(x)]
                break
    graph.outputs = [moved.get(id(o), o) for o in graph.outputs]
    for node in outdated:
        node.__class__ = OutdatedView
    for name in Tensor.__slots__:
        if name != "__weakref__":
            setattr(x, name, getattr(new, name))
    nodes[x.index] = x
