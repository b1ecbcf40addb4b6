"""The order of summation: one canonical binary tree over the index of the shard.

The tree over shards ``lo..hi`` splits at the largest power of two below its length, so that every aligned run of shards
is a subtree. An absent shard (an empty one, in a ragged last batch) is no leaf: the sum over a node with one empty side
is its other side, since adding zeros would turn -0.0 into +0.0. The order is a function of the set of present shards
alone: who adds, and where, cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Leaf:
    """The gradient of one shard."""

    shard: int


@dataclass(frozen=True)
class Subtree:
    """The sum over the present shards among ``lo..hi``, a node of the tree that some host holds whole."""

    lo: int
    hi: int


@dataclass(frozen=True)
class Register:
    """A partial sum; register 0 is the result."""

    index: int


Place = Leaf | Subtree | Register
"""Where a term of an addition is."""


@dataclass(frozen=True)
class Add:
    """``target = left + right``."""

    target: Register
    left: Place
    right: Place


def split(lo: int, hi: int) -> int:
    """Where the tree over shards ``lo..hi`` (at least two) splits."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def additions(shards: int, present: Collection[int]) -> tuple[list[Add], Leaf | Register]:
    """Return the additions in order and where the sum then is (a leaf, when only one shard is present)."""
    adds, result = _additions(0, shards, lambda lo, hi: Leaf(lo) if hi - lo == 1 and lo in present else None)
    assert isinstance(result, Leaf | Register)
    return adds, result


def partial_additions(subtree: Subtree, present: Collection[int]) -> tuple[list[Add], Leaf | Register]:
    """Return the additions that make ``subtree`` of its present shards, and where its sum then is."""
    adds, result = _additions(
        subtree.lo, subtree.hi, lambda lo, hi: Leaf(lo) if hi - lo == 1 and lo in present else None
    )
    assert isinstance(result, Leaf | Register)
    return adds, result


def final_additions(shards: int, subtrees: Collection[Subtree]) -> tuple[list[Add], Subtree | Register]:
    """Return the additions that make the whole sum of ``subtrees``, which hold every present shard once."""
    adds, result = _additions(0, shards, lambda lo, hi: Subtree(lo, hi) if Subtree(lo, hi) in subtrees else None)
    assert isinstance(result, Subtree | Register)
    return adds, result


def cover(shards: int, present: Collection[int], held: Collection[int]) -> tuple[Subtree, ...]:
    """Return the largest subtrees whose present shards are all in ``held``, from left to right.

    What holds them can add each by itself: the additions are those of the whole tree, so it does not matter who
    makes them. An aligned run of shards has one such subtree, any other run at most two a level.
    """
    own = frozenset(held) & frozenset(present)

    def visit(lo: int, hi: int) -> list[Subtree]:
        here = [s for s in range(lo, hi) if s in present]
        if here and own.issuperset(here):
            return [Subtree(lo, hi)]
        if hi - lo == 1 or own.isdisjoint(here):
            return []
        middle = split(lo, hi)
        return visit(lo, middle) + visit(middle, hi)

    return tuple(visit(0, shards))


def _additions(lo: int, hi: int, term: Callable[[int, int], Place | None]) -> tuple[list[Add], Place]:
    """The additions over the tree of ``lo..hi``, in which ``term`` says where a node's sum lies already."""
    adds: list[Add] = []

    def visit(lo: int, hi: int, register: int) -> Place | None:
        found = term(lo, hi)
        if found is not None or hi - lo == 1:
            return found
        middle = split(lo, hi)
        left = visit(lo, middle, register)
        right = visit(middle, hi, register + (left is not None))
        if left is None or right is None:
            return left if right is None else right
        adds.append(Add(Register(register), left, right))
        return Register(register)

    result = visit(lo, hi, 0)
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
    memory: dict[Place, NDArray[np.generic]] = {Leaf(i): a for i, a in enumerate(leaves) if a is not None}
    for add in adds:
        target = memory.setdefault(add.target, out if add.target.index == 0 else np.empty_like(out))
        np.add(memory[add.left], memory[add.right], out=target)
    if memory[result] is not out:
        np.copyto(out, memory[result])
    return out
