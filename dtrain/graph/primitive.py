"""Primitives: what one node computes (a kernel that writes into given memory), its shape rule, and its gradient rule.

The gradient rule is an ordinary function `rule(g, out, *inputs, **static)` that returns one expression per input,
written with NumPy functions on Tensors, so that it records itself and can be differentiated again. `g` has the shape
of `out`; a returned gradient may have any shape that broadcasts against the input: broadcasting is undone in
`differentiate.py` and nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from dtrain.errors import ShapeError, TraceError
from dtrain.graph.tensor import EMPTY, Graph, Tensor, active_graph, format_line, holds_tensor, stacked, user_line

Call = Callable[[], Any]
Shape = tuple[int, ...]
Static = dict[str, Any]

PRIMITIVES: dict[str, Primitive] = {}
"""Every primitive by name. `tests/ops_table.py` must hold a sample of each."""


@dataclass(frozen=True)
class Missing:
    """What a gradient rule returns for an input whose derivative is not known; asking for it is an error."""

    what: str


class Primitive:
    """One operation. Calling it records a node (and computes it while the graph is eager).

    `is_elementwise`: out[i] depends on no other element than i of the inputs, so an input that dies may give its
    memory. `is_view`: the result shares the input's memory. `is_random`: not folded, not merged.
    """

    is_elementwise = False
    is_view = False
    is_random = False
    module = __name__
    """Where it is defined."""

    def __init__(self, name: str, rule: Callable[..., Any] | None, doc: str | None) -> None:
        if name in PRIMITIVES:
            raise ValueError(f"there is already a primitive {name}")
        self.name = name
        self.rule = rule
        self.__doc__ = doc
        PRIMITIVES[name] = self

    def __repr__(self) -> str:
        return f"<primitive {self.name}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # One of the table stays the one of the table in another process, where the plan tells them apart by identity.
        if PRIMITIVES.get(self.name) is self:
            return _of_table, (self.name, self.module)
        return super().__reduce_ex__(protocol)

    def infer(self, inputs: Sequence[Tensor], static: Static) -> tuple[Shape, np.dtype[Any]]:
        """Return shape and dtype of the result; raises ValueError where the shapes do not fit."""
        raise NotImplementedError

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        """Compute the result into new memory (a view where the primitive is one)."""
        raise NotImplementedError

    def bind(self, out: np.ndarray, values: Sequence[np.ndarray], static: Static) -> Call:
        """Return a call without arguments that computes the result into `out`. It allocates nothing where NumPy
        allows."""
        raise NotImplementedError

    def expects(self, inputs: Sequence[Tensor], static: Static) -> str:
        """Say in one phrase which shapes would fit, for the error message."""
        return "shapes that broadcast together"

    def __call__(self, *args: Any, **static: Any) -> Any:
        return record(self, args, static or EMPTY)


def _of_table(name: str, module: str) -> Primitive:
    if name not in PRIMITIVES:  # those of SciPy are there once something uses them
        importlib.import_module(module)
    return PRIMITIVES[name]


class Ufunc(Primitive):
    """A NumPy ufunc of one output: elementwise with broadcasting, dtype by NumPy's own promotion."""

    is_elementwise = True

    def __init__(self, ufunc: np.ufunc, name: str, rule: Callable[..., Any] | None, doc: str | None) -> None:
        super().__init__(name, rule, doc)
        self.ufunc = ufunc

    def infer(self, inputs: Sequence[Tensor], static: Static) -> tuple[Shape, np.dtype[Any]]:
        dtype = resolve(self.ufunc, *[i.dtype for i in inputs])
        shape = inputs[0].shape
        for other in inputs[1:]:
            if other.shape != shape:
                return np.broadcast_shapes(*[i.shape for i in inputs]), dtype
        return shape, dtype

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        return self.ufunc(*values)

    def bind(self, out: np.ndarray, values: Sequence[np.ndarray], static: Static) -> Call:
        if self.ufunc is np.maximum or self.ufunc is np.minimum:  # NumPy deprecates their positional `out`
            return partial(self.ufunc, *values, out=out)
        return partial(self.ufunc, *values, out)

    def __call__(self, *args: Any, **static: Any) -> Any:
        return record(self, promote(args))


class Kernel(Primitive):
    """A primitive given by a shape rule and a binder `bind(out, *values, **static) -> call`."""

    def __init__(
        self,
        name: str,
        rule: Callable[..., Any] | None,
        doc: str | None,
        shape: Callable[..., tuple[Shape, np.dtype[Any]]],
        bind: Callable[..., Call],
        is_elementwise: bool = False,
        is_random: bool = False,
        expects: Callable[..., str] | None = None,
    ) -> None:
        super().__init__(name, rule, doc)
        self._shape = shape
        self._bind = bind
        self._expects = expects
        self.is_elementwise = is_elementwise
        self.is_random = is_random

    def infer(self, inputs: Sequence[Tensor], static: Static) -> tuple[Shape, np.dtype[Any]]:
        return self._shape(*inputs, **static)

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        values = [np.asarray(v) for v in values]
        shape, dtype = self._shape(*values, **static)
        out = np.empty(shape, dtype)
        self._bind(out, *values, **static)()
        return out

    def bind(self, out: np.ndarray, values: Sequence[np.ndarray], static: Static) -> Call:
        return self._bind(out, *values, **static)

    def expects(self, inputs: Sequence[Tensor], static: Static) -> str:
        return self._expects(*inputs, **static) if self._expects else super().expects(inputs, static)


class View(Primitive):
    """A primitive whose result shares memory with its one input; `view(x, **static)` raises ValueError where it
    cannot."""

    is_view = True

    def __init__(
        self, name: str, rule: Callable[..., Any] | None, doc: str | None, view: Callable[..., np.ndarray]
    ) -> None:
        super().__init__(name, rule, doc)
        self.view = view

    def infer(self, inputs: Sequence[Tensor], static: Static) -> tuple[Shape, np.dtype[Any]]:
        (x,) = inputs
        shown = self.view(prototype(x.shape, x.dtype), **static)
        return shown.shape, shown.dtype

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        x = np.asarray(values[0])
        try:
            return self.view(x, **static)
        except ValueError:
            return self.view(np.ascontiguousarray(x), **static)

    def expects(self, inputs: Sequence[Tensor], static: Static) -> str:
        return f"a shape that fits {', '.join(f'{k}={v}' for k, v in static.items())}"


def primitive(
    kernel: np.ufunc | None = None,
    *,
    name: str | None = None,
    shape: Callable[..., Any] | None = None,
    bind: Callable[..., Call] | None = None,
    view: Callable[..., np.ndarray] | None = None,
    is_elementwise: bool = False,
    is_random: bool = False,
    is_differentiable: bool = True,
    expects: Callable[..., str] | None = None,
) -> Callable[[Callable[..., Any]], Primitive]:
    """Make a primitive of the decorated gradient rule. Give a ufunc, or `shape` and `bind`, or `view`."""

    def make(rule: Callable[..., Any]) -> Primitive:
        label = name or rule.__name__.rstrip("_")
        given = rule if is_differentiable else None
        made: Primitive
        if kernel is not None:
            made = Ufunc(kernel, label, given, rule.__doc__)
        elif view is not None:
            made = View(label, given, rule.__doc__, view)
        else:
            assert shape is not None
            assert bind is not None
            made = Kernel(label, given, rule.__doc__, shape, bind, is_elementwise, is_random, expects)
        made.module = rule.__module__
        return made

    return make


@cache
def resolve(ufunc: np.ufunc, *dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """Return the output dtype of a ufunc of one output for these input dtypes."""
    result: np.dtype[Any] = ufunc.resolve_dtypes((*dtypes, None))[-1]
    return result


@lru_cache(4096)
def prototype(shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array of this shape with C-order strides and no memory behind it: for asking about views, never for
    reading."""
    strides = []
    step = dtype.itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides[::-1])


def promote(args: Sequence[Any]) -> Sequence[Any]:
    """Give Python scalars (and weak tensors) the dtype that NumPy's promotion gives them beside the other operands."""
    for a in args:
        if a.__class__ is not Tensor or a.weak:
            break
    else:
        return args
    args = [stacked(a) if holds_tensor(a) else a for a in args]
    strong: list[np.dtype[Any]] = []
    weak: list[type] = []
    graph: Graph | None = None
    for a in args:
        kind = a.__class__
        if kind is Tensor:
            graph = a.graph
            if a.weak:
                weak.append(_WEAK[a.dtype.kind])
            else:
                strong.append(a.dtype)
        elif kind in _SCALARS:
            weak.append(kind)
        else:
            strong.append(a.dtype if hasattr(a, "dtype") else np.asarray(a).dtype)
    if not weak or not strong or graph is None:
        return args
    dtype = _promoted(tuple(strong), tuple(weak))
    result: list[Any] = []
    for a in args:
        kind = a.__class__
        if kind in _SCALARS:
            a = graph.scalar(a, dtype)
        elif kind is Tensor and a.weak and a.dtype != dtype:
            a = record(PRIMITIVES["cast"], (a,), {"dtype": dtype})
            a.weak = False
        result.append(a)
    return result


_SCALARS = frozenset((bool, int, float, complex))
_WEAK: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float, "c": complex}


@cache
def _promoted(strong: tuple[np.dtype[Any], ...], weak: tuple[type, ...]) -> np.dtype[Any]:
    return np.result_type(*strong, *[kind(0) for kind in weak])


def as_tensor(x: Any, graph: Graph | None = None) -> Tensor:
    """Return x itself if it is traced, else the constant of it in the graph that is being recorded."""
    if isinstance(x, Tensor):
        return x
    graph = graph or active_graph()
    if graph is None:
        raise TraceError(f"{type(x).__name__} at {format_line(user_line())}: nothing is being traced")
    return stacked(x) if holds_tensor(x) else graph.constant(x)


def record(op: Primitive, args: Sequence[Any], static: Static = EMPTY) -> Any:
    """Append a node to the graph of the arguments, computing it if the graph is eager. Plain arrays give a plain
    array."""
    graph: Graph | None = None
    plain = is_mixed = False
    weak = True
    for a in args:
        if a.__class__ is Tensor:
            if graph is None:
                graph = a.graph
            elif graph is not a.graph:
                if graph.depth == a.graph.depth:
                    raise TraceError(f"{op.name} at {format_line(user_line())} mixes arrays of two traced functions")
                graph = graph if graph.depth > a.graph.depth else a.graph
                is_mixed = True
            if not a.weak:
                weak = False
        else:
            plain = True
            if a.__class__ not in _SCALARS:
                weak = False
    if graph is None:
        return op.evaluate([np.asarray(a) for a in args], static)
    if is_mixed:  # the body of a loop takes in what it closes over
        args = [graph.capture(a) if a.__class__ is Tensor else a for a in args]
    inputs: tuple[Tensor, ...]
    inputs = tuple([a if a.__class__ is Tensor else graph.constant(a) for a in args]) if plain else tuple(args)
    line = graph.line
    if line is None:
        line = user_line()
    try:
        if graph.is_eager:
            value = op.evaluate([i._value if i._value is not None else i.value for i in inputs], static)
            return Tensor(graph, op, inputs, static, value.shape, value.dtype, value, line, "", weak)
        shape, dtype = op.infer(inputs, static)
    except np.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(f"{op.name}: {error}; made at {format_line(line)}") from error
    except IndexError as error:
        shapes = ", ".join(str(i.shape) for i in inputs)
        raise ShapeError(f"{op.name}: {error}, got {shapes}; made at {format_line(line)}") from error
    except ValueError as error:
        shapes = ", ".join(str(i.shape) for i in inputs)
        if op.name == "matmul" and len(inputs) == 2:
            shapes = f"{inputs[0].shape} @ {inputs[1].shape}"
        raise ShapeError(
            f"{op.name}: expected {op.expects(inputs, static)}, got {shapes}; made at {format_line(line)}"
        ) from error
    return Tensor(graph, op, inputs, static, shape, dtype, None, line, "", weak)
