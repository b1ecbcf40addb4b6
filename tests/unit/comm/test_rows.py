"""The sum of rows of tables: the bits of the canonical tree in every row, for any number of ranks and hosts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest

from dtrain.comm.layout import BLOCK, TABLE_PARTS, Layout
from dtrain.comm.links import LinkLost
from dtrain.comm.memory import Dimensions, RunMemory
from dtrain.comm.own import OwnSubtrees, Part
from dtrain.comm.row_exchange import RowExchange
from dtrain.comm.rows import RowSum, compact, dense_tables, used_rows
from dtrain.comm.threads import one_blas_thread
from tests.unit.comm.floats import Floats, adversarial, bits, finite, recursive_sum
from tests.unit.comm.hosts import in_threads, meet

SHAPES = ((40,), (7, 5), (300, 3), (1, 5), (2500, 2, 4), (3, BLOCK), (64, 5), (2, 1))
"""A dense parameter, a table of scalars, rows of many lengths, and tables that share a group with another."""


def layout_of(dtype: type = np.float32) -> Layout:
    names = tuple(f"p{i}" for i in range(len(SHAPES)))
    return Layout(names, SHAPES, np.dtype(dtype), tables=tuple(range(1, len(SHAPES))))


@dataclass
class Shard:
    """The rows that a shard uses of each group, and what it gives for them."""

    ids: list[np.ndarray]
    values: list[Floats]


def shards_of(layout: Layout, seed: int, shards: int = 8, make=adversarial) -> list[Shard]:
    """Shards that use nothing, a few rows, the same rows, and nearly all of them."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(shards):
        shard = Shard([], [])
        for group in layout.groups:
            own = [np.arange(layout.shapes[t][0]) + s for t, s in zip(group.tables, group.starts, strict=True)]
            rows = np.concatenate(own)
            count = int(random.choice([0, min(3, len(rows)), len(rows) // 2, int(len(rows) * 0.9)]))
            shard.ids.append(np.sort(random.choice(rows, count, replace=False)))
            shard.values.append(make(random, (count, group.width), layout.dtype))
        found.append(shard)
    return found


def leave(memory: RunMemory, number: int, shard: Shard) -> None:
    for g, group in enumerate(memory.dimensions.layout.groups):
        count = len(shard.ids[g])
        memory.row_ids[number, group.first_row : group.first_row + count] = shard.ids[g]
        memory.row_counts[number, g] = count
        compact(memory.gradients[number], group, count)[...] = shard.values[g]


def memory_of(layout: Layout, shards: list[Shard], held: frozenset[int] | None = None) -> RunMemory:
    """A memory in which these shards have left their rows; what nobody may read is not a number."""
    memory = RunMemory(Dimensions(layout, (), len(shards), 1))
    memory.gradients[...] = memory.total[...] = np.nan
    memory.row_ids[...] = memory.row_counts[...] = 10**15
    for number, shard in enumerate(shards):
        if held is None or number in held:
            leave(memory, number, shard)
    return memory


def by_definition(layout: Layout, shards: list[Shard], present: tuple[int, ...]) -> list[tuple[np.ndarray, Floats]]:
    """The union of the rows of each group, and the sum in each of them over those who use it."""
    found = []
    for g, group in enumerate(layout.groups):
        terms = {p: dict(zip(shards[p].ids[g].tolist(), shards[p].values[g], strict=True)) for p in present}
        union = sorted(set().union(*terms.values()))
        leaves = [[terms[p].get(row) if p in terms else None for p in range(len(shards))] for row in union]
        with np.errstate(all="ignore"):
            sums = [recursive_sum(of_row) for of_row in leaves]
        found.append((np.array(union, np.int64), np.array(sums, layout.dtype).reshape(-1, group.width)))
    return found


def summed(layout: Layout, shards: list[Shard], present: tuple[int, ...], ranks: int) -> tuple[RunMemory, np.ndarray]:
    memory = memory_of(layout, shards)
    squares = np.full(len(layout.square_parameters), np.nan)
    for rank in range(ranks):
        own = RowSum(memory, rank, ranks)
        if rank == 0:
            own.clear(squares)
        with np.errstate(all="ignore"):
            own.run(present, squares)
    return memory, squares


PRESENTS = [tuple(range(8)), (0, 1, 2, 3, 4), (0,), (0, 1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("present", PRESENTS, ids=str)
def test_every_row_is_the_sum_over_the_shards_that_use_it_for_any_number_of_ranks(dtype, present):
    layout = layout_of(dtype)
    shards = shards_of(layout, len(present))
    squares = []
    for ranks in (1, 2, 3, 7, TABLE_PARTS + 1):
        memory, found = summed(layout, shards, present, ranks)
        squares.append(bits(found))
        for g, (union, sums) in enumerate(by_definition(layout, shards, present)):
            assert np.array_equal(used_rows(memory, g, present), union)
            assert bits(compact(memory.total, layout.groups[g], len(union))) == bits(sums), f"group {g}, {ranks} ranks"
    assert len(set(squares)) == 1


def test_a_row_that_one_shard_uses_keeps_its_negative_zero():
    layout = layout_of()
    shards = [Shard([np.array([4 * n])] * 5, [np.full((1, g.width), -0.0) for g in layout.groups]) for n in (0, 0, 1)]
    shards[2].ids[0] = np.array([0])
    memory, _ = summed(layout, shards, (0, 1, 2), 1)
    for group in layout.groups:
        assert np.signbit(compact(memory.total, group, 1)).all()


def test_squares_are_those_of_each_table():
    layout = layout_of(np.float64)
    shards = shards_of(layout, 3, make=finite)
    memory, squares = summed(layout, shards, PRESENTS[0], 3)
    tables = dense_tables(memory, memory.total, PRESENTS[0])
    of_parameter = np.bincount(layout.square_parameters, np.nan_to_num(squares), len(SHAPES))
    for index, table in tables.items():
        assert table.shape == SHAPES[index]
        assert of_parameter[index] == pytest.approx(float(np.sum(table**2)), rel=1e-12)
    assert np.isnan(squares[: layout.segment_starts[-1]]).all()  # those of dense parameters are not touched


def test_a_sum_that_is_not_finite_shows_in_the_squares():
    layout = layout_of()
    shards = shards_of(layout, 4, make=finite)
    shards[2].ids[1], shards[2].values[1] = np.array([SHAPES[2][0] - 1]), np.full((1, 3), np.inf, np.float32)
    _, squares = summed(layout, shards, PRESENTS[0], 2)
    bad = np.flatnonzero(~np.isfinite(squares[layout.segment_starts[-1] :])) + layout.segment_starts[-1]
    assert {layout.square_parameters[i] for i in bad} == {2}


# --- several hosts ---------------------------------------------------------------------------------------------------

HELD = {
    "halves": ((0, 1, 2, 3), (4, 5, 6, 7)),
    "three": ((0, 1, 2), (3, 4), (5, 6, 7)),
    "scattered": ((0, 3, 5), (1, 2, 7), (4, 6)),
    "one has nothing": ((), (0, 1, 2, 3, 4, 5, 6, 7)),
    "two have the same": ((0, 1, 2), (2, 3, 4, 5), (5, 6, 7)),
}


def exchanged(layout, shards, held, present):
    """Run the exchange on all hosts: their memories, squares, and the bytes that each has sent."""
    hosts = len(held)
    memories = [memory_of(layout, shards, h) for h in held]
    squares = [np.full(len(layout.square_parameters), np.nan) for _ in held]
    links = meet(hosts)

    def body(host):
        memory, line = memories[host], links[host]
        own = OwnSubtrees(memory, Part(host, hosts, 0, 1), held, present)
        RowSum(memory, 0, 1).clear(squares[host])
        with np.errstate(all="ignore"):
            RowExchange(memory, Part(host, hosts, 0, 1), own, present).run(
                line, 3, squares[host], lambda: line.progress(3, 0.01)
            )
            while not line.is_sent():
                line.progress(3, 0.01)

    with one_blas_thread():
        in_threads(hosts, body)
    sent = [line.bytes_sent for line in links]
    for line in links:
        line.close()
    return memories, squares, sent


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("present", PRESENTS[:3], ids=str)
def test_every_host_has_the_bits_of_one_host(name, present):
    layout, held = layout_of(), tuple(map(frozenset, HELD[name]))
    shards = shards_of(layout, 7)
    alone, expected = summed(layout, shards, present, 1)
    memories, squares, _ = exchanged(layout, shards, held, present)
    for memory, found in zip(memories, squares, strict=True):
        assert bits(found) == bits(expected)
        for g, group in enumerate(layout.groups):
            union = used_rows(alone, g, present)
            assert np.array_equal(used_rows(memory, g, present), union)  # whoever completes the update needs them
            assert bits(compact(memory.total, group, len(union))) == bits(compact(alone.total, group, len(union)))


def test_what_travels_is_in_proportion_to_the_rows_that_are_used():
    """A table of 16 MB, of which each shard uses five rows."""
    layout = Layout(("table",), ((2**18, 16),), np.dtype(np.float32), tables=(0,))
    for used in (5, 50):
        ids = [np.arange(s, used * 1000, 1000) for s in range(8)]
        shards = [Shard([i], [np.ones((len(i), 16), np.float32)]) for i in ids]
        _, _, sent = exchanged(layout, shards, tuple(map(frozenset, HELD["halves"])), PRESENTS[0])
        content = 4 * (8 + used * (8 + 16 * 4))  # of each of four shards: a count, the ids, and a row for each
        assert all(content < s < content + 200 for s in sent)


def test_the_sum_touches_no_memory_in_proportion_to_the_table():
    """Of a table of 64 MB, the gradients, the sum and the list of rows stay unmapped but for what is used."""
    layout = Layout(("table",), ((2**20, 16),), np.dtype(np.float32), tables=(0,))
    memory = RunMemory(Dimensions(layout, (), 8, 1))
    for number in range(8):
        leave(memory, number, Shard([np.arange(number, 2**20, 2**15)], [np.ones((32, 16), np.float32)]))
    RowSum(memory, 0, 1).run(PRESENTS[0], memory.squares[0])
    touched = os.fstat(memory.fd).st_blocks * 512
    assert memory.nbytes > 900 << 20
    assert 8 * 32 * 16 * 4 < touched < 1 << 20


def test_a_line_that_breaks_ends_the_exchange():
    layout = layout_of()
    held = (frozenset(range(4)), frozenset(range(4, 8)))
    memory = memory_of(layout, shards_of(layout, 1), held[0])
    links = meet(2)
    links[1].close()
    own = OwnSubtrees(memory, Part(0, 2, 0, 1), held, PRESENTS[0])
    with pytest.raises(LinkLost):
        RowExchange(memory, Part(0, 2, 0, 1), own, PRESENTS[0]).run(
            links[0], 0, memory.squares[0], lambda: links[0].progress(0, 0.01)
        )
    links[0].close()
