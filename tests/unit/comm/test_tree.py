"""The order of summation is one function of the set of present shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.comm.tree import Add, Leaf, Register, additions, registers, split, tree_sum
from tests.unit.comm.floats import adversarial, bits, finite, recursive_sum

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
