"""What a user calls: grad, value_and_grad, vjp and trace.

Owns the cache of compiled functions. The invariant: a compiled function gives what the plain one gives, with the same
errors at the same line; it is cached by the structure of its arguments, their shapes and dtypes, its static arguments
and the training flag.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dtrain.errors import TraceError
from dtrain.graph.context import current_context
from dtrain.graph.differentiate import backward
from dtrain.graph.ops.shape import alias, zeros_like
from dtrain.graph.plan import Bound, Plan
from dtrain.graph.tensor import Graph, Tensor, active_graph, recording
from dtrain.graph.tree import flatten, named_leaves, unflatten

_CACHES: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_CACHES_LOCK = threading.Lock()


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biuf"
    return isinstance(leaf, float | Tensor)


def _check_differentiable(tree: Any, position: int) -> None:
    for name, leaf in named_leaves(tree):
        kind = leaf.dtype.kind if hasattr(leaf, "dtype") else "f" if isinstance(leaf, float) else type(leaf).__name__
        if kind != "f":
            what = leaf.dtype if hasattr(leaf, "dtype") else type(leaf).__name__
            where = f"argument {position}" + (f" ({name})" if name else "")
            raise TraceError(
                f"the gradient with respect to {where} of type {what} does not exist; pass floats, or leave it "
                "out of argnums"
            )


class _Traced:
    """A function recorded once: its inputs (those that are arrays), its result, and the gradients that were asked
    for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inputs: list[Tensor] = []
        self.results: list[Any] = []
        self.structure: Any = None


def _input_tree(graph: Graph, args: Sequence[Any], inputs: list[Tensor]) -> list[Any]:
    """Return the arguments with every array replaced by an input of the graph."""
    traced = []
    for position, arg in enumerate(args):
        leaves, structure = flatten(arg)
        names = [name for name, _ in named_leaves(arg)]
        new: list[Any] = []
        for name, leaf in zip(names, leaves, strict=True):
            if isinstance(leaf, Tensor) or not _is_array(leaf):
                new.append(leaf)
                continue
            label = f"{position}.{name}" if name else str(position)
            weak = type(leaf) is float
            node = graph.input(leaf, label, weak)
            inputs.append(node)
            new.append(node)
        traced.append(unflatten(structure, new))
    return traced


def _scalar_output(value: Any, function: Callable[..., Any]) -> Tensor | None:
    """Check that the value is a scalar; return None if it does not depend on what is traced."""
    if not isinstance(value, Tensor):
        if np.ndim(value) != 0:
            raise TraceError(
                f"{_name(function)} must return a scalar to be differentiated, got shape {np.shape(value)}"
            )
        return None
    if value.shape != ():
        raise TraceError(
            f"{_name(function)} must return a scalar to be differentiated, got shape {value.shape}; made at "
            f"{value.location}; use np.sum or np.mean, or dtrain.vjp"
        )
    if value.dtype.kind != "f":
        raise TraceError(f"{_name(function)} must return a float to be differentiated, got {value.dtype}")
    return value


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))


def _inline(
    graph: Graph, function: Callable[..., Any], args: Sequence[Any], argnums: Sequence[int], has_aux: bool
) -> tuple[Any, Any, list[Any]]:
    """Record value and gradients of the function into the graph: each differentiated leaf goes in under a node of its
    own."""
    new_args = list(args)
    wrt: list[list[Tensor]] = []
    structures = []
    for position in argnums:
        _check_differentiable(args[position], position)
        leaves, structure = flatten(args[position])
        aliases = [alias(leaf if isinstance(leaf, Tensor) else graph.constant(leaf)) for leaf in leaves]
        for node, leaf in zip(aliases, leaves, strict=True):
            node.weak = leaf.weak if isinstance(leaf, Tensor) else type(leaf) is float
        wrt.append(aliases)
        structures.append(structure)
        new_args[position] = unflatten(structure, aliases)
    returned = function(*new_args)
    aux = None
    if has_aux:
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TraceError(f"{_name(function)} must return (value, aux) with has_aux=True")
        returned, aux = returned
    output = _scalar_output(returned, function)
    flat = [node for group in wrt for node in group]
    gradients = [zeros_like(node) for node in flat] if output is None else backward([output], None, flat)
    trees = []
    for group, structure in zip(wrt, structures, strict=True):
        trees.append(unflatten(structure, gradients[: len(group)]))
        gradients = gradients[len(group) :]
    return returned, aux, trees


class _Compiled:
    """A recorded and planned call: arrays in, fresh arrays out."""

    def __init__(self, graph: Graph, inputs: list[Tensor], result: Any) -> None:
        leaves, self.structure = flatten(result)
        self.leaves = leaves
        self.outputs = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.has_key = graph.key is not None
        nodes = [*inputs, graph.key] if graph.key is not None else inputs
        self.bound: Bound = Plan(nodes, [leaves[i] for i in self.outputs]).bind()
        self.lock = threading.Lock()
        graph.forget_values()

    def __call__(self, arrays: Sequence[Any]) -> Any:
        with self.lock:
            bound = self.bound
            for target, array in zip(bound.inputs, arrays, strict=False):
                np.copyto(target, array)
            if self.has_key:
                context = current_context()
                assert context is not None
                bound.inputs[-1][...] = context.key
            bound.run()
            leaves = list(self.leaves)
            for i, out in zip(self.outputs, bound.outputs, strict=True):
                leaves[i] = out.copy() if out.ndim else out[()]
        return unflatten(self.structure, leaves)


def _key(kind: Any, args: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return the cache key of a call and its arrays in order."""
    arrays: list[Any] = []
    parts: list[Any] = []
    for position, arg in enumerate(args):
        leaves, structure = flatten(arg)
        parts.append(structure)
        for k, leaf in enumerate(leaves):
            if _is_array(leaf):
                arrays.append(leaf)
                parts.append(("float",) if type(leaf) is float else (leaf.shape, leaf.dtype))
            else:
                if type(leaf).__hash__ is None:
                    name = named_leaves(arg)[k][0]
                    what = f"an array of {leaf.dtype}" if isinstance(leaf, np.ndarray) else type(leaf).__name__
                    raise TraceError(
                        f"argument {position}{f' ({name})' if name else ''} is {what}: neither an array of real "
                        "numbers nor a static value (hashable)"
                    )
                parts.append((type(leaf), leaf))
    context = current_context()
    parts.append(None if context is None else context.training)
    return (kind, tuple(parts)), arrays


def _cache_of(function: Callable[..., Any]) -> dict[Any, Any]:
    with _CACHES_LOCK:
        try:
            return _CACHES.setdefault(function, {})
        except TypeError:  # not hashable, or no weak references
            return {}


def _contains_tensor(args: Sequence[Any]) -> bool:
    return any(isinstance(leaf, Tensor) for arg in args for leaf in flatten(arg)[0])


def _concrete(tree: Any) -> Any:
    leaves, structure = flatten(tree)
    return unflatten(structure, [np.array(leaf.value)[()] if isinstance(leaf, Tensor) else leaf for leaf in leaves])


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, compile: bool = True
) -> Callable[..., Any]:
    """Return a function that returns (value, gradient) of the scalar function f.

    The gradient has the structure, shapes and dtypes of the argument `argnums` (a tuple of arguments gives a tuple).
    With `has_aux`, f returns (value, aux) and the result is ((value, aux), gradient). Arguments are nested dicts,
    lists, tuples and dataclasses of float arrays; a Python float is a 0-d input; ints, bools, strings and None are
    static. Arrays that f closes over are constants by reference.

    With `compile`, f is recorded once for each structure, shapes and dtypes of its arguments and then run from the
    plan; with compile=False it is traced at every call, and may branch on values. Thread-safe; the arrays returned
    are fresh. Inside a traced function it records into the same graph, so derivatives nest. Raises TraceError where f
    cannot be recorded or differentiated.
    """
    many = not isinstance(argnums, int)
    wanted: tuple[int, ...] = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    cache = _cache_of(f)
    lock = threading.RLock()

    def result_of(value: Any, aux: Any, gradients: list[Any]) -> Any:
        gradient = tuple(gradients) if many else gradients[0]
        return ((value, aux), gradient) if has_aux else (value, gradient)

    def call(*args: Any, **options: Any) -> Any:
        if options:
            raise TypeError(f"{_name(f)}: pass the arguments by position; got the keyword {sorted(options)[0]!r}")
        positions = [p % len(args) if -len(args) <= p < len(args) else p for p in wanted]
        for p in positions:
            if not 0 <= p < len(args):
                raise TypeError(f"argnums names argument {p}, but {_name(f)} was called with {len(args)}")
        outer = active_graph()
        if outer is not None:
            return result_of(*_inline(outer, f, args, positions, has_aux))
        if _contains_tensor(args):
            raise TraceError(f"{_name(f)} was called with a traced array after its trace had ended")
        for p in positions:
            _check_differentiable(args[p], p)
        if not compile:
            graph = Graph(is_branching_allowed=True)
            with recording(graph):
                traced = _input_tree(graph, args, [])
                found = result_of(*_inline(graph, f, traced, positions, has_aux))
            return _concrete(found)
        key, arrays = _key((wanted, many, has_aux), args)
        entry = cache.get(key)
        if entry is None:
            with lock:
                entry = cache.get(key)
                if entry is None:
                    graph = Graph()
                    inputs: list[Tensor] = []
                    with recording(graph):
                        traced = _input_tree(graph, args, inputs)
                        found = result_of(*_inline(graph, f, traced, positions, has_aux))
                    entry = cache[key] = _Compiled(graph, inputs, found)
        return entry(arrays)

    call.__name__ = f"value_and_grad_of_{_name(f)}"
    call.__doc__ = f.__doc__
    return call


def grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, compile: bool = True
) -> Callable[..., Any]:
    """Return a function that returns the gradient of the scalar function f; with `has_aux`, (gradient, aux).

    See `value_and_grad`.
    """
    both = value_and_grad(f, argnums, has_aux, compile)

    def call(*args: Any, **options: Any) -> Any:
        value, gradient = both(*args, **options)
        return (gradient, value[1]) if has_aux else gradient

    call.__name__ = f"grad_of_{_name(f)}"
    call.__doc__ = f.__doc__
    return call


def vjp(f: Callable[..., Any], *args: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """Return (f(*args), pullback): the pullback takes a tree like the output and returns one gradient for each
    argument.

    The forward values are kept for the pullback, which may be called many times. An argument without float arrays has
    the gradient None.
    """
    outer = active_graph()
    graph = outer or Graph(is_branching_allowed=True)
    with recording(graph):
        traced = list(args) if outer is not None else _input_tree(graph, args, [])
        flat: list[Tensor] = []
        places: list[tuple[Any, list[Tensor | None]]] = []
        for i, arg in enumerate(traced):
            leaves, structure = flatten(arg)
            nodes: list[Tensor | None] = []
            for j, leaf in enumerate(leaves):
                if _is_array(leaf) and (isinstance(leaf, float) or leaf.dtype.kind == "f"):
                    node = alias(leaf if isinstance(leaf, Tensor) else graph.constant(leaf))
                    node.weak = isinstance(leaf, Tensor) and leaf.weak
                    leaves[j] = node
                    flat.append(node)
                    nodes.append(node)
                else:
                    nodes.append(None)
            traced[i] = unflatten(structure, leaves)
            places.append((structure, nodes))
        result = f(*traced)
    outputs, out_structure = flatten(result)

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        seeds, structure = flatten(cotangent)
        if structure != out_structure:
            raise TraceError("the pullback takes a tree of the same structure as the output")
        pairs = [(o, s) for o, s in zip(outputs, seeds, strict=True) if isinstance(o, Tensor) and s is not None]
        for o, s in pairs:
            if np.shape(s) != o.shape:
                raise TraceError(f"the pullback takes shape {o.shape} for this output, got {np.shape(s)}")
        with recording(graph):
            found = iter(backward([o for o, _ in pairs], [s for _, s in pairs], flat) or [zeros_like(n) for n in flat])
            gradients = [
                unflatten(structure, [None if node is None else next(found) for node in nodes])
                if any(n is not None for n in nodes)
                else None
                for structure, nodes in places
            ]
        return tuple(gradients) if active_graph() is graph else tuple(_concrete(gradients))

    return (result if outer is not None else _concrete(result)), pullback


def trace(f: Callable[..., Any], *args: Any) -> Graph:
    """Record f on these arguments and return the graph, with `inputs` in the order of the arguments' leaves and flat
    `outputs`.

    `print(graph)` lists it. `graph.key` is the random key's input if anything random was asked for, else None.
    """
    graph = Graph()
    with recording(graph):
        inputs: list[Tensor] = []
        result = f(*_input_tree(graph, args, inputs))
        leaves, _ = flatten(result)
        graph.outputs = [leaf if isinstance(leaf, Tensor) else graph.constant(leaf) for leaf in leaves]
    graph.inputs = inputs
    return graph
