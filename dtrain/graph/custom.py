"""Gradient rules of the user: `primitive` for an operation with a NumPy kernel of its own, `custom_vjp` for a function
of covered operations whose derivative is better written by hand.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dtrain.errors import ShapeError, TraceError
from dtrain.graph.calls import is_float, name_of
from dtrain.graph.ops.shape import alias, zeros_like
from dtrain.graph.primitive import Call, Primitive, Shape, Static, record
from dtrain.graph.recompute import around
from dtrain.graph.regions import Region, member_of, members, reachable, sources
from dtrain.graph.tensor import Graph, Tensor, active_graph, format_line, user_line
from dtrain.graph.tree import flatten, named_leaves, unflatten

# -- a kernel of one's own ---------------------------------------------------------------------------------------------


class Custom(Primitive):
    """An operation of the user: a NumPy kernel, a shape rule and a gradient rule. Made by `dtrain.primitive`.

    Not in the table of primitives: it belongs to whoever holds it, and two of one name are two.
    """

    def __init__(
        self,
        name: str,
        rule: Callable[..., Any] | None,
        doc: str | None,
        kernel: Callable[..., Any],
        shape: Callable[..., Any] | None,
    ) -> None:
        self.name = name
        self.rule = rule
        self.__doc__ = doc
        self._kernel = kernel
        self._shape = shape
        try:
            self._writes_out = "out" in inspect.signature(kernel).parameters
        except (TypeError, ValueError):  # a built-in without signature
            self._writes_out = False

    def infer(self, inputs: Sequence[Tensor], static: Static) -> tuple[Shape, np.dtype[Any]]:
        dtype: np.dtype[Any] = np.result_type(*[i.dtype for i in inputs])
        if self._shape is None:
            return np.broadcast_shapes(*[i.shape for i in inputs]), dtype
        told = self._shape(*inputs, **static)
        if isinstance(told, tuple) and len(told) == 2 and isinstance(told[0], tuple | list):
            told, kind = told
            dtype = np.dtype(kind)
        return tuple([int(n) for n in told]), dtype

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        values = [np.asarray(v) for v in values]
        shape, dtype = self.infer(values, static)
        if self._writes_out:
            out = np.empty(shape, dtype)
            self._kernel(*values, **static, out=out)
            return out
        found = np.asarray(self._kernel(*values, **static))
        if (found.shape, found.dtype) != (shape, dtype):
            raise ShapeError(
                f"{self.name}: its shape rule says {dtype}{list(shape)}, its kernel returned "
                f"{found.dtype}{list(found.shape)}; called at {format_line(user_line())}"
            )
        return found

    def bind(self, out: np.ndarray, values: Sequence[np.ndarray], static: Static) -> Call:
        if self._writes_out:
            return partial(self._kernel, *values, **static, out=out)
        return partial(_run, out, partial(self._kernel, *values, **static))

    def expects(self, inputs: Sequence[Tensor], static: Static) -> str:
        return "what its kernel and its shape rule accept"

    def __call__(self, *args: Any, **static: Any) -> Any:
        for key, value in static.items():
            try:
                hash(value)
            except TypeError:
                raise TraceError(
                    f"{self.name}: the keyword {key} is a {type(value).__name__}, which is not hashable; pass arrays "
                    f"by position and settings as numbers, strings or tuples; called at {format_line(user_line())}"
                ) from None
        return record(self, _promoted(args), static)


def _promoted(args: Sequence[Any]) -> Sequence[Any]:
    """Give Python numbers the dtype that NumPy's promotion gives them beside the arrays."""
    weak = [type(a) in (bool, int, float) or (isinstance(a, Tensor) and a.weak) for a in args]
    strong = [a.dtype for a, is_weak in zip(args, weak, strict=True) if not is_weak and hasattr(a, "dtype")]
    if not strong or not any(weak):
        return args
    result = []
    for a, is_weak in zip(args, weak, strict=True):
        if is_weak:
            kind = np.result_type(*strong, a.dtype.type(0).item() if isinstance(a, Tensor) else a)
            a = a.astype(kind) if isinstance(a, Tensor) else kind.type(a)
        result.append(a)
    return result


def _run(out: np.ndarray, kernel: Callable[[], Any]) -> None:
    np.copyto(out, kernel())


def primitive(
    kernel: Callable[..., Any], *, shape: Callable[..., Any] | None = None, name: str | None = None
) -> Callable[[Callable[..., Any]], Custom]:
    """Make an operation of a NumPy kernel and the decorated gradient rule.

    `kernel(*arrays, **settings)` computes on plain arrays: anything is allowed in it, SciPy or compiled code too. It
    returns the result, or writes it if it has a parameter `out`; equal inputs must give equal results, and inputs must
    not be changed. `shape(*arrays,
    **settings)` returns the shape of the result, or (shape, dtype); without it the inputs broadcast, and without a
    dtype it is NumPy's promotion of theirs. The rule gets the gradient `g` of the result, the result `out` and the
    inputs, and returns a gradient for each input (None for none) as an expression of covered functions, which can be
    differentiated again; g must enter linearly. Settings are keyword-only and hashable.

        def kernel(x, *, width):
            return scipy.ndimage.uniform_filter1d(x, width, mode="wrap")

        @dtrain.primitive(kernel, shape=lambda x, *, width: x.shape)
        def smooth(g, out, x, *, width):
            \"\"\"Moving average on a ring; its own transpose for an odd width.\"\"\"
            return smooth(g, width=width)

        dtrain.grad(lambda x: np.sum(smooth(x, width=3) ** 2))(np.ones(8))
    """
    if not callable(kernel):
        raise TypeError(f"primitive: expected the kernel, a function on arrays, got {type(kernel).__name__}")

    def make(rule: Callable[..., Any]) -> Custom:
        return Custom(name or rule.__name__, rule, rule.__doc__, kernel, shape)

    return make


# -- a derivative of one's own -----------------------------------------------------------------------------------------


@dataclass(eq=False, frozen=True)
class _Rule:
    """What a region of a custom_vjp knows: how to rebuild the trees around its inputs."""

    name: str
    backward: Callable[..., Any]
    output: Any
    results: tuple[Any, ...]
    """For each leaf of the output: its number among the region's results, or the constant that it is."""
    residual: Any
    kept: tuple[Any, ...]
    """For each leaf of the residuals: its place among the region's inputs, or the constant that it is."""
    arguments: tuple[tuple[Any, tuple[int | None, ...], tuple[str, ...]], ...]
    """For each argument: its structure, the places of its leaves among the region's inputs, and their names."""


@dataclass(frozen=True)
class _Place:
    """An index into the inputs of a region."""

    index: int


class _CustomVjp(Region):
    """A function with a derivative of the user. The inputs are its outputs, the residuals, and its arguments."""

    def adjoint(self, node: Tensor, gs: Mapping[int, Tensor], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        rule: _Rule = node.static["rule"]
        residual = unflatten(rule.residual, [_filled(leaf, node) for leaf in rule.kept])
        seeds: list[Any] = []
        for leaf in rule.results:
            if not isinstance(leaf, _Place):
                seeds.append(None)
            elif leaf.index in gs:
                seeds.append(gs[leaf.index])
            else:
                seeds.append(zeros_like(node.inputs[leaf.index]))
        found = rule.backward(residual, unflatten(rule.output, seeds))
        if not isinstance(found, tuple):
            found = (found,)
        if len(found) != len(rule.arguments):
            raise TraceError(
                f"the backward function of {rule.name} must return a gradient for each of the {len(rule.arguments)} "
                f"arguments, as a tuple; got {len(found)}"
            )
        result: list[Tensor | None] = [None] * len(node.inputs)
        for i, (gradient, (structure, places, names)) in enumerate(zip(found, rule.arguments, strict=True)):
            if gradient is None:
                continue
            parts, other = flatten(gradient)
            if structure != other:
                raise TraceError(
                    f"the backward function of {rule.name}: the gradient of argument {i} is no tree like it"
                )
            for part, place, name in zip(parts, places, names, strict=True):
                if part is None or place is None:
                    continue
                if np.shape(part) != node.inputs[place].shape:
                    raise ShapeError(
                        f"the backward function of {rule.name}: expected shape {node.inputs[place].shape} for the "
                        f"gradient of argument {i}{f' ({name})' if name else ''}, got {np.shape(part)}"
                    )
                result[place] = part
        return result


_custom_vjp = _CustomVjp("custom_vjp")
_INSIDE = threading.local()


def _filled(leaf: Any, node: Tensor) -> Any:
    if not isinstance(leaf, _Place):
        return leaf
    # A result that is kept as residual has this derivative too, when the backward function is differentiated.
    return node.inputs[leaf.index] if leaf.index >= node.static["count"] else member_of(node, leaf.index)


class custom_vjp:
    """A function of covered operations with a derivative written by hand.

    `defvjp(forward, backward)` gives it: forward(*args) returns (result, residuals); backward(residuals, g) gets the
    gradient of the result, a tree like it, and returns a tuple with a gradient for each argument: a tree like it, or
    None. Both are written with NumPy, so the derivative can be differentiated again. Ints, bools, strings and None are
    static, as everywhere; traced arrays must come in as arguments. Outside of a trace it is the plain function.

        @dtrain.custom_vjp
        def clip_gradient(x):
            return x

        clip_gradient.defvjp(
            lambda x: (x, None),
            lambda residuals, g: (np.clip(g, -1.0, 1.0),),
        )
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        functools.update_wrapper(self, f)
        self.function = f
        self.forward: Callable[..., Any] | None = None
        self.backward: Callable[..., Any] | None = None

    def defvjp(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """Set the two functions that make the derivative."""
        self.forward, self.backward = forward, backward

    def __call__(self, *args: Any) -> Any:
        graph = active_graph()
        inside: list[custom_vjp] = getattr(_INSIDE, "stack", [])
        if graph is None or self in inside:
            return self.function(*args)
        if self.forward is None or self.backward is None:
            raise TraceError(
                f"{name_of(self)} has no derivative yet, used at {format_line(user_line())}; call "
                f"{name_of(self)}.defvjp(forward, backward) first"
            )
        _INSIDE.stack = [*inside, self]
        try:
            return self._record(graph, args)
        finally:
            _INSIDE.stack = inside

    def _record(self, graph: Graph, args: Sequence[Any]) -> Any:
        assert self.forward is not None
        assert self.backward is not None
        start = len(graph.nodes)
        cut: list[Tensor] = []
        given, arguments = [], []
        for arg in args:
            leaves, structure = flatten(arg)
            places: list[int | None] = []
            for k, leaf in enumerate(leaves):
                places.append(None)
                if isinstance(leaf, Tensor) and is_float(leaf):
                    leaves[k] = alias(graph.capture(leaf))
                    leaves[k].weak = leaf.weak
                    places[-1] = len(cut)
                    cut.append(leaves[k])
            given.append(unflatten(structure, leaves))
            arguments.append((structure, places, tuple([name for name, _ in named_leaves(arg)])))
        returned = self.forward(*given)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TraceError(f"the forward function of {name_of(self)} must return (result, residuals)")
        leaves, output = flatten(returned[0])
        kept, residual = flatten(returned[1])
        leaves = [graph.capture(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        kept = [graph.capture(leaf) if isinstance(leaf, Tensor) else leaf for leaf in kept]
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not outputs:  # nothing traced came in
            return returned[0]
        others = [leaf for leaf in kept if isinstance(leaf, Tensor)]
        self._refuse_closure([*outputs, *others], start, {n.index for n in cut})
        offset = len(outputs) + len(others)
        rule = _Rule(
            name_of(self),
            self.backward,
            output,
            _places(leaves, outputs),
            residual,
            _places(kept, [*outputs, *others]),
            tuple([(s, tuple([None if p is None else p + offset for p in ps]), names) for s, ps, names in arguments]),
        )
        found = iter(members(_custom_vjp, outputs, [*others, *cut], {"rule": rule, "count": len(outputs)}))
        return unflatten(output, [next(found) if isinstance(leaf, Tensor) else leaf for leaf in leaves])

    def _refuse_closure(self, results: Sequence[Tensor], start: int, cut: Collection[int]) -> None:
        for node in around(results, start, cut):
            if node.dtype.kind == "f" and any(n.is_input for n in reachable([node], {}, sources)):
                raise TraceError(
                    f"{name_of(self)} closes over the traced array made at {node.location}, which would have no "
                    "gradient; pass it as an argument"
                )


def _places(leaves: Sequence[Any], nodes: Sequence[Tensor]) -> tuple[Any, ...]:
    first = {id(node): i for i, node in reversed(list(enumerate(nodes)))}
    return tuple([_Place(first[id(leaf)]) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
