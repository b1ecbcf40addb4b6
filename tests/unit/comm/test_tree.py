"""The order of summation is one function of the set of present shards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.comm.tree import (
    Add,
    Leaf,
    Register,
    Subtree,
    additions,
    cover,
    final_additions,
    partial_additions,
    registers,
    split,
    tree_sum,
)
from tests.unit.comm.floats import Floats, adversarial, bits, finite, recursive_sum

subsets = st.integers(1, 40).flatmap(
    lambda shards: st.tuples(st.just(shards), st.sets(st.integers(0, shards - 1), min_size=1))
)


@settings(deadline=None)
@given(subsets, st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32))
def test_the_sum_is_the_recursive_one_for_any_present_shards(
    case: tuple[int, set[int]], dtype: type, seed: int
) -> None:
    shards, present = case
    values = adversarial(np.random.default_rng(seed), (shards, 33), dtype)
    leaves = [values[s] if s in present else None for s in range(shards)]
    kept = values.copy()
    with np.errstate(all="ignore"):
        expected = recursive_sum(leaves)
        total = tree_sum(leaves, np.full(33, np.nan, dtype))
    assert expected is not None
    assert bits(total) == bits(expected)
    assert bits(values) == bits(kept)  # a gradient is read again when a step is run again


@pytest.mark.parametrize(
    ("shards", "first"), [(2, 1), (3, 2), (4, 2), (5, 4), (6, 4), (7, 4), (8, 4), (9, 8), (16, 8), (17, 16)]
)
def test_the_tree_splits_at_the_largest_power_of_two_below_its_length(shards: int, first: int) -> None:
    assert split(0, shards) == first
    assert split(10, 10 + shards) == 10 + first


def test_additions_of_five_shards() -> None:
    result = Register(0)
    assert additions(5, range(5)) == (
        [
            Add(Register(0), Leaf(0), Leaf(1)),
            Add(Register(1), Leaf(2), Leaf(3)),
            Add(Register(0), Register(0), Register(1)),
            Add(Register(0), Register(0), Leaf(4)),
        ],
        result,
    )


def test_an_absent_side_adds_nothing() -> None:
    assert additions(4, {1, 3}) == ([Add(Register(0), Leaf(1), Leaf(3))], Register(0))
    assert additions(8, {6}) == ([], Leaf(6))


def test_a_sum_over_no_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="no shards"):
        additions(4, ())


def test_absent_shards_are_not_zeros() -> None:
    zero = np.array([-0.0], np.float32)
    for leaves in ([zero, None], [None, zero], [None, zero, None], [zero, None, zero, None, zero]):
        assert np.signbit(tree_sum(list(leaves), np.ones(1, np.float32)))[0]


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32))
def test_an_aligned_run_of_shards_is_a_subtree(run: int, runs: int, seed: int) -> None:
    """So a worker may add its own shards first, and send one buffer."""
    length, count = 2 ** min(run, 4), 2 ** min(runs, 4)
    values = finite(np.random.default_rng(seed), (length * count, 17), np.float32)
    parts = [tree_sum(list(values[i * length : (i + 1) * length]), np.empty(17, np.float32)) for i in range(count)]
    whole = tree_sum(list(values), np.empty(17, np.float32))
    assert bits(tree_sum(list(parts), np.empty(17, np.float32))) == bits(whole)


@settings(deadline=None)
@given(subsets)
def test_the_registers_are_enough_and_hold_no_more_than_needed(case: tuple[int, set[int]]) -> None:
    shards, present = case
    adds, _ = additions(shards, present)
    used = {place.index for add in adds for place in (add.target, add.left, add.right) if isinstance(place, Register)}
    assert max(used, default=0) < registers(shards)
    assert len(adds) == len(present) - 1
    assert sorted(p.shard for a in adds for p in (a.left, a.right) if isinstance(p, Leaf)) == (
        sorted(present) if len(present) > 1 else []
    )


def test_the_order_matters_to_these_values() -> None:
    """The properties above could not fail if any order gave the same bits."""
    values = finite(np.random.default_rng(1), (8, 100), np.float32)
    tree = tree_sum(list(values), np.empty(100, np.float32))
    in_line = values[0].copy()
    for value in values[1:]:
        in_line += value
    assert bits(tree) != bits(in_line)


# --- hosts that add what they hold ------------------------------------------------------------------------------------


@st.composite
def placements(draw: st.DrawFn) -> tuple[int, set[int], list[set[int]]]:
    """The number of shards, those that are present, and those that each host holds: runs of them, or any."""
    shards, present = draw(subsets)
    hosts = draw(st.integers(1, 5))
    where = draw(st.lists(st.integers(0, hosts - 1), min_size=shards, max_size=shards))
    if draw(st.booleans()):
        where.sort()
    return shards, present, [{s for s, h in enumerate(where) if h == host} for host in range(hosts)]


def run_additions(adds: list[Add], result: Any, terms: dict[Any, Floats]) -> Floats:
    memory = dict(terms)
    for add in adds:
        memory[add.target] = memory[add.left] + memory[add.right]
    return memory[result]


@settings(deadline=None)
@given(placements(), st.sampled_from([np.float32, np.float64]), st.booleans(), st.integers(0, 2**32))
def test_hosts_that_add_what_they_hold_make_the_same_sum(
    case: tuple[int, set[int], list[set[int]]], dtype: type, has_nan: bool, seed: int
) -> None:
    shards, present, held = case
    values = adversarial(np.random.default_rng(seed), (shards, 33), dtype)
    if has_nan:
        values[seed % shards, ::3] = np.nan
    sums: dict[Any, Floats] = {}
    with np.errstate(all="ignore"):
        expected = tree_sum([values[s] if s in present else None for s in range(shards)], np.empty(33, dtype))
        for own in held:
            leaves = {Leaf(s): values[s] for s in own & present}  # what is not here cannot be added here
            for subtree in cover(shards, present, own):
                sums[subtree] = run_additions(*partial_additions(subtree, present), leaves)
        total = run_additions(*final_additions(shards, set(sums)), sums)
    assert bits(total) == bits(expected)


def nodes(lo: int, hi: int) -> list[Subtree]:
    if hi - lo == 1:
        return [Subtree(lo, hi)]
    middle = split(lo, hi)
    return [Subtree(lo, hi), *nodes(lo, middle), *nodes(middle, hi)]


@settings(deadline=None)
@given(placements())
def test_a_cover_is_disjoint_complete_and_of_the_largest_subtrees(case: tuple[int, set[int], list[set[int]]]) -> None:
    shards, present, held = case
    for own in held:

        def shards_in(node: Subtree) -> set[int]:
            return {s for s in range(node.lo, node.hi) if s in present}

        found = cover(shards, present, own)
        assert sorted(s for node in found for s in shards_in(node)) == sorted(own & present)
        assert list(found) == sorted(found, key=lambda node: node.lo)
        whole = [node for node in nodes(0, shards) if shards_in(node) and shards_in(node) <= own]
        assert set(found) <= set(whole)
        for node in found:
            larger = [w for w in whole if w != node and w.lo <= node.lo and node.hi <= w.hi]
            assert larger == []


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 12, 16, 21])
def test_an_aligned_run_of_a_power_of_two_has_one_subtree(shards: int) -> None:
    length = 1
    while length <= shards:
        for lo in range(0, shards - length + 1, length):
            assert cover(shards, range(shards), range(lo, lo + length)) == (Subtree(lo, lo + length),)
        length *= 2
    assert cover(shards, range(shards), range(shards)) == (Subtree(0, shards),)


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 13, 16, 33])
def test_a_run_of_shards_has_at_most_two_subtrees_a_level(shards: int) -> None:
    most = max(1, 2 * math.ceil(math.log2(shards)))
    for lo in range(shards):
        for hi in range(lo + 1, shards + 1):
            assert len(cover(shards, range(shards), range(lo, hi))) <= most


def test_who_holds_no_present_shard_has_nothing_to_add() -> None:
    assert cover(8, {0, 1}, {4, 5}) == ()
    assert cover(8, {0, 1}, ()) == ()


def test_absent_shards_join_what_is_around_them() -> None:
    """In a small last batch fewer subtrees travel: those of the present shards alone."""
    assert cover(8, {0, 1, 2}, {0, 1, 2, 3}) == (Subtree(0, 8),)
    assert cover(8, {0, 5}, {4, 5}) == (Subtree(4, 8),)


def test_subtrees_that_overlap_are_added_up_the_tree() -> None:
    """After a death two hosts may have a shard's gradient; the larger subtree counts, and no shard twice."""
    adds, result = final_additions(4, {Subtree(0, 2), Subtree(0, 1), Subtree(2, 4)})
    assert (adds, result) == ([Add(Register(0), Subtree(0, 2), Subtree(2, 4))], Register(0))
    with pytest.raises(ValueError, match="no shards"):
        final_additions(4, set())
