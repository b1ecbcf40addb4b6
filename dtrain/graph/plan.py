"""The plan: from a graph to a flat list of bound calls in preallocated memory.

Owns the choice of what is computed, in which order, and where each result lies. The invariant: a plan is a pure
function of the graph, so every process that traces the same function plans the same calls over the same layouts, and
the bits of a run depend neither on how often nor on where the plan was bound. Liveness and offsets are in `memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dtrain.errors import InputError, TraceError
from dtrain.graph.memory import ALIGNMENT, Arena, aligned_empty, assign_memory
from dtrain.graph.ops.linear import matmul
from dtrain.graph.ops.shape import alias, broadcast_, cast, copy_, reshape_, stop, transpose_
from dtrain.graph.primitive import Call, Primitive, Static, Ufunc, View, prototype
from dtrain.graph.regions import Packed, member, part, sources
from dtrain.graph.tensor import EMPTY, Tensor

if TYPE_CHECKING:
    from dtrain.graph.blame import Origin

INPUT, CONSTANT, BUFFER, VIEW = "input", "constant", "buffer", "view"


@dataclass(eq=False, slots=True)
class Slot:
    """One array of the plan: an input, a constant, a buffer of its own, or a view of another slot."""

    kind: str
    prototype: np.ndarray
    node: Tensor
    root: Slot | None = None
    source: Slot | None = None
    op: Primitive | None = None
    static: Static = field(default_factory=dict)
    position: int = -1
    """Its place among the plan's slots."""
    output: int = -1
    """The output array that this buffer is, or -1."""
    offset: int = -1
    """Where in the arena the buffer begins, in bytes."""


@dataclass(eq=False, slots=True)
class Step:
    """One operation: reads the slots of `inputs`, writes `out`."""

    op: Primitive
    static: Static
    inputs: tuple[Slot, ...]
    out: Slot
    node: Tensor
    scratch: Slot | None = None
    """Memory that the operation needs while it runs."""


class Plan:
    """How to compute `outputs` from `inputs`: steps without dead or repeated work, over one reused arena.

    `inputs` may be any nodes of one graph; everything else that the outputs need must be constant. An output that is
    an input, a view, or named twice is copied into its array; every other output is written where it is wanted by the
    operation that makes it.
    """

    def __init__(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.slots: list[Slot] = []
        self.steps: list[Step] = []
        self._by_node: dict[int, Slot] = {}
        self._by_expression: dict[Any, Slot] = {}
        self._uses: dict[int, int] = {}
        self._made: dict[int, int] = {}
        self._after: dict[int, list[Step]] = {}
        self._left_out: set[int] = set()
        self._shared: set[int] = set()
        self._narrowed: dict[int, tuple[Static, list[int], dict[int, int]]] = {}
        self._build()
        self._claim_outputs()
        self.arena_bytes, self.buffer_bytes = assign_memory(self.steps, self.slots)

    # -- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        given = {node.index: i for i, node in enumerate(self.inputs)}
        graphs = {id(node.graph) for node in (*self.inputs, *self.outputs)}
        if len(graphs) > 1:
            raise TraceError("a plan needs inputs and outputs of one graph")
        order = self._reachable(given)
        self.input_slots = [self._add(Slot(INPUT, prototype(node.shape, node.dtype), node)) for node in self.inputs]
        for node, slot in zip(self.inputs, self.input_slots, strict=True):
            self._by_node.setdefault(node.index, slot)
        for node in order:
            if node.index not in self._by_node:
                self._by_node[node.index] = self._plan_node(node)

    def _reachable(self, given: dict[int, int]) -> list[Tensor]:
        """Return the nodes that are needed, in order. An operation with several results is narrowed to the used ones,
        which all come after it."""
        needed = {node.index: node for node in self.outputs}
        used: dict[int, set[int]] = {}
        order = []
        for index in range(max(needed, default=-1), -1, -1):
            node = needed.get(index)
            if node is None:
                continue
            order.append(node)
            if index in given:
                continue
            inputs: Sequence[Tensor] = sources(node)
            if isinstance(node.op, Packed):
                narrowed = self._narrowed[index] = node.op.narrowed(node.static, frozenset(used[index]))
                inputs = [node.inputs[i] for i in narrowed[1]]
            elif node.op is part:
                used.setdefault(inputs[0].index, set()).add(node.static["index"])
            for i in inputs:
                needed[i.index] = i
                self._uses[i.index] = self._uses.get(i.index, 0) + 1
        return order[::-1]

    def _add(self, slot: Slot) -> Slot:
        slot.position = len(self.slots)
        self.slots.append(slot)
        return slot

    def _plan_node(self, node: Tensor) -> Slot:
        op = node.op
        if op is None:
            if not node.is_constant:
                raise InputError(f"the outputs depend on the input {node.name!r}, which the plan is not given")
            return self._constant(node, np.asarray(node.value))
        if isinstance(op, Packed):
            static, kept, _ = self._narrowed[node.index]
            return self._packed(op, static, [self._by_node[node.inputs[i].index] for i in kept], node)
        inputs = tuple([self._by_node[i.index] for i in sources(node)])
        if op is member:
            return inputs[0]
        if op is part:
            static, _, numbers = self._narrowed[node.inputs[0].index]
            assert isinstance(node.inputs[0].op, Packed)
            offset, shape, dtype = node.inputs[0].op.layout(static)[numbers[node.static["index"]]]
            static = {"index": node.static["index"], "offset": offset, "shape": shape, "dtype": dtype}
            return self._apply(op, static, inputs, node)
        if op is alias or op is stop or (op is cast and node.dtype == node.inputs[0].dtype):
            return inputs[0]
        if op.name == "branch_sum":
            return self._running_sum(inputs, node)
        turned = self._turned_product(node)
        if turned is not None:
            return turned
        return self._apply(op, node.static, inputs, node)

    def _packed(self, op: Packed, static: Static, inputs: list[Slot], node: Tensor) -> Slot:
        for i in range(op.contiguous(static)):
            p = inputs[i].prototype
            if not (p.flags.c_contiguous and p.flags.aligned):
                inputs[i] = self._apply(copy_, EMPTY, (inputs[i],), node)
        slot = self._make(op, static, tuple(inputs), node)
        scratch = self._add(Slot(BUFFER, prototype((op.scratch_bytes(static),), np.dtype(np.uint8)), node))
        scratch.root = scratch
        self.steps[-1].scratch = scratch
        return slot

    def _running_sum(self, terms: tuple[Slot, ...], node: Tensor) -> Slot:
        """Add the terms left to right, each as soon as it is there: no more than two are alive at a time."""
        assert node.op is not None
        total = terms[0]
        for term in terms[1:]:
            key = (node.op, (), (total.position, term.position))
            found = self._by_expression.get(key)
            if found is None:
                found = self._add(Slot(BUFFER, prototype(node.shape, node.dtype), node))
                found.root = found
                self._by_expression[key] = found
                made = max(self._made_at(total), self._made_at(term))
                self._made[found.position] = made
                self._after.setdefault(made, []).append(Step(node.op, EMPTY, (total, term), found, node))
            total = found
        return total

    def _made_at(self, slot: Slot) -> int:
        """Return the number of the step after which the slot's memory is written; -1 for inputs and constants."""
        return -1 if slot.root is None else self._made[slot.root.position]

    def _turned_product(self, node: Tensor) -> Slot | None:
        """(x @ y).T with no other use of x @ y is y.T @ x.T: the same product, written in the order that is wanted."""
        if node.op is None or node.op.name != "transpose" or node.static["axes"] != (1, 0):
            return None
        (product,) = node.inputs
        if product.op is not matmul or product.ndim != 2 or self._uses[product.index] != 1:
            return None
        x, y = product.inputs
        if x.ndim != 2 or y.ndim != 2 or product.index in {o.index for o in (*self.outputs, *self.inputs)}:
            return None
        slot = self._by_node[product.index]
        if slot.node is not product or slot.kind != BUFFER or slot.position in self._shared:
            return None
        # The product was planned just before: leave its step out.
        self._left_out.add(slot.position)
        key = next(k for k, s in reversed(self._by_expression.items()) if s is slot)
        del self._by_expression[key]
        a, b = self._by_node[x.index], self._by_node[y.index]
        return self._apply(matmul, EMPTY, (self._turn(b, node), self._turn(a, node)), node)

    def _turn(self, slot: Slot, node: Tensor) -> Slot:
        return self._apply(transpose_, {"axes": (1, 0)}, (slot,), node)

    def _constant(self, node: Tensor, value: np.ndarray) -> Slot:
        return self._add(Slot(CONSTANT, value, node))

    def _apply(self, op: Primitive, static: Static, inputs: tuple[Slot, ...], node: Tensor) -> Slot:
        if not op.is_random:
            key = (op, tuple(sorted(static.items())) if static else (), tuple([i.position for i in inputs]))
            slot = self._by_expression.get(key)
            if slot is not None:
                self._shared.add(slot.position)
                return slot
        slot = self._make(op, static, inputs, node)
        if not op.is_random:
            self._by_expression[key] = slot
        return slot

    def _make(self, op: Primitive, static: Static, inputs: tuple[Slot, ...], node: Tensor) -> Slot:
        if isinstance(op, View):
            return self._view(op, static, inputs[0], node)
        if not op.is_random and all(i.kind == CONSTANT and not _is_users(i) for i in inputs):
            value = np.asarray(op.evaluate([i.prototype for i in inputs], static))
            return self._constant(node, value)
        if isinstance(op, Ufunc) and len(inputs) > 1:
            inputs = self._unspread(inputs, node)
        if op is matmul:
            inputs = tuple([self._for_blas(i, node) for i in inputs])
        (shape, dtype) = op.infer([i.prototype for i in inputs], static)  # type: ignore[misc]
        slot = self._add(Slot(BUFFER, prototype(shape, dtype), node))
        slot.root = slot
        self._made[slot.position] = len(self.steps)
        self.steps.append(Step(op, static, inputs, slot, node))
        return slot

    def _view(self, op: View, static: Static, source: Slot, node: Tensor) -> Slot:
        if op is reshape_ and source.op is reshape_ and source.source is not None:
            return self._apply(op, static, (source.source,), node)
        try:
            shown = op.view(source.prototype, **static)
        except ValueError:
            source = self._apply(copy_, EMPTY, (source,), node)
            shown = op.view(source.prototype, **static)
        if source.kind == CONSTANT:
            return self._constant(node, shown)
        return self._add(Slot(VIEW, shown, node, source.root, source, op, static))

    def _unspread(self, inputs: tuple[Slot, ...], node: Tensor) -> tuple[Slot, ...]:
        """Hand a ufunc the source of a broadcast operand where another operand has the full shape: NumPy broadcasts
        by itself."""
        shape = np.broadcast_shapes(*[i.prototype.shape for i in inputs])
        result = list(inputs)
        for k, slot in enumerate(inputs):
            small = self._before_spread(slot, node)
            if small is not slot:
                others = [o.prototype.shape for j, o in enumerate(result) if j != k]
                if np.broadcast_shapes(small.prototype.shape, *others) == shape:
                    result[k] = small
        return tuple(result)

    def _before_spread(self, slot: Slot, node: Tensor) -> Slot:
        if slot.kind == VIEW and slot.op is broadcast_ and slot.source is not None:
            return slot.source
        p = slot.prototype
        if slot.kind == CONSTANT and p.ndim and p.size and not any(p.strides):
            value = p[(0,) * p.ndim]
            key = ("scalar", value.dtype.str, value.tobytes())
            if key not in self._by_expression:
                scalar = np.array(value)
                scalar.setflags(write=False)
                self._by_expression[key] = self._constant(node, scalar)
            return self._by_expression[key]
        return slot

    def _for_blas(self, slot: Slot, node: Tensor) -> Slot:
        """Return the slot itself if BLAS takes its strides as they are (rows or columns contiguous), else a copy of
        it."""
        p = slot.prototype
        if p.flags.c_contiguous or p.ndim < 2:
            if p.ndim == 1 and not p.flags.c_contiguous:
                return self._apply(copy_, EMPTY, (slot,), node)
            return slot
        item, (rows, columns), (m, n) = p.itemsize, p.strides[-2:], p.shape[-2:]
        by_rows = columns == item and rows >= n * item
        by_columns = rows == item and columns >= m * item
        if by_rows or by_columns:
            return slot
        return self._apply(copy_, EMPTY, (slot,), node)

    def _claim_outputs(self) -> None:
        self.output_slots: list[Slot] = []
        for i, node in enumerate(self.outputs):
            slot = self._by_node[node.index]
            root = slot
            while root.kind == VIEW and root.op is reshape_ and root.source is not None:
                root = root.source
            if root.kind == BUFFER and root.output < 0:
                root.output = i
                self.output_slots.append(slot)
                continue
            copied = self._add(Slot(BUFFER, prototype(node.shape, node.dtype), node))
            copied.root, copied.output = copied, i
            step = Step(copy_, EMPTY, (slot,), copied, node)
            self._after.setdefault(self._made_at(slot), []).append(step)
            self.output_slots.append(copied)
        steps = list(self._after.get(-1, []))
        for number, step in enumerate(self.steps):
            if step.out.position not in self._left_out:
                steps.append(step)
            steps.extend(self._after.get(number, []))
        self.steps = steps

    @cached_property
    def finished_at(self) -> tuple[int, ...]:
        """For each output, how many of the calls have to be made until it is there."""
        last = [0] * len(self.outputs)
        for number, step in enumerate(self.steps, 1):
            root = step.out if step.out.root is None else step.out.root
            if root.output >= 0:
                last[root.output] = number
        return tuple(last)

    # -- binding ------------------------------------------------------------------------------------------------------

    def bind(
        self,
        inputs: Sequence[np.ndarray | None] | None = None,
        outputs: Sequence[np.ndarray | None] | None = None,
        arena: Arena | None = None,
    ) -> Bound:
        """Return the calls over these arrays, which are used as they are: inputs are read and outputs written in place.

        None stands for an array that the plan allocates. Arrays must be C-contiguous, aligned, and of the planned
        shape and dtype, or an InputError is raised. One arena (`Arena(plan.arena_bytes)`) may serve many bounds if
        they never run at the same time. Outputs must overlap neither the inputs nor each other.
        """
        given_in = self._accept("input", inputs, [s.prototype for s in self.input_slots])
        given_out = self._accept("output", outputs, [s.prototype for s in self.output_slots])
        arena = arena or Arena(self.arena_bytes)
        if arena.size < self.arena_bytes:
            raise InputError(f"the arena has {arena.size} bytes, the plan needs {self.arena_bytes}")
        arrays: list[np.ndarray] = []
        places = {slot.position: i for i, slot in enumerate(self.input_slots)}
        for slot in self.slots:
            if slot.kind == INPUT:
                array = given_in[places[slot.position]]
            elif slot.kind == CONSTANT:
                array = slot.prototype
            elif slot.kind == VIEW:
                assert slot.source is not None
                assert isinstance(slot.op, View)
                array = slot.op.view(arrays[slot.source.position], **slot.static)
            elif slot.output >= 0:
                array = given_out[slot.output].reshape(slot.prototype.shape)
            elif slot.offset >= 0:
                array = arena.array(slot.offset, slot.prototype.shape, slot.prototype.dtype)
            else:  # planned, then replaced by another step
                array = slot.prototype
            arrays.append(array)
        calls = []
        for step in self.steps:
            out, values = arrays[step.out.position], [arrays[i.position] for i in step.inputs]
            if step.scratch is None:
                calls.append(step.op.bind(out, values, step.static))
            else:
                assert isinstance(step.op, Packed)
                calls.append(step.op.bind_with(out, values, step.static, arrays[step.scratch.position]))
        return Bound(self, given_in, given_out, calls, arrays, arena)

    def _accept(
        self, what: str, given: Sequence[np.ndarray | None] | None, wanted: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        if given is None:
            given = [None] * len(wanted)
        if len(given) != len(wanted):
            raise InputError(f"the plan has {len(wanted)} {what}s, got {len(given)}")
        result = []
        for i, (array, want) in enumerate(zip(given, wanted, strict=True)):
            if array is None:
                array = aligned_empty(want.shape, want.dtype)
            elif array.shape != want.shape or array.dtype != want.dtype:
                raise InputError(
                    f"{what} {i}: expected shape {want.shape} of {want.dtype}, got {array.shape} of {array.dtype}"
                )
            elif not (array.flags.c_contiguous and array.flags.aligned):
                raise InputError(f"{what} {i} must be C-contiguous and aligned; pass np.ascontiguousarray of it")
            result.append(array)
        return result

    def __str__(self) -> str:
        lines = [
            f"{len(self.steps)} steps, {len(self.slots)} arrays, arena {self.arena_bytes} of {self.buffer_bytes} bytes"
        ]
        for step in self.steps:
            sources = ", ".join(f"%{i.position}" for i in step.inputs)
            where = f"output {step.out.output}" if step.out.output >= 0 else f"arena+{step.out.offset}"
            lines.append(f"%{step.out.position} = {step.op.name}({sources}) -> {where}  # {step.node.location}")
        return "\n".join(lines)


class Bound:
    """A plan over given arrays. `run()` reads `inputs` and writes `outputs`; it allocates nothing."""

    def __init__(
        self,
        plan: Plan,
        inputs: list[np.ndarray],
        outputs: list[np.ndarray],
        calls: list[Call],
        arrays: list[np.ndarray],
        arena: Arena,
    ) -> None:
        self.plan = plan
        self.inputs = inputs
        self.outputs = outputs
        self.calls = calls
        self.arrays = arrays
        self.arena = arena

    def run(self) -> None:
        """Execute every call in order."""
        for call in self.calls:
            call()

    def run_in_parts(self, parts: Sequence[tuple[int, int]], report: Callable[[int], None]) -> None:
        """Execute every call in order; for each (count, word) in ``parts``, report the word after so many calls."""
        start = 0
        for end, word in parts:
            for call in self.calls[start:end]:
                call()
            report(word)
            start = end
        for call in self.calls[start:]:
            call()

    def first_nonfinite(self) -> Origin | None:
        """Run again, step by step, and say where nan or inf first appears; None if nowhere."""
        from dtrain.graph.blame import first_nonfinite

        return first_nonfinite(self)


def _is_users(slot: Slot) -> bool:
    """Whether this constant is an array that the user may still write into, which must not be folded."""
    return slot.prototype.ndim > 0 and slot.prototype.flags.writeable and slot.node.is_constant


__all__ = ["ALIGNMENT", "Arena", "Bound", "Plan", "Slot", "Step"]
