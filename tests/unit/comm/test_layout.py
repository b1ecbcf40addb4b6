"""Every parameter is an aligned slice of the flat buffer, tiled by segments that no block boundary crosses."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.comm.layout import BLOCK, Layout, split_evenly
from dtrain.errors import InputError

dimension = st.one_of(st.integers(0, 3), st.sampled_from([15, 16, 17, 127, 128]))
large = st.sampled_from([(BLOCK,), (BLOCK - 16,), (BLOCK + 1,), (3, BLOCK - 5), (2 * BLOCK + 7,), (130, 131)])
shape = st.one_of(st.lists(dimension, max_size=3).map(tuple), large)
shapes = st.lists(shape, min_size=1, max_size=8).map(tuple)
dtypes = st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)])


def layout_of(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[np.generic]) -> Layout:
    return Layout(tuple(f"p{i}" for i in range(len(shapes))), shapes, dtype)


@settings(max_examples=50, deadline=None)
@given(shapes, dtypes)
def test_parameters_are_aligned_in_order_and_disjoint(
    shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[np.generic]
) -> None:
    layout = layout_of(shapes, dtype)
    end = 0
    for offset, item in zip(layout.offsets, shapes, strict=True):
        assert offset * dtype.itemsize % 64 == 0
        assert end <= offset < end + 64 // dtype.itemsize
        end = offset + prod(item)
    assert end <= layout.size
    assert layout.size * dtype.itemsize == layout.nbytes
    assert layout.nbytes % 64 == 0
    assert layout.nbytes > 0


@settings(max_examples=50, deadline=None)
@given(shapes, dtypes)
def test_segments_tile_every_parameter(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[np.generic]) -> None:
    layout = layout_of(shapes, dtype)
    owner = np.full(layout.size, -1)
    for parameter, (offset, item) in enumerate(zip(layout.offsets, shapes, strict=True)):
        owner[offset : offset + prod(item)] = parameter
    seen = np.full(layout.size, -1)
    order = []
    assert len(layout.segments) == layout.blocks
    for block, segments in enumerate(layout.segments):
        assert layout.segment_starts[block + 1] - layout.segment_starts[block] == len(segments)
        for segment in segments:
            assert layout.block(block).start <= segment.lo < segment.hi <= layout.block(block).stop
            assert (seen[segment.lo : segment.hi] == -1).all()
            seen[segment.lo : segment.hi] = segment.parameter
            order.append(segment)
    assert (seen == owner).all()
    assert order == sorted(order, key=lambda s: s.lo)
    assert layout.segment_parameters == tuple(s.parameter for s in order)
    assert layout.segment_starts[0] == 0
    assert layout.segment_starts[-1] == len(order)


@settings(max_examples=50, deadline=None)
@given(shapes, dtypes)
def test_blocks_tile_the_buffer(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[np.generic]) -> None:
    layout = layout_of(shapes, dtype)
    end = 0
    for index in range(layout.blocks):
        block = layout.block(index)
        assert block.start == end == index * BLOCK
        end = block.stop
        assert index == layout.blocks - 1 or end - block.start == BLOCK
    assert end == layout.size


@settings(max_examples=50, deadline=None)
@given(shapes, dtypes)
def test_views_are_the_memory_itself(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[np.generic]) -> None:
    layout = layout_of(shapes, dtype)
    buffer = np.zeros(layout.size, dtype)
    for index, view in enumerate(layout.views(buffer)):
        assert view.shape == shapes[index]
        assert view.flags.c_contiguous
        view += index + 1
    for index, offset in enumerate(layout.offsets):
        assert (buffer[offset : offset + prod(shapes[index])] == index + 1).all()
    assert np.count_nonzero(buffer) == sum(prod(s) for s in shapes)  # the padding is untouched


def test_equal_names_and_shapes_give_equal_layouts() -> None:
    leaves = [("w", np.ones((3, 5))), ("b", np.float64(1.0))]
    first, second = (Layout.of(leaves, np.dtype(np.float32)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first.shapes == ((3, 5), ())
    assert first.offsets == (0, 16)
    assert first.size == 32
    assert Layout.of(leaves, np.dtype(np.float64)).offsets == (0, 16)
    assert Layout.of(leaves, np.dtype(np.float64)).size == 24


@pytest.mark.parametrize("leaf", [np.arange(3), np.array([True]), np.array([1j]), np.array(["a"])])
def test_a_parameter_that_is_not_float_is_refused(leaf: np.ndarray) -> None:
    with pytest.raises(InputError, match=rf"parameter table: expected a float32 array, got dtype {leaf.dtype}"):
        Layout.of([("w", np.ones(3)), ("table", leaf)], np.dtype(np.float32))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(InputError, match="no parameters"):
        Layout.of([], np.dtype(np.float32))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 70))
def test_even_runs_tile_the_range(count: int, parts: int) -> None:
    runs = split_evenly(count, parts)
    assert [i for lo, hi in runs for i in range(lo, hi)] == list(range(count))
    assert len(runs) == parts
    lengths = {hi - lo for lo, hi in runs}
    assert max(lengths) - min(lengths) <= 1


@st.composite
def with_running(draw: st.DrawFn) -> Layout:
    found = draw(shapes)
    marks = draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)))
    running = tuple((i, 0.1 + i / 100) for i, is_marked in enumerate(marks) if is_marked)
    return Layout(tuple(f"p{i}" for i in range(len(found))), found, draw(dtypes), running)


@settings(max_examples=50, deadline=None)
@given(with_running())
def test_running_values_lie_behind_the_parameters_in_blocks_of_their_own(layout: Layout) -> None:
    buffer = np.zeros(layout.size, layout.dtype)
    covered = np.zeros(layout.size, bool)
    for block in range(layout.blocks):
        where = layout.block(block)
        assert where.start == block * BLOCK
        assert where.start <= where.stop <= min(where.start + BLOCK, layout.size)
        covered[where] = True
        for segment in layout.segments[block]:
            assert where.start <= segment.lo < segment.hi <= where.stop
            assert (segment.parameter in layout.momenta) == (block >= layout.parameter_blocks)
    for index, view in enumerate(layout.views(buffer)):
        view += index + 1
    for index, offset in enumerate(layout.offsets):  # no two overlap
        assert offset * layout.dtype.itemsize % 64 == 0
        assert (buffer[offset : offset + prod(layout.shapes[index])] == index + 1).all()
    assert covered[buffer != 0].all()
    parts = [s for block in layout.segments for s in block]
    assert parts == sorted(parts, key=lambda s: s.lo)
    assert sum(s.hi - s.lo for s in parts) == sum(prod(s) for s in layout.shapes)


def test_parameters_lie_where_they_would_lie_without_running_values() -> None:
    leaves = [("mean", np.ones(20)), ("w", np.ones((3, 5))), ("var", np.ones(4)), ("b", np.ones(7))]
    layout = Layout.of(leaves, np.dtype(np.float32), [(0, 0.1), (2, 0.5)])
    plain = Layout.of([leaves[1], leaves[3]], np.dtype(np.float32))
    assert (layout.offsets[1], layout.offsets[3]) == plain.offsets
    assert layout.block(0) == plain.block(0)
    assert (layout.offsets[0], layout.offsets[2], layout.size) == (BLOCK, BLOCK + 32, BLOCK + 48)
    assert (layout.blocks, layout.parameter_blocks) == (2, 1)
    assert layout.parameter_names == ("w", "b")
    assert layout.momenta == {0: 0.1, 2: 0.5}
    assert (plain.blocks, plain.parameter_blocks, plain.parameter_names) == (1, 1, ("w", "b"))


def test_a_model_of_running_values_alone_is_refused() -> None:
    with pytest.raises(InputError, match="at least one float array that is not marked as running"):
        Layout.of([("mean", np.ones(3))], np.dtype(np.float32), [(0, 0.1)])
