"""From a call with arrays to a recorded, planned and cached one: what every transformation of a function shares.

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
from dtrain.graph.plan import Bound, Plan
from dtrain.graph.tensor import Graph, Tensor, active_graph, recording
from dtrain.graph.tree import flatten, named_leaves, unflatten

_CACHES: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_CACHES_LOCK = threading.Lock()


def name_of(function: Callable[..., Any]) -> str:
    """Return the function's name for a message."""
    return getattr(function, "__name__", repr(function))


def is_array(leaf: Any) -> bool:
    """Whether a leaf is recorded as an input; everything else is static."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc"
    return isinstance(leaf, float | complex | Tensor)


def is_float(leaf: Any) -> bool:
    """Whether a leaf has a gradient."""
    return isinstance(leaf, float | complex) or (is_array(leaf) and leaf.dtype.kind in "fc")


def check_differentiable(tree: Any, position: int) -> None:
    """Raise TraceError if a leaf of this argument is not floating point."""
    for name, leaf in named_leaves(tree):
        if not is_float(leaf):
            what = leaf.dtype if hasattr(leaf, "dtype") else type(leaf).__name__
            where = f"argument {position}" + (f" ({name})" if name else "")
            raise TraceError(
                f"the gradient with respect to {where} of type {what} does not exist; pass floats, or leave it "
                "out of argnums"
            )


def input_tree(graph: Graph, args: Sequence[Any], inputs: list[Tensor]) -> list[Any]:
    """Return the arguments with every array replaced by an input of the graph."""
    traced = []
    for position, arg in enumerate(args):
        leaves, structure = flatten(arg)
        names = [name for name, _ in named_leaves(arg)]
        new: list[Any] = []
        for name, leaf in zip(names, leaves, strict=True):
            if isinstance(leaf, Tensor) or not is_array(leaf):
                new.append(leaf)
                continue
            label = f"{position}.{name}" if name else str(position)
            weak = type(leaf) in (float, complex)
            node = graph.input(leaf, label, weak)
            inputs.append(node)
            new.append(node)
        traced.append(unflatten(structure, new))
    return traced


def concrete(tree: Any) -> Any:
    """Return the tree with fresh arrays in place of the traced ones."""
    leaves, structure = flatten(tree)
    return unflatten(structure, [np.array(leaf.value)[()] if isinstance(leaf, Tensor) else leaf for leaf in leaves])


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
            if is_array(leaf):
                arrays.append(leaf)
                parts.append((type(leaf),) if type(leaf) in (float, complex) else (leaf.shape, leaf.dtype))
            else:
                if type(leaf).__hash__ is None:
                    name = named_leaves(arg)[k][0]
                    what = f"an array of {leaf.dtype}" if isinstance(leaf, np.ndarray) else type(leaf).__name__
                    raise TraceError(
                        f"argument {position}{f' ({name})' if name else ''} is {what}: neither an array of "
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


class WithKeywords:
    """A function whose last argument is the dict of its keyword arguments; these are not differentiated."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = name_of(function)
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any) -> Any:
        return self.function(*args[:-1], **args[-1])


class Transformed:
    """A function made of another one, `make(function, *options)`: recorded once for each signature, then run from its
    plan.

    `record(graph, args)` adds the result to the graph that is being recorded and returns its tree; `check(args)` raises
    what is wrong with the arguments of a call from outside. Calls inside a traced function record into the same graph.
    Travels between processes as `make` and its arguments.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        function: Callable[..., Any],
        options: tuple[Any, ...],
        record: Callable[[Graph, Sequence[Any]], Any],
        check: Callable[[Sequence[Any]], None],
        compile: bool,
    ) -> None:
        self._made_by = (make, (function, *options))
        self._function = function
        self._kind = (make.__name__, isinstance(function, WithKeywords), *options)
        self._record = record
        self._check = check
        self._compile = compile
        self._cache = _cache_of(function.function if isinstance(function, WithKeywords) else function)
        self._by_keyword: Any = None
        self._lock = threading.RLock()
        self.__name__ = f"{make.__name__}_of_{name_of(function)}"
        self.__doc__ = function.__doc__

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made_by

    def __call__(self, *args: Any, **options: Any) -> Any:
        if options:
            if self._by_keyword is None:
                make, (function, *others) = self._made_by
                self._by_keyword = make(WithKeywords(function), *others)
            return self._by_keyword(*args, options)
        self._check(args)
        outer = active_graph()
        if outer is not None:
            return self._record(outer, args)
        if _contains_tensor(args):
            raise TraceError(f"{name_of(self._function)} was called with a traced array after its trace had ended")
        if not self._compile:
            graph = Graph(is_branching_allowed=True)
            with recording(graph):
                found = self._record(graph, input_tree(graph, args, []))
            return concrete(found)
        key, arrays = _key(self._kind, args)
        entry = self._cache.get(key)
        if entry is None:
            with self._lock:
                entry = self._cache.get(key)
                if entry is None:
                    graph = Graph()
                    inputs: list[Tensor] = []
                    with recording(graph):
                        found = self._record(graph, input_tree(graph, args, inputs))
                    entry = self._cache[key] = _Compiled(graph, inputs, found)
        return entry(arrays)
