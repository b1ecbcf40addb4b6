"""A loop of many steps as one node, whose graph does not grow with their number. `scan` records it.

The body is recorded once, into a graph of its own, and run from its own plan. What it closes over becomes an input of
the loop. The derivative of a loop is a loop in the other direction, so it has a derivative in turn: its body computes
the step again from the carry that the loop kept of each step, and then runs backward through it. The invariant: the
carries are all that is kept of a step, with the small factors of `products.py`; a plan that asks for no gradient keeps
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from dtrain.errors import TraceError
from dtrain.graph.differentiate import backward
from dtrain.graph.memory import ALIGNMENT, Arena, aligned_empty
from dtrain.graph.ops.shape import zeros_like
from dtrain.graph.plan import Plan
from dtrain.graph.primitive import Call, Shape, Static, prototype
from dtrain.graph.products import Products
from dtrain.graph.regions import Packed, append, packed_layout, part_of, parts, reachable, replay, sources
from dtrain.graph.tensor import EMPTY, Graph, Tensor, format_line, user_line


class BodyGraph(Graph):
    """The graph of a loop's body, within the graph that holds the loop."""

    def __init__(self, parent: Graph) -> None:
        super().__init__()
        self.parent = parent
        self.depth = parent.depth + 1
        self.captured: dict[int, tuple[Tensor, Tensor]] = {}
        """What the body closes over: the outer tensor and the input that stands for it, by the outer one's index."""
        self.is_closed = False
        self.is_eager = parent.is_eager
        self.line, self.scope = parent.line, parent.scope
        self.random_places = parent.random_places

    def capture(self, x: Tensor) -> Tensor:
        if x.graph is self:
            return x
        if self.is_closed:
            raise TraceError(
                f"an array from within a loop was used after it, at {format_line(user_line())}; return it from the body"
            )
        if x.is_constant:
            return self.constant(x.value)
        outer = self.parent.capture(x)
        found = self.captured.get(outer.index)
        if found is None:
            value = outer.value if self.is_eager else None
            node = Tensor(self, None, (), EMPTY, x.shape, x.dtype, value, x._line, "captured", x.weak)
            found = self.captured[outer.index] = (outer, node)
        return found[1]


@dataclass(eq=False)
class Body:
    """One step of a loop: (constants, carries, slices of xs) to (new carries, slices of ys), nodes of `graph`."""

    graph: Graph
    constants: Sequence[Tensor]
    carries: Sequence[Tensor]
    xs: Sequence[Tensor]
    new: Sequence[Tensor]
    ys: Sequence[Tensor]
    kept: Mapping[int, int]
    """Which of `ys` is the carry that the step began with, by the carry's number, for those that a derivative needs."""
    _narrowed: dict[frozenset[int], tuple[Body, list[int], dict[int, int]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{len(self.graph.nodes)} nodes>"

    @cached_property
    def plan(self) -> Plan:
        """How a step is run."""
        return Plan([*self.constants, *self.carries, *self.xs], [*self.new, *self.ys])

    def reads(self, outputs: Sequence[Tensor]) -> set[int]:
        """Return the indices of the nodes that these outputs are computed from."""
        return {n.index for n in reachable(outputs, (), sources)}

    def narrowed(self, used: frozenset[int]) -> tuple[Body, list[int], dict[int, int]]:
        """Return the body that makes these results (carries, then ys) and no others, the inputs that it takes, and the
        new numbers of the results."""
        if used not in self._narrowed:
            count = len(self.carries)
            ys = [k for k in range(len(self.ys)) if count + k in used]
            alive = {i for i in used if i < count}
            while True:
                reads = self.reads([*[self.new[i] for i in alive], *[self.ys[k] for k in ys]])
                more = {i for i, c in enumerate(self.carries) if c.index in reads} | alive
                if more == alive:
                    break
                alive = more
            carries = sorted(alive)
            constants = [i for i, x in enumerate(self.constants) if x.index in reads]
            xs = [i for i, x in enumerate(self.xs) if x.index in reads]
            body = Body(
                self.graph,
                [self.constants[i] for i in constants],
                [self.carries[i] for i in carries],
                [self.xs[i] for i in xs],
                [self.new[i] for i in carries],
                [self.ys[k] for k in ys],
                {},
            )
            first = len(self.constants)
            inputs = [*constants, *[first + i for i in carries], *[first + count + i for i in xs]]
            numbers = {i: n for n, i in enumerate([*carries, *[count + k for k in ys]])}
            self._narrowed[used] = (body, inputs, numbers)
        return self._narrowed[used]


class _Loop(Packed):
    """A loop. The inputs are the constants, the first carries and xs; the results are the last carries and ys."""

    def layout(self, static: Static) -> list[tuple[int, Shape, np.dtype[Any]]]:
        body, length = static["body"], static["length"]
        stacks = [((length, *y.shape), y.dtype) for y in body.ys]
        return packed_layout([*[(c.shape, c.dtype) for c in body.carries], *stacks])

    def infer(self, inputs: Sequence[Any], static: Static) -> tuple[Shape, np.dtype[Any]]:
        return (self.layout(static)[-1][0],), np.dtype(np.uint8)

    def scratch_bytes(self, static: Static) -> int:
        body = static["body"]
        own = packed_layout([(x.shape, x.dtype) for x in (*body.carries, *body.xs, *body.new, *body.ys)])
        return own[-1][0] + _rounded(body.plan.arena_bytes)

    def contiguous(self, static: Static) -> int:
        return len(static["body"].constants)

    def narrowed(self, static: Static, used: frozenset[int]) -> tuple[Static, list[int], dict[int, int]]:
        body, inputs, numbers = static["body"].narrowed(used)
        return {**static, "body": body}, inputs, numbers

    def evaluate(self, values: Sequence[Any], static: Static) -> Any:
        out = aligned_empty(*self.infer((), static))
        scratch = aligned_empty((self.scratch_bytes(static),), np.dtype(np.uint8))
        self.bind_with(out, [np.asarray(v, order="C") for v in values], static, scratch)()
        return out

    def bind_with(self, out: np.ndarray, values: Sequence[np.ndarray], static: Static, scratch: np.ndarray) -> Call:
        body, length = static["body"], static["length"]
        results = parts(self, static, out)
        plan = body.plan
        groups = (body.carries, body.xs, body.new, body.ys)
        own = packed_layout([(x.shape, x.dtype) for group in groups for x in group])
        arrays = iter([_array(scratch, *entry) for entry in own[:-1]])
        carries, xs, new, ys = ([next(arrays) for _ in group] for group in groups)
        arena = Arena(plan.arena_bytes, scratch[own[-1][0] :][: plan.arena_bytes])
        first, count = len(body.constants), len(carries)
        bound = plan.bind([*values[:first], *carries, *xs], [*new, *ys], arena)
        return partial(
            _run,
            range(length - 1, -1, -1) if static["reverse"] else range(length),
            list(zip(carries, values[first : first + count], strict=True)),
            list(zip(xs, values[first + count :], strict=True)),
            bound.calls,
            list(zip(results[count:], ys, strict=True)),
            list(zip(carries, new, strict=True)),
            list(zip(results[:count], carries, strict=True)),
        )

    def adjoint(self, node: Tensor, gs: Mapping[int, Tensor], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        body: Body = node.static["body"]
        graph = next(iter(gs.values())).graph
        first, count = len(body.constants), len(body.carries)
        inner = Graph()
        inner.is_eager, inner.line, inner.scope = False, node._line, node.scope

        def like(nodes: Sequence[Tensor]) -> list[Tensor]:
            return [inner.input(prototype(x.shape, x.dtype), x.name) for x in nodes]

        constants, carries, xs = like(body.constants), like(body.carries), like(body.xs)
        old = [*body.constants, *body.carries, *body.xs]
        cut = {x.index: y for x, y in zip(old, [*constants, *carries, *xs], strict=True)}
        moving = [i for i, c in enumerate(carries) if c.dtype.kind == "f"]
        seen = [k for k in sorted(gs) if k >= count]
        outputs = [*[body.new[i] for i in moving], *[body.ys[k - count] for k in seen]]
        reads = body.reads(outputs)
        by_constant = [i for i in range(first) if wanted[i] and _is_moved(body.constants[i], reads)]
        by_x = [i for i in range(len(xs)) if wanted[first + count + i] and _is_moved(body.xs[i], reads)]
        g_carries, g_ys = like([body.carries[i] for i in moving]), like([body.ys[k - count] for k in seen])
        wrt = [*[carries[i] for i in moving], *[constants[i] for i in by_constant], *[xs[i] for i in by_x]]
        found = backward(replay(outputs, cut, inner), [*g_carries, *g_ys], wrt)
        new, g_xs = found[: len(moving)], found[len(found) - len(by_x) :]
        of_constants = dict(zip(by_constant, found[len(moving) :], strict=False))
        kept = sorted(body.kept)
        given = [graph.capture(x) for x in node.inputs]
        stacks = [graph.capture(part_of(node, count + body.kept[i])) for i in kept]
        fed = [*[carries[i] for i in kept], *xs, *g_ys]
        feeds = [*stacks, *given[first + count :], *[gs[k] for k in seen]]
        stack_of = {x.index: stack for x, stack in zip(fed, feeds, strict=True)}
        products = Products({*stack_of, *[g.index for g in g_xs]})
        added = [i for i, g in of_constants.items() if not products.take(i, g)]
        sums = like([body.constants[i] for i in added])
        new += [s + of_constants[i] for i, s in zip(added, sums, strict=True)]
        step = Body(
            inner,
            constants,
            [*g_carries, *sums],
            fed,
            new,
            [*g_xs, *g_carries, *products.left.values()],
            {i: len(by_x) + i for i in range(len(moving))},
        )
        starts = [gs[i] if i in gs else zeros_like(given[first + i]) for i in moving]
        zeros = [zeros_like(given[i]) for i in added]
        inputs = [*given[:first], *starts, *zeros, *feeds]
        static = {"body": step, "length": node.static["length"], "reverse": not node.static["reverse"]}
        result = append(loop, inputs, static, graph)
        gradients: list[Tensor | None] = [None] * len(node.inputs)
        places = [*[first + i for i in moving], *added, *[first + count + i for i in by_x]]
        for number, place in enumerate(places):
            if wanted[place]:
                gradients[place] = part_of(result, number)
        for number, value in enumerate([*g_xs, *g_carries, *products.left.values()], len(moving) + len(added)):
            if value.index not in stack_of:
                stack_of[value.index] = part_of(result, number)
        for place, gradient in products.made(stack_of).items():
            gradients[place] = gradient
        return gradients


def _is_moved(x: Tensor, reads: set[int]) -> bool:
    return x.dtype.kind == "f" and x.index in reads


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _array(block: np.ndarray, offset: int, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
    return Arena(block.size, block).array(offset, shape, dtype)


Pairs = list[tuple[np.ndarray, np.ndarray]]


def _run(
    steps: range, starts: Pairs, feeds: Pairs, calls: Sequence[Call], keeps: Pairs, moves: Pairs, ends: Pairs
) -> None:
    for carry, value in starts:
        np.copyto(carry, value)
    for t in steps:
        for x, stack in feeds:
            np.copyto(x, stack[t])
        for call in calls:
            call()
        for stack, y in keeps:
            stack[t] = y
        for carry, new in moves:
            np.copyto(carry, new)
    for result, carry in ends:
        np.copyto(result, carry)


loop = _Loop("scan")
