"""Operations with several results, and regions: parts of a graph that are differentiated as one.

A node has one result, so several are a node and its members. The results of a `Packed` operation lie in one block of
bytes, of which each `part` is a view. A `Region` computes nothing: it stands behind nodes that are recorded as usual,
its outputs, and each `member` is one of them; the reverse sweep comes to the region instead of to what lies inside. The
invariant: whoever uses a result uses it through its part or member, so the reverse sweep has all gradients of the
results when it meets the operation (`differentiate.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dtrain.graph.memory import ALIGNMENT
from dtrain.graph.primitive import Primitive, Shape, Static, View
from dtrain.graph.tensor import EMPTY, Graph, Tensor, user_line


class Structural(Primitive):
    """An operation that arranges others. It is not in the table of primitives: it computes nothing of its own."""

    def __init__(self, name: str, doc: str | None = None) -> None:
        self.name = name
        self.rule = None
        self.__doc__ = doc or self.__class__.__doc__


class Several(Structural):
    """An operation with several results, which are the parts or members of its node."""

    def adjoint(self, node: Tensor, gs: Mapping[int, Tensor], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """Record and return a gradient for each input of the node, or None.

        `gs` has the gradients of those results that have one; they tell the graph to record into. Inputs that are not
        wanted may be left out.
        """
        raise NotImplementedError


class Packed(Several):
    """An operation whose results lie in one block of bytes."""

    is_random = True  # neither folded nor merged: what it runs may hold the user's arrays by reference

    def layout(self, static: Static) -> list[tuple[int, Shape, np.dtype[Any]]]:
        """Return (offset, shape, dtype) of each part; the block ends where a last empty part begins."""
        raise NotImplementedError

    def scratch_bytes(self, static: Static) -> int:
        """Return how much memory a run needs for itself."""
        raise NotImplementedError

    def contiguous(self, static: Static) -> int:
        """Return how many of the first inputs must be C-contiguous."""
        raise NotImplementedError

    def narrowed(self, static: Static, used: frozenset[int]) -> tuple[Static, list[int], dict[int, int]]:
        """Return what computes no more than these parts: its static arguments, the inputs that it takes, and the new
        number of each used part."""
        raise NotImplementedError

    def bind_with(
        self, out: np.ndarray, values: Sequence[np.ndarray], static: Static, scratch: np.ndarray
    ) -> Callable[[], Any]:
        """As `bind`, with memory for itself: `scratch_bytes`, aligned."""
        raise NotImplementedError


def packed_layout(parts: Iterable[tuple[Shape, np.dtype[Any]]]) -> list[tuple[int, Shape, np.dtype[Any]]]:
    """Lay arrays one after the other, each aligned; the last entry is empty and marks the end."""
    result = []
    offset = 0
    for shape, dtype in parts:
        result.append((offset, shape, dtype))
        size = dtype.itemsize
        for n in shape:
            size *= n
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    result.append((offset, (0,), np.dtype(np.uint8)))
    return result


def parts(op: Packed, static: Static, block: np.ndarray) -> list[np.ndarray]:
    """Return the results that lie in this block."""
    return [_part_view(block, index=0, offset=o, shape=s, dtype=d) for o, s, d in op.layout(static)[:-1]]


class _Part(Structural, View):
    """One result of a packed operation: a view of its block."""

    def __init__(self) -> None:
        super().__init__("part")
        self.view = _part_view


def _part_view(block: np.ndarray, *, index: int, offset: int, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
    size = dtype.itemsize
    for n in shape:
        size *= n
    return block[offset : offset + size].view(dtype).reshape(shape)


part = _Part()


def part_of(node: Tensor, index: int) -> Tensor:
    """Record one result of a packed operation."""
    assert isinstance(node.op, Packed)
    offset, shape, dtype = node.op.layout(node.static)[index]
    return append(part, [node], {"index": index, "offset": offset, "shape": shape, "dtype": dtype})


class _Barrier(Structural, View):
    """The same array, which the plan takes for another: what is computed from it is not merged with what was computed
    before."""

    is_random = True

    def __init__(self) -> None:
        super().__init__("barrier")
        self.view = lambda x: x
        self.rule = lambda g, out, x: g


barrier = _Barrier()


class Region(Several):
    """An operation whose results are the first `count` of its inputs. It says how they are differentiated."""

    def infer(self, inputs: Sequence[Tensor], static: Static) -> tuple[Shape, np.dtype[Any]]:
        return (0,), np.dtype(np.uint8)

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        return np.empty(0, np.uint8)


class _Member(Structural):
    """One result of a region; the inputs are the region and the node that is the result."""

    is_view = True

    def infer(self, inputs: Sequence[Tensor], static: Static) -> tuple[Shape, np.dtype[Any]]:
        return inputs[1].shape, inputs[1].dtype

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        return np.asarray(values[1])


member = _Member("member")


def members(op: Region, outputs: Sequence[Tensor], others: Sequence[Tensor], static: Static) -> list[Tensor]:
    """Record a region behind these outputs and return its members, which stand for them."""
    node = append(op, [*outputs, *others], static)
    return [member_of(node, i) for i in range(len(outputs))]


def member_of(node: Tensor, index: int) -> Tensor:
    """Record one result of a region."""
    output = node.inputs[index]
    result = append(member, [node, output], {"index": index})
    result.weak = output.weak
    return result


def append(op: Primitive, inputs: Sequence[Tensor], static: Static = EMPTY, graph: Graph | None = None) -> Tensor:
    """Append a node as `record` does, for inputs that are known to fit; `graph` where there is no input to tell it."""
    graph = graph or inputs[0].graph
    line = graph.line or user_line()
    if graph.is_eager:
        value = op.evaluate([i.value for i in inputs], static)
        return Tensor(graph, op, tuple(inputs), static, value.shape, value.dtype, value, line)
    shape, dtype = op.infer(inputs, static)
    return Tensor(graph, op, tuple(inputs), static, shape, dtype, None, line)


def sources(node: Tensor) -> tuple[Tensor, ...]:
    """Return the nodes whose values are needed for the value of this one."""
    return node.inputs[1:] if node.op is member else node.inputs


def reachable(
    outputs: Iterable[Tensor], cut: Collection[int], inputs: Callable[[Tensor], Sequence[Tensor]]
) -> list[Tensor]:
    """Return the nodes that the outputs are computed from, in order, down to and without those in `cut`."""
    seen: dict[int, Tensor] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.index not in seen and node.index not in cut:
            seen[node.index] = node
            stack.extend(inputs(node))
    return [seen[index] for index in sorted(seen)]


def replay(outputs: Sequence[Tensor], cut: Mapping[int, Tensor], graph: Graph) -> list[Tensor]:
    """Record the nodes between `cut` and `outputs` again, into `graph`, with each node of `cut` replaced.

    `cut` maps indices of nodes to the nodes that take their place. Lines and scopes are kept. Nothing is computed.
    """
    made = dict(cut)
    for node in reachable(outputs, cut, lambda n: n.inputs):
        if node.is_constant:
            made[node.index] = node if node.graph is graph else graph.constant(node.value)
        elif node.op is None:
            made[node.index] = graph.capture(node)
        else:
            inputs = tuple([made[i.index] for i in node.inputs])
            again = Tensor(graph, node.op, inputs, node.static, node.shape, node.dtype, None, node._line)
            again.scope, again.weak = node.scope, node.weak
            made[node.index] = again
    return [made[o.index] for o in outputs]
