"""What a user calls: grad, value_and_grad, vjp and trace.

The derivative of a function is recorded beside it into one graph (`differentiate.py`); caching and running are in
`calls.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dtrain.errors import TraceError
from dtrain.graph.calls import (
    Transformed,
    WithKeywords,
    check_differentiable,
    concrete,
    input_tree,
    is_float,
    name_of,
)
from dtrain.graph.differentiate import backward
from dtrain.graph.ops.shape import alias, zeros_like
from dtrain.graph.tensor import Graph, Tensor, active_graph, recording
from dtrain.graph.tree import flatten, unflatten


def fresh(graph: Graph, leaf: Any) -> Tensor:
    """Return the leaf under a node of its own in this graph: what a derivative is taken with respect to, so that
    nested levels never mix."""
    node: Tensor = alias(graph.capture(leaf) if isinstance(leaf, Tensor) else graph.constant(leaf))
    node.weak = leaf.weak if isinstance(leaf, Tensor) else type(leaf) in (float, complex)
    return node


def _scalar_output(value: Any, function: Callable[..., Any], holomorphic: bool) -> Tensor | None:
    """Check that the value is one number; return None if it does not depend on what is traced."""
    if not isinstance(value, Tensor):
        if np.size(value) != 1:
            raise TraceError(
                f"{name_of(function)} must return a scalar to be differentiated, got shape {np.shape(value)}"
            )
        return None
    if value.size != 1:
        raise TraceError(
            f"{name_of(function)} must return a scalar to be differentiated, got shape {value.shape}; made at "
            f"{value.location}; use np.sum or np.mean, or dtrain.vjp"
        )
    if value.dtype.kind == "c" and not holomorphic:
        raise TraceError(
            f"{name_of(function)} must return a real number to be differentiated, got {value.dtype}; made at "
            f"{value.location}; use np.real or np.abs, or holomorphic=True if it is a holomorphic function"
        )
    if value.dtype.kind not in "fc":
        raise TraceError(f"{name_of(function)} must return a float to be differentiated, got {value.dtype}")
    return value


def _inline(
    graph: Graph,
    function: Callable[..., Any],
    args: Sequence[Any],
    argnums: Sequence[int],
    has_aux: bool,
    holomorphic: bool,
) -> tuple[Any, Any, list[Any]]:
    """Record value and gradients of the function into the graph: each differentiated leaf goes in under a node of its
    own."""
    new_args = list(args)
    wrt: list[list[Tensor]] = []
    structures = []
    for position in argnums:
        leaves, structure = flatten(args[position])
        aliases = [fresh(graph, leaf) for leaf in leaves]
        wrt.append(aliases)
        structures.append(structure)
        new_args[position] = unflatten(structure, aliases)
    returned = function(*new_args)
    aux = None
    if has_aux:
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TraceError(f"{name_of(function)} must return (value, aux) with has_aux=True")
        returned, aux = returned
    output = _scalar_output(returned, function, holomorphic)
    flat = [node for group in wrt for node in group]
    gradients = [zeros_like(node) for node in flat] if output is None else backward([output], None, flat)
    trees = []
    for group, structure in zip(wrt, structures, strict=True):
        trees.append(unflatten(structure, gradients[: len(group)]))
        gradients = gradients[len(group) :]
    return returned, aux, trees


def value_and_grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    compile: bool = True,
    holomorphic: bool = False,
) -> Callable[..., Any]:
    """Return a function that returns (value, gradient) of the scalar function f.

    An array of one element counts as a scalar, as in autograd and PyTorch; its value keeps its shape.

    The gradient has the structure, shapes and dtypes of the argument `argnums` (a tuple of arguments gives a tuple).
    With `has_aux`, f returns (value, aux) and the result is ((value, aux), gradient). Arguments are nested dicts,
    lists, tuples and dataclasses of arrays of floats or complex numbers; a Python float is a 0-d input; ints, bools,
    strings and None are static. Keyword arguments go to f and are not differentiated. Arrays that f closes over are
    constants by reference.

    The gradient of a real f with respect to z = a + ib is ∂f/∂a - i·∂f/∂b (the convention of JAX and of HIPS autograd:
    step along its conjugate to descend). With `holomorphic`, f may return a complex number and must be a holomorphic
    function of what is differentiated, which is not checked; the result is f'(z).

    With `compile`, f is recorded once for each structure, shapes and dtypes of its arguments and then run from the
    plan; with compile=False it is traced at every call, and may branch on values. Thread-safe; the arrays returned
    are fresh. Inside a traced function it records into the same graph, so derivatives nest. Raises TraceError where f
    cannot be recorded or differentiated.
    """
    wanted = as_argnums(argnums)

    def record(graph: Graph, args: Sequence[Any]) -> Any:
        value, aux, gradients = _inline(graph, f, args, positions_of(f, wanted, args), has_aux, holomorphic)
        gradient = gradients[0] if isinstance(argnums, int) else tuple(gradients)
        return ((value, aux), gradient) if has_aux else (value, gradient)

    def check(args: Sequence[Any]) -> None:
        for p in positions_of(f, wanted, args):
            check_differentiable(args[p], p)

    options = (argnums if isinstance(argnums, int) else wanted, has_aux, compile, holomorphic)
    return Transformed(value_and_grad, f, options, record, check, compile)


def as_argnums(argnums: int | Sequence[int]) -> tuple[int, ...]:
    """Return the argument numbers as a tuple."""
    return (argnums,) if isinstance(argnums, int) else tuple(argnums)


def positions_of(f: Callable[..., Any], argnums: Sequence[int], args: Sequence[Any]) -> list[int]:
    """Return the argument numbers as positions from the front. Raises TypeError for one that the call has not."""
    count = len(args) - isinstance(f, WithKeywords)
    positions = [p % count if -count <= p < count else p for p in argnums]
    for p in positions:
        if not 0 <= p < count:
            raise TypeError(f"argnums names argument {p}, but {name_of(f)} was called with {count}")
    return positions


def grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    compile: bool = True,
    holomorphic: bool = False,
) -> Callable[..., Any]:
    """Return a function that returns the gradient of the scalar function f; with `has_aux`, (gradient, aux).

    See `value_and_grad`.
    """
    both = value_and_grad(f, argnums, has_aux, compile, holomorphic)

    def call(*args: Any, **options: Any) -> Any:
        value, gradient = both(*args, **options)
        return (gradient, value[1]) if has_aux else gradient

    call.__name__ = f"grad_of_{name_of(f)}"
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
        traced = list(args) if outer is not None else input_tree(graph, args, [])
        flat: list[Tensor] = []
        places: list[tuple[Any, list[Tensor | None]]] = []
        for i, arg in enumerate(traced):
            leaves, structure = flatten(arg)
            nodes: list[Tensor | None] = []
            for j, leaf in enumerate(leaves):
                if is_float(leaf):
                    node = leaves[j] = fresh(graph, leaf)
                    flat.append(node)
                    nodes.append(node)
                else:
                    nodes.append(None)
            traced[i] = unflatten(structure, leaves)
            places.append((structure, nodes))
        result = f(*traced)
    outputs, out_structure = flatten(result)
    if outer is not None:  # what is assigned to the result later is not what the pullback starts from
        outputs = [alias(o) if isinstance(o, Tensor) else o for o in outputs]

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
        return tuple(gradients) if active_graph() is graph else tuple(concrete(gradients))

    return (result if outer is not None else concrete(result)), pullback


def trace(f: Callable[..., Any], *args: Any) -> Graph:
    """Record f on these arguments and return the graph, with `inputs` in the order of the arguments' leaves and flat
    `outputs`.

    `print(graph)` lists it. `graph.key` is the random key's input if anything random was asked for, else None.
    """
    graph = Graph()
    with recording(graph):
        inputs: list[Tensor] = []
        result = f(*input_tree(graph, args, inputs))
        leaves, _ = flatten(result)
        graph.outputs = [leaf if isinstance(leaf, Tensor) else graph.constant(leaf) for leaf in leaves]
    graph.inputs = inputs
    return graph
