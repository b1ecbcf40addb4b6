"""The order of summation: one canonical binary tree over the index of the shard.

The tree over shards ``lo..hi`` splits at the largest power of two below its length, so that every aligned run of shards
is a subtree. An absent shard (an empty one, in a ragged last batch) is no leaf: the sum over a node with one empty side
is its other side, since adding zeros would turn -0.0 into +0.0. The order is a function of the set of present shards
alone: who adds, and where, cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Leaf:
    """The gradient of one shard."""

    shard: int


@dataclass(frozen=True)
class Register:
    """A partial sum; register 0 is the result."""

    index: int


@dataclass(frozen=True)
class Add:
    """``target = left + right``."""

    target: Register
    left: Leaf | Register
    right: Leaf | Register


def split(lo: int, hi: int) -> int:
    """Where the tree over shards ``lo..hi`` (at least two) splits."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def additions(shards: int, present: Collection[int]) -> tuple[list[Add], Leaf | Register]:
    """Return the additions in order and where the sum then is (a leaf, when only one shard is present)."""
    adds: list[Add] = []

    def visit(lo: int, hi: int, register: int) -> Leaf | Register | None:
        if hi - lo == 1:
            return Leaf(lo) if lo in present else None
        middle = split(lo, hi)
        left = visit(lo, middle, register)
        right = visit(middle, hi, register + (left is not None))
        if left is None or right is None:
            return left if right is None else right
        adds.append(Add(Register(register), left, right))
        return Register(register)

    result = visit(0, shards, 0)
    if result is None:
        raise ValueError("a sum over no shards")
    return adds, result


def registers(shards: int) -> int:
    """How many registers the sum over ``shards`` shards needs at most."""
    return max(1, (shards - 1).bit_length())


def tree_sum(leaves: list[NDArray[np.generic] | None], out: NDArray[np.generic]) -> NDArray[np.generic]:
    """Sum whole arrays in the canonical order into ``out``; None marks an absent shard."""
    present = [i for i, leaf in enumerate(leaves) if leaf is not None]
    adds, result = additions(len(leaves), present)
    memory: dict[Leaf | Register, NDArray[np.generic]] = {Leaf(i): a for i, a in enumerate(leaves) if a is not None}
    for add in adds:
        target = memory.setdefault(add.target, out if add.target.index == 0 else np.empty_like(out))
        np.add(memory[add.left], memory[add.right], out=target)
    if memory[result] is not out:
        np.copyto(out, memory[result])
    return out
