"""Memory of a plan: which buffer lives how long, and where in the arena it lies.

The invariant: two buffers whose lives overlap never overlap in the arena, except where an elementwise operation takes
over the memory of an input that dies with it. Offsets depend on the steps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dtrain.graph.plan import Slot, Step

ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an uninitialised C-contiguous array that begins at a multiple of 64 bytes."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class Arena:
    """One aligned block of memory that the buffers of a plan (or of several that never run at once) share."""

    def __init__(self, size: int, memory: np.ndarray | None = None) -> None:
        self.size = size
        self.memory = aligned_empty((size,), np.dtype(np.uint8)) if memory is None else memory

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return the array that lies at this offset."""
        size = dtype.itemsize
        for n in shape:
            size *= n
        return self.memory[offset : offset + size].view(dtype).reshape(shape)


def _rounded(nbytes: int) -> int:
    return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)


def assign_memory(steps: Sequence[Step], slots: Sequence[Slot]) -> tuple[int, int]:
    """Set `offset` of every buffer that is not an output. Return (bytes of the arena, bytes without any reuse)."""
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        last.setdefault(step.out.position, i)
        for source in step.inputs:
            if source.root is not None:
                last[source.root.position] = i
    free = _FreeList()
    total = 0
    taken_over: set[int] = set()
    for i, step in enumerate(steps):
        out = step.out
        if out.output < 0:
            total += _rounded(out.prototype.nbytes)
            heir = _dying_input(step, i, last)
            if heir is not None:
                out.offset = heir.offset
                taken_over.add(heir.position)
            else:
                out.offset = free.take(_rounded(out.prototype.nbytes))
        if step.scratch is not None:
            size = _rounded(step.scratch.prototype.nbytes)
            total += size
            step.scratch.offset = free.take(size)
            free.give(step.scratch.offset, size)
        ended = {s.root.position: s.root for s in step.inputs if s.root is not None}
        if last[out.position] == i:
            ended[out.position] = out
        for slot in ended.values():
            if last[slot.position] == i and slot.output < 0 and slot.position not in taken_over:
                free.give(slot.offset, _rounded(slot.prototype.nbytes))
    return free.top, total


def _dying_input(step: Step, i: int, last: dict[int, int]) -> Slot | None:
    """Return the buffer of an input whose memory the result may take: elementwise, same layout, read here for the
    last time."""
    if not step.op.is_elementwise:
        return None
    want = step.out.prototype
    for source in step.inputs:
        root, p = source.root, source.prototype
        if root is None or root.output >= 0 or last[root.position] != i:
            continue
        if p.shape != want.shape or p.dtype != want.dtype or not p.flags.c_contiguous:
            continue
        if root.prototype.nbytes != want.nbytes:
            continue
        # Another view of the same memory would be read after it was overwritten.
        if any(o.root is root and o is not source for o in step.inputs):
            continue
        return root
    return None


class _FreeList:
    """Free intervals of the arena: best fit, neighbours joined."""

    def __init__(self) -> None:
        self.top = 0
        self._free: list[tuple[int, int]] = []

    def take(self, size: int) -> int:
        fits = [(length, offset) for offset, length in self._free if length >= size]
        if fits:
            length, offset = min(fits)
            self._free.remove((offset, length))
            if length > size:
                self._free.append((offset + size, length - size))
            return offset
        # The last free interval may reach the top: extend it.
        for offset, length in self._free:
            if offset + length == self.top:
                self._free.remove((offset, length))
                self.top = offset + size
                return offset
        offset = self.top
        self.top += size
        return offset

    def give(self, offset: int, size: int) -> None:
        self._free.append((offset, size))
        self._free.sort()
        joined: list[tuple[int, int]] = []
        for start, length in self._free:
            if joined and joined[-1][0] + joined[-1][1] == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._free = joined
