"""The sum over shards has the same bits whoever adds which blocks."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.comm.layout import BLOCK, Layout
from dtrain.comm.reduce import SliceSum
from dtrain.comm.threads import one_blas_thread
from tests.unit.comm.floats import Floats, adversarial, bits, finite, recursive_sum

SHAPES: list[tuple[tuple[int, ...], ...]] = [
    ((1,),),
    ((),),
    ((0,),),
    ((7, 3), (5,)),
    ((BLOCK,),),
    ((BLOCK + 1,),),
    ((100, 131), (131,), (131, 77), (3,)),
    ((0, 5), (3 * BLOCK - 9,), (2,), (), (16383,)),
]
cases = st.fixed_dictionaries(
    {
        "shapes": st.sampled_from(SHAPES),
        "dtype": st.sampled_from([np.float32, np.float64]),
        "shards": st.sampled_from([1, 2, 3, 5, 8, 11]),
        "absent": st.sampled_from([0, 0, 1, 3, 10]),
        "seed": st.integers(0, 2**32),
    }
)


def sums(
    layout: Layout, gradients: Floats, present: tuple[int, ...], cuts: list[int], runs: int = 1
) -> tuple[Floats, Floats]:
    """Total and squares when the blocks are cut into slices at ``cuts``."""
    total = np.full(layout.size, np.nan, layout.dtype)
    squares = np.full(layout.segment_starts[-1], np.nan)
    with np.errstate(all="ignore"), one_blas_thread():
        for lo, hi in pairwise([0, *sorted(cuts), layout.blocks]):
            slice_sum = SliceSum(layout, gradients, total, (lo, hi))
            for _ in range(runs):
                slice_sum.run(present, squares)
    return total, squares


def prepare(case: dict[str, Any], make: Any) -> tuple[Layout, Floats, tuple[int, ...]]:
    random = np.random.default_rng(case["seed"])
    shapes = case["shapes"]
    layout = Layout(tuple(f"p{i}" for i in range(len(shapes))), shapes, np.dtype(case["dtype"]))
    gradients = make(random, (case["shards"], layout.size), case["dtype"])
    absent = random.permutation(case["shards"])[: min(case["absent"], case["shards"] - 1)]
    gradients[absent] = np.nan  # an absent shard is not read
    return layout, gradients, tuple(s for s in range(case["shards"]) if s not in absent)


@settings(max_examples=60, deadline=None)
@given(cases, st.data())
def test_any_cut_into_slices_gives_the_bits_of_the_definition(case: dict[str, Any], data: st.DataObject) -> None:
    layout, gradients, present = prepare(case, adversarial)
    cuts = data.draw(st.lists(st.integers(0, layout.blocks), max_size=5))
    with np.errstate(all="ignore"):
        expected = recursive_sum([gradients[s] if s in present else None for s in range(case["shards"])])
    assert expected is not None
    whole, squares = sums(layout, gradients, present, [])
    assert bits(whole) == bits(expected)
    pieces, piece_squares = sums(layout, gradients, present, cuts, runs=2)
    assert bits(pieces) == bits(whole)
    assert bits(piece_squares) == bits(squares)


@settings(max_examples=30, deadline=None)
@given(cases)
def test_squares_are_those_of_the_summed_segments(case: dict[str, Any]) -> None:
    layout, gradients, present = prepare(case, finite)
    total, squares = sums(layout, gradients, present, [])
    segments = [s for block in layout.segments for s in block]
    assert len(squares) == len(segments)
    for segment, square in zip(segments, squares, strict=True):
        exact = math.fsum(float(v) ** 2 for v in total[segment.lo : segment.hi])
        assert square == pytest.approx(exact, rel=1e-12)


def test_minus_zero_survives_absent_shards() -> None:
    layout = Layout(("p",), ((40,),), np.dtype(np.float32))
    gradients = np.full((8, layout.size), -0.0, np.float32)
    for present in [(0,), (5,), (0, 1, 2), (0, 7), tuple(range(8))]:
        total, _ = sums(layout, gradients, present, [])
        assert np.signbit(total).all()


def test_another_set_of_shards_is_bound_anew() -> None:
    """The last batch of an epoch may be smaller than the number of shards."""
    layout = Layout(("p",), ((100,),), np.dtype(np.float32))
    gradients = finite(np.random.default_rng(3), (4, layout.size), np.float32)
    total, squares = np.empty(layout.size, np.float32), np.empty(1)
    slice_sum = SliceSum(layout, gradients, total, (0, 1))
    for present in [(0, 1, 2, 3), (0,), (0, 1, 2), (0, 1, 2, 3), (2,)]:
        slice_sum.run(present, squares)
        expected = recursive_sum([gradients[s] if s in present else None for s in range(4)])
        assert expected is not None
        assert bits(total) == bits(expected)


def test_a_step_allocates_nothing() -> None:
    layout = Layout(("p", "q"), ((BLOCK + 5,), (300,)), np.dtype(np.float32))
    gradients = np.ones((8, layout.size), np.float32)
    squares = np.empty(layout.segment_starts[-1])
    slice_sum = SliceSum(layout, gradients, np.empty(layout.size, np.float32), (0, layout.blocks))
    present = tuple(range(8))
    slice_sum.run(present, squares)
    tracemalloc.start()
    try:
        slice_sum.run(present, squares)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4096


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_running_values_are_added_like_gradients_and_have_no_part_in_the_norm(dtype: type) -> None:
    layout = Layout(("mean", "w", "var"), ((40,), (BLOCK + 7,), (BLOCK,)), np.dtype(dtype), ((0, 0.1), (2, 0.1)))
    gradients = finite(np.random.default_rng(0), (3, layout.size), dtype)
    total, squares = sums(layout, gradients, (0, 1, 2), [])
    for view, *leaves in zip(layout.views(total), *(layout.views(g) for g in gradients), strict=True):
        assert bits(view) == bits((leaves[0] + leaves[1]) + leaves[2])
    is_running = np.isin(layout.segment_parameters, (0, 2))
    assert is_running.tolist() == [False, False, True, True, True]
    assert (squares[is_running] == 0).all()
    assert math.fsum(squares) == pytest.approx(float((layout.views(total)[1].astype(np.float64) ** 2).sum()))
    for cuts in ([1], [2], [1, 2, 3]):
        again, figures = sums(layout, gradients, (0, 1, 2), cuts)
        assert [bits(v) for v in layout.views(again)] == [bits(v) for v in layout.views(total)]
        assert bits(figures) == bits(squares)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_running_value_that_is_not_finite_shows_in_the_squares(bad: float) -> None:
    layout = Layout(("w", "mean"), ((5,), (4,)), np.dtype(np.float32), ((1, 0.1),))
    gradients = np.ones((2, layout.size), np.float32)
    layout.views(gradients[1])[1][3] = bad
    _, squares = sums(layout, gradients, (0, 1), [])
    assert squares[0] == 20.0
    assert np.isnan(squares[1])


def test_a_large_running_value_is_finite() -> None:
    """Its square would not be, even in float64."""
    layout = Layout(("w", "mean"), ((5,), (4,)), np.dtype(np.float64), ((1, 0.1),))
    gradients = np.full((1, layout.size), 1e300)
    layout.views(gradients[0])[0][...] = 0
    assert sums(layout, gradients, (0,), [])[1].tolist() == [0.0, 0.0]
