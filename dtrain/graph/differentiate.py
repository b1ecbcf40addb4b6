# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Differentiation, graph to graph: one reverse sweep, in which every branch becomes an explicit sum.

The backward pass is recorded into the same graph, so it can be read, drawn, planned, and differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from dtrain.errors import TraceError, UnsupportedFunctionError
from dtrain.graph.ops.shape import zeros_like
from dtrain.graph.primitive import Call, Missing, Shape, primitive
from dtrain.graph.regions import Several, member, part
from dtrain.graph.tensor import Tensor


def _branch_shape(*terms: Any) -> tuple[Shape, np.dtype[Any]]:
    return terms[0].shape, terms[0].dtype


def _branch_run(out: np.ndarray, first: np.ndarray, second: np.ndarray, rest: tuple[np.ndarray, ...]) -> None:
    np.add(first, second, out)
    for term in rest:
        np.add(out, term, out)


def _branch_bind(out: np.ndarray, *terms: np.ndarray) -> Call:
    if len(terms) == 2:
        return partial(np.add, *terms, out)
    return partial(_branch_run, out, terms[0], terms[1], terms[2:])


# The plan takes the sum apart into running sums of two terms each, which may work in place.
@primitive(shape=_branch_shape, bind=_branch_bind, is_elementwise=True)
def branch_sum(g, out, *terms):
    """The sum of the gradients that meet where a value is used more than once, added left to right."""
    return (g,) * len(terms)


def undo_broadcast(g: Any, x: Tensor) -> Tensor:
    """Bring a gradient to the shape and dtype of the input x: sum over the axes along which x was broadcast.

    This is the only place where broadcasting is undone.
    """
    if not isinstance(g, Tensor):
        g = x.graph.constant(g, x.dtype)
    if g.shape != x.shape:
        lead = g.ndim - x.ndim
        if lead < 0:
            g = np.broadcast_to(g, x.shape)
        else:
            axes = tuple([i for i in range(g.ndim) if i < lead or (x.shape[i - lead] == 1 and g.shape[i] != 1)])
            if axes:
                g = np.sum(g, axis=axes)
            if g.shape != x.shape:
                # Axes of length 1 that the sum dropped come back; a gradient smaller than x is spread.
                g = np.reshape(g, x.shape) if g.size == x.size else np.broadcast_to(g, x.shape)
    if g.dtype != x.dtype:
        g = g.astype(x.dtype)
    return g  # type: ignore[no-any-return]


def _influenced(wrt: Sequence[Tensor], outputs: Sequence[Tensor]) -> bytearray:
    """Mark the nodes that depend on `wrt`, by index."""
    nodes = outputs[0].graph.nodes
    last = max(o.index for o in outputs)
    marked = bytearray(len(nodes))
    for w in wrt:
        marked[w.index] = 1
    for node in nodes[min(w.index for w in wrt) : last + 1]:
        for i in node.inputs:
            if marked[i.index]:
                if passes_gradient(node):
                    marked[node.index] = 1
                break
    return marked


def passes_gradient(node: Tensor) -> bool:
    """Whether the node has a derivative."""
    op = node.op
    if isinstance(op, Several):
        return True
    return op is not None and (op.rule is not None or op is part or op is member) and node.dtype.kind in "fc"


def _add_term(terms: dict[int, Tensor], index: int, g: Tensor) -> None:
    terms[index] = branch_sum(terms[index], g) if index in terms else g


def backward(outputs: Sequence[Tensor], seeds: Sequence[Any] | None, wrt: Sequence[Tensor]) -> list[Tensor]:
    """Record the gradients of Σ seed·output with respect to `wrt` and return them.

    `seeds` have the shapes of the outputs (None: ones). Only what `wrt` needs is recorded. A tensor of `wrt` that no
    output depends on has a zero constant as gradient. Raises TraceError for a `wrt` that is not floating point. The
    gradients are recorded into the graph of the seeds, which may be the body of a loop in the graph of the outputs.
    """
    if not wrt or not outputs:
        return []
    graph = outputs[0].graph
    for w in wrt:
        if w.dtype.kind not in "fc":
            raise TraceError(
                f"the gradient with respect to {w.name or 'an array'} of dtype {w.dtype} does not exist; use floats"
            )
    marked = _influenced(wrt, outputs)
    terms: dict[int, list[Tensor]] = {}
    results: dict[int, dict[int, Tensor]] = {}  # of an operation with several: the gradients by result
    graphs = list({id(s.graph): s.graph for s in (*outputs, *(seeds or ())) if isinstance(s, Tensor)}.values())
    before = [(into, into.is_eager, into.line, into.scope) for into in graphs]
    for into in graphs:
        into.is_eager = False
    try:
        for i, output in enumerate(outputs):
            if marked[output.index]:
                seed = np.ones_like(output) if seeds is None else seeds[i]
                terms.setdefault(output.index, []).append(undo_broadcast(seed, output))
        wanted = {w.index for w in wrt}
        gradients: dict[int, Tensor] = {}
        for index in range(max(o.index for o in outputs), min(wanted) - 1, -1):
            met = terms.pop(index, None)
            if met is None and index not in results:
                continue
            node = graph.nodes[index]
            for into in graphs:
                into.line, into.scope = node._line, node.scope
            if met is None:
                assert isinstance(node.op, Several)
                wanted_inputs = [bool(marked[x.index]) for x in node.inputs]
                found = node.op.adjoint(node, results.pop(index), wanted_inputs)
                for x, term in zip(node.inputs, found, strict=True):
                    if term is not None and marked[x.index]:
                        terms.setdefault(x.index, []).append(undo_broadcast(term, x))
                continue
            g = met[0] if len(met) == 1 else branch_sum(*met)
            if index in wanted:
                gradients[index] = g
            op = node.op
            if op is None or not any(marked[x.index] for x in node.inputs):
                continue
            if op is part or op is member:
                _add_term(results.setdefault(node.inputs[0].index, {}), node.static["index"], g)
                continue
            assert op.rule is not None
            parts = op.rule(g, node, *node.inputs, **node.static)
            if parts is None:
                continue
            if not isinstance(parts, tuple):
                parts = (parts,)
            for x, term in zip(node.inputs, parts, strict=True):
                if term is not None and marked[x.index]:
                    if isinstance(term, Missing):
                        raise UnsupportedFunctionError(
                            f"the derivative of {term.what} is not covered; used at {node.location}; wrap it in "
                            "dtrain.stop_gradient to hold it constant"
                        )
                    terms.setdefault(x.index, []).append(undo_broadcast(term, x))
        return [gradients[w.index] if w.index in gradients else zeros_like(w) for w in wrt]
    finally:
        for into, was_eager, was_line, was_scope in before:
            into.is_eager, into.line, into.scope = was_eager, was_line, was_scope
