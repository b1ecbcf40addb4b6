"""`scan`: a loop over arrays, written as one step. Owns the recording of its body; the loop itself is in `loops.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from dtrain.errors import ShapeError, TraceError
from dtrain.graph.context import key_of
from dtrain.graph.loops import Body, BodyGraph, loop
from dtrain.graph.ops.shape import astype
from dtrain.graph.primitive import Call, Shape, Static, prototype
from dtrain.graph.regions import Structural, append, part_of
from dtrain.graph.tensor import Graph, Tensor, active_graph, format_line, recording, user_line
from dtrain.graph.tree import flatten, named_leaves, unflatten


class _Keys(Structural):
    """The random key of each step of a loop: uint64[length, 4], told apart by the last word."""

    def infer(self, inputs: Sequence[Any], static: Static) -> tuple[Shape, np.dtype[Any]]:
        return (static["length"], 4), np.dtype(np.uint64)

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        out = np.empty(*self.infer((), static))
        self.bind(out, values, static)()
        return out

    def bind(self, out: np.ndarray, values: Sequence[np.ndarray], static: Static) -> Call:
        return partial(_fill_keys, out, values[0])


def _fill_keys(out: np.ndarray, key: np.ndarray) -> None:
    out[:] = key
    out[:, 3] <<= np.uint64(24)  # loops in loops
    out[:, 3] += np.arange(1, len(out) + 1, dtype=np.uint64)


_keys = _Keys("step_keys")


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Run carry, y = f(carry, x) over the leading axis of xs and return (the last carry, the ys stacked).

        def step(h, x):
            h = np.tanh(x @ w + h @ u)
            return h, h

        last, states = dtrain.scan(step, np.zeros(64), inputs)  # inputs (time, 32), states (time, 64)

    The result is that of a Python loop, but a trace records f once, whatever the length, and a gradient keeps the
    carries of all steps and what the gradients of weights, each one product over all steps, need beside them. The
    carry is a tree of arrays (numbers become arrays) that keeps structure, shapes and dtypes; xs and y are trees with
    None where there is nothing. Without xs, give `length`. With `reverse` the last x comes first, and ys[t] still
    belongs to xs[t]. f may close over traced arrays. Every step draws its own random numbers. Outside of a trace it is
    a Python loop. Raises TraceError or ShapeError where the carry changes its kind.
    """
    leaves, structure = flatten(xs)
    arrays = [None if leaf is None else leaf if isinstance(leaf, Tensor) else _numeric(leaf, "xs") for leaf in leaves]
    lengths = [a.shape[0] if a.ndim else -1 for a in arrays if a is not None]
    lengths += [] if length is None else [length]
    if len(set(lengths)) != 1 or lengths[0] < 0:
        shapes = ", ".join(str(a.shape) for a in arrays if a is not None) or "none"
        raise ShapeError(
            f"scan: xs must have a common leading axis (or give length=), got shapes {shapes} and length={length}; "
            f"called at {format_line(user_line())}"
        )
    graph = active_graph()
    if graph is None:
        return _looped(f, init, arrays, structure, lengths[0], reverse)
    return _Recorder(graph, f, arrays, structure, lengths[0], reverse).record(init)


def _numeric(leaf: Any, what: str) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufc":
        raise TraceError(
            f"scan: {what} holds a {type(leaf).__name__}, which is no array of numbers; called at "
            f"{format_line(user_line())}"
        )
    return array


def _pair(returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TraceError(
            f"scan: f must return (carry, y), got {type(returned).__name__}; return (carry, None) where there is no y"
        )
    return returned


def _looped(
    f: Callable[..., Any], carry: Any, arrays: Sequence[Any], structure: Any, length: int, reverse: bool
) -> tuple[Any, Any]:
    """Run the loop on plain arrays."""
    if length == 0:
        sample = [None if a is None else np.zeros(a.shape[1:], a.dtype) for a in arrays]
        leaves, made = flatten(_pair(f(carry, unflatten(structure, sample)))[1])
        return carry, unflatten(
            made, [None if y is None else np.zeros((0, *np.shape(y)), np.result_type(y)) for y in leaves]
        )
    rows: list[Any] = [None] * length
    made = None
    for t in range(length - 1, -1, -1) if reverse else range(length):
        carry, y = _pair(f(carry, unflatten(structure, [a if a is None else a[t] for a in arrays])))
        rows[t], made = flatten(y)
    columns = [None if column[0] is None else np.stack(column) for column in zip(*rows, strict=True)]
    return carry, unflatten(made, columns)


class _Recorder:
    """Records one loop into a graph."""

    def __init__(
        self, graph: Graph, f: Callable[..., Any], arrays: Sequence[Any], structure: Any, length: int, reverse: bool
    ) -> None:
        self.graph = graph
        self.f = f
        self.xs = [None if a is None else self._node(a) for a in arrays]
        self.structure = structure
        self.length = length
        self.reverse = reverse

    def _node(self, leaf: Any) -> Tensor:
        return self.graph.capture(leaf) if isinstance(leaf, Tensor) else self.graph.constant(leaf)

    def record(self, init: Any) -> tuple[Any, Any]:
        leaves, structure = flatten(init)
        names = [name for name, _ in named_leaves(init)]
        weak = [type(leaf) in (bool, int, float) or (isinstance(leaf, Tensor) and leaf.weak) for leaf in leaves]
        starts: list[Any] = []
        for leaf in leaves:
            numeric = leaf if leaf is None or isinstance(leaf, Tensor) else _numeric(leaf, "the carry")
            starts.append(None if numeric is None else self._node(numeric))
        for _ in range(3):  # a Python number takes the dtype of what it meets
            body, carries, xs, new, ys = self._trace(starts, weak, structure, names)
            changed = [
                i
                for i, (start, after) in enumerate(zip(starts, new, strict=True))
                if start is not None and after.dtype != start.dtype and weak[i]
            ]
            for i in changed:
                starts[i], weak[i] = astype(starts[i], new[i].dtype), False
            if not changed:
                break
        self._check(starts, new, names)
        return self._finish(body, starts, structure, carries, xs, new, ys)

    def _trace(self, starts: Sequence[Any], weak: Sequence[bool], structure: Any, names: Sequence[str]) -> Any:
        body = BodyGraph(self.graph)
        at = self.length - 1 if self.reverse else 0
        carries: list[Any] = []
        for start, is_weak, name in zip(starts, weak, names, strict=True):
            value = None if start is None else self._sample(start, None)
            carries.append(None if start is None else body.input(value, f"carry.{name}" if name else "carry", is_weak))
        xs = [None if x is None else body.input(self._sample(x, at), "x") for x in self.xs]
        with recording(body):
            after, y = _pair(self.f(unflatten(structure, carries), unflatten(self.structure, xs)))
            leaves, other = flatten(after)
            if other != structure:
                raise TraceError(
                    f"scan: the carry must keep its structure: it began with {_names(names)}, and f returned "
                    f"{_names([name for name, _ in named_leaves(after)])}; called at {format_line(user_line())}"
                )
            new: list[Any] = []
            for leaf, start, carry in zip(leaves, starts, carries, strict=True):
                if (leaf is None) != (start is None):
                    raise TraceError(
                        "scan: the carry must keep its structure: None became an array, or an array None; called at "
                        f"{format_line(user_line())}"
                    )
                node = None if leaf is None else self._inside(body, leaf, "the carry")
                is_weak = type(leaf) in (bool, int, float) or (node is not None and node.weak)
                if node is not None and is_weak and node.dtype != carry.dtype and not carry.weak:
                    node = astype(node, carry.dtype)
                new.append(node)
            y_leaves, y_structure = flatten(y)
            ys = [None if leaf is None else self._inside(body, leaf, "y") for leaf in y_leaves]
        return body, carries, xs, new, (ys, y_structure)

    def _sample(self, x: Tensor, at: int | None) -> Any:
        """Return a value for the trace of the body: the first, or none where nothing is computed."""
        shape = x.shape if at is None else x.shape[1:]
        if not self.graph.is_eager:
            return prototype(shape, x.dtype)
        if at is None:
            return x.value
        return np.asarray(x.value)[at] if self.length else np.zeros(shape, x.dtype)

    @staticmethod
    def _inside(body: BodyGraph, leaf: Any, what: str) -> Tensor:
        return body.capture(leaf) if isinstance(leaf, Tensor) else body.constant(_numeric(leaf, what))

    def _check(self, starts: Sequence[Any], new: Sequence[Any], names: Sequence[str]) -> None:
        for start, after, name in zip(starts, new, names, strict=True):
            if start is not None and (start.shape, start.dtype) != (after.shape, after.dtype):
                raise ShapeError(
                    f"scan: the carry{f' ({name})' if name else ''} must keep its shape and dtype: it began as "
                    f"{start.dtype}{list(start.shape)}, and f returned {after.dtype}{list(after.shape)}; begin with an "
                    f"array like it, or use astype; called at {format_line(user_line())}"
                )

    def _finish(
        self,
        body: BodyGraph,
        starts: Sequence[Any],
        structure: Any,
        carries: Sequence[Any],
        xs: Sequence[Any],
        new: Sequence[Any],
        made: tuple[list[Any], Any],
    ) -> tuple[Any, Any]:
        ys, y_structure = made
        held, inputs = [c for c in carries if c is not None], [x for x in self.xs if x is not None]
        fed = [x for x in xs if x is not None]
        if body.key is not None:
            fed.append(body.key)
            inputs.append(append(_keys, [key_of(self.graph)], {"length": self.length}))
        self.graph.random_places = body.random_places
        body.is_closed = True
        body.forget_values()
        outputs = [y for y in ys if y is not None]
        step = Body(
            body,
            [node for _, node in body.captured.values()],
            held,
            fed,
            [n for n in new if n is not None],
            [*outputs, *held],
            {i: len(outputs) + i for i in range(len(held))},
        )
        outer = [o for o, _ in body.captured.values()]
        static = {"body": step, "length": self.length, "reverse": self.reverse}
        node = append(loop, [*outer, *[s for s in starts if s is not None], *inputs], static, self.graph)
        parts = iter([part_of(node, i) for i in range(len(held) + len(outputs))])
        last = unflatten(structure, [None if c is None else next(parts) for c in carries])
        return last, unflatten(y_structure, [None if y is None else next(parts) for y in ys])


def _names(names: Sequence[str]) -> str:
    return "(" + ", ".join(name or "an array" for name in names) + ")"
