"""The sum between hosts has the bits of the sum on one host, wherever the gradients lie."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.comm import direct, slices
from dtrain.comm.barrier import Halted
from dtrain.comm.exchange import HostSum, Part
from dtrain.comm.layout import BLOCK, split_evenly
from dtrain.comm.links import Kind, LinkLost
from dtrain.comm.memory import COMPLETE, HALT, PARTIAL, WAITS
from tests.support import wait_until
from tests.unit.comm.floats import adversarial, bits, finite
from tests.unit.comm.hosts import GENERATION, Placement, exchange, in_threads, layout_of, meet, one_host_sum

HEAD_BYTES = 36
SHAPES: list[tuple[tuple[int, ...], ...]] = [
    ((0,),),
    ((1,),),
    ((31, 3), (0,), (7,)),
    ((BLOCK,),),
    ((100, 131), (131,), (131, 77), (3,)),
    ((0, 5), (3 * BLOCK - 9,), (2,), (), (16383,)),
    ((9 * BLOCK + 1,),),
]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    shards, hosts = draw(st.integers(1, 9)), draw(st.integers(2, 4))
    on = st.integers(0, hosts - 1)
    is_contiguous = draw(st.booleans())
    where = draw(st.lists(on, min_size=shards, max_size=shards))
    subset = st.sets(st.integers(0, shards - 1), min_size=1)
    return {
        "shapes": draw(st.sampled_from(SHAPES)),
        "dtype": draw(st.sampled_from([np.float32, np.float64])),
        "shards": shards,
        "where": sorted(where) if is_contiguous else where,
        "ranks": tuple(draw(st.integers(1, 3)) for _ in range(hosts)),
        "presents": [tuple(sorted(draw(subset))) for _ in range(3)],
        "overlaps": draw(st.booleans()),
        "chunk": draw(st.sampled_from([1, 2, 16])),
        "direct_bytes": draw(st.sampled_from([0, 1 << 30])),
        "seed": draw(st.integers(0, 2**32)),
    }


@contextmanager
def chunks_of(blocks: int) -> Iterator[None]:
    """Let so many blocks travel together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "CHUNK_BLOCKS", blocks)
        yield


@contextmanager
def direct_up_to(size: int) -> Iterator[None]:
    """Let buffers of so many bytes go straight to all hosts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "DIRECT_BYTES", size)
        yield


def placement_of(case: dict[str, Any]) -> Placement:
    hosts = len(case["ranks"])
    held = tuple(frozenset(s for s, h in enumerate(case["where"]) if h == host) for host in range(hosts))
    return Placement(layout_of(case["shapes"], case["dtype"]), held, case["ranks"], case["shards"])


@settings(max_examples=40, deadline=None)
@given(cases())
def test_every_host_has_the_bits_of_one_host(case: dict[str, Any]) -> None:
    placement = placement_of(case)
    random = np.random.default_rng(case["seed"])
    layout, shards, presents = placement.layout, placement.shards, case["presents"]
    gradients = [adversarial(random, (shards, layout.size), case["dtype"]) for _ in presents]
    losses = [adversarial(random, (shards,), np.float64) for _ in presents]
    with chunks_of(case["chunk"]), direct_up_to(case["direct_bytes"]):
        result = exchange(placement, gradients, losses, presents, case["overlaps"])
    for step, present in enumerate(presents):
        total, squares = one_host_sum(layout, gradients[step], present)
        for host, sums in enumerate(result.sums):
            assert bits(sums[step].total) == bits(total), f"host {host}, step {step}"
            assert bits(sums[step].squares) == bits(squares), f"host {host}, step {step}"
            chosen = list(present)
            assert bits(sums[step].losses[chosen]) == bits(losses[step][chosen]), f"host {host}, step {step}"
            assert bits(sums[step].shard_squares[chosen]) == bits(-losses[step][chosen]), f"host {host}, step {step}"
            assert sums[step].complete == step + 1


@pytest.mark.parametrize("overlaps", [False, True])
def test_the_steps_of_a_run_need_no_break_between_them(overlaps: bool) -> None:
    """A host that is done begins the next step, whose frames wait at those who are not."""
    layout = layout_of(((5 * BLOCK + 3,),))
    placement = Placement(layout, (frozenset({0, 1}), frozenset({2}), frozenset({3, 4})), (1, 2, 1), 5)
    random = np.random.default_rng(0)
    steps = 40
    gradients = [finite(random, (5, layout.size), np.float32) for _ in range(steps)]
    losses = [random.standard_normal(5) for _ in range(steps)]
    presents = [tuple(range(5 if step % 3 else 2)) for step in range(steps)]
    with chunks_of(1):
        result = exchange(placement, gradients, losses, presents, overlaps)
    for step, present in enumerate(presents):
        total, _ = one_host_sum(layout, gradients[step], present)
        assert {bits(sums[step].total) for sums in result.sums} == {bits(total)}, f"step {step}"


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("shapes", [((40 * BLOCK,),), ((10 * BLOCK + 77,), (5,))], ids=["2.6 MB", "odd"])
def test_aligned_runs_of_shards_cost_the_least_bytes_that_are_possible(
    hosts: int, shapes: tuple[tuple[int, ...], ...]
) -> None:
    layout, shards = layout_of(shapes), 8
    held = tuple(frozenset(range(*run)) for run in split_evenly(shards, hosts))
    random = np.random.default_rng(1)
    gradients = finite(random, (shards, layout.size), np.float32)
    result = exchange(
        Placement(layout, held, (1,) * hosts, shards), [gradients], [np.ones(shards)], [tuple(range(shards))]
    )
    least = 2 * (hosts - 1) * layout.nbytes
    figures = (hosts - 1) * 8 * (layout.segment_starts[-1] + hosts * shards)
    frames = hosts * (hosts - 1) * (2 * (layout.blocks // 16 + 2) + 2)
    assert least + figures < sum(result.bytes_sent) <= least + figures + frames * HEAD_BYTES
    share = -(-layout.blocks // hosts) * BLOCK * 4  # a slice is whole blocks
    overhead = figures + frames * HEAD_BYTES
    assert max(result.bytes_sent) <= 2 * (hosts - 1) * share + overhead


@pytest.mark.parametrize(("hosts", "elements"), [(2, 1000), (2, 2 * BLOCK), (4, 1000)])
def test_a_small_buffer_travels_once_to_each_other_host_in_one_frame(hosts: int, elements: int) -> None:
    layout, shards = layout_of(((elements,),)), 8
    held = tuple(frozenset(range(*run)) for run in split_evenly(shards, hosts))
    gradients = finite(np.random.default_rng(1), (shards, layout.size), np.float32)
    result = exchange(
        Placement(layout, held, (1,) * hosts, shards), [gradients], [np.ones(shards)], [tuple(range(shards))]
    )
    frame = -(-layout.nbytes // 64) * 64 + 16 * shards + HEAD_BYTES
    assert result.bytes_sent == [(hosts - 1) * (frame + HEAD_BYTES)] * hosts


def test_what_each_host_holds_may_change_from_step_to_step() -> None:
    """After a death the gradients that are left lie elsewhere than in the steps that follow."""
    layout, shards = layout_of(((3 * BLOCK + 5,),)), 4
    random = np.random.default_rng(2)
    gradients = finite(random, (shards, layout.size), np.float32)
    present = tuple(range(shards))
    expected, _ = one_host_sum(layout, gradients, present)
    helds = [
        (frozenset({0, 3}), frozenset({1, 2})),
        (frozenset({0, 1}), frozenset({2, 3})),
        (frozenset({0, 1, 2}), frozenset({2, 3})),  # two hosts have the gradient of shard 2
        (frozenset({0, 1, 2, 3}), frozenset({3})),
        (frozenset(), frozenset({0, 1, 2, 3})),
        (frozenset({1}), frozenset({0, 2, 3})),
    ]
    lines = meet(2)
    memories = [Placement(layout, helds[0], (1, 1), shards).memory(host) for host in range(2)]

    def body(host: int) -> None:
        between = HostSum(memories[host], Part(host, 2, 0, 1), lines[host], GENERATION)
        for step in range(3 * len(helds)):
            held = helds[step % len(helds)]
            memories[host].gradients[...] = np.nan
            memories[host].total[...] = np.nan
            for shard in held[host]:
                memories[host].gradients[shard] = gradients[shard]
            between.add_own(step, held, present)
            between.run(step, held, present)
            assert bits(memories[host].total) == bits(expected), f"step {step}"

    in_threads(2, body, lambda: halt(memories))
    for links in lines:
        links.close()


def halt(memories: list[Any]) -> None:
    for memory in memories:
        memory.header[HALT] = GENERATION


@pytest.mark.parametrize("hosts", [2, 3])
def test_a_halt_in_the_middle_ends_all(hosts: int) -> None:
    """Host 0 never comes; the others wait, say so, and stop when they are halted. Nobody is whole."""
    layout = layout_of(((3 * BLOCK,),))
    held = tuple(frozenset({host}) for host in range(hosts))
    memories = [Placement(layout, held, (1,) * hosts, hosts).memory(host) for host in range(hosts)]
    lines = meet(hosts)
    outcomes: list[str] = [""] * hosts

    def body(index: int) -> None:
        host = index + 1
        between = HostSum(memories[host], Part(host, hosts, 0, 1), lines[host], GENERATION)
        between.add_own(0, held, tuple(range(hosts)))
        try:
            between.run(0, held, tuple(range(hosts)))
        except Halted:
            outcomes[host] = "halted"

    thread = threading.Thread(target=in_threads, args=(hosts - 1, body), daemon=True)
    thread.start()
    wait_until(lambda: all(m.arrived[0, WAITS] > 3 for m in memories[1:]))
    assert all(m.arrived[0, PARTIAL] == 1 for m in memories[1:])
    halt(memories)
    thread.join(60)
    assert outcomes == ["", *["halted"] * (hosts - 1)]
    assert [int(m.header[COMPLETE]) for m in memories] == [0] * hosts
    for links in lines:
        links.close()


def test_the_halt_of_an_older_generation_stops_nobody() -> None:
    layout = layout_of(((10,),))
    held = (frozenset({0}), frozenset({1}))
    memories = [Placement(layout, held, (1, 1), 2).memory(host) for host in range(2)]
    lines = meet(2)

    def body(host: int) -> None:
        memories[host].header[HALT] = GENERATION - 1
        memories[host].gradients[...] = 1
        between = HostSum(memories[host], Part(host, 2, 0, 1), lines[host], GENERATION)
        between.add_own(0, held, (0, 1))
        between.run(0, held, (0, 1))

    in_threads(2, body, lambda: halt(memories))
    assert [float(m.total[0]) for m in memories] == [2.0, 2.0]
    for links in lines:
        links.close()


def test_the_first_rank_waits_for_the_others_of_its_host_and_stops_with_them() -> None:
    layout = layout_of(((2 * BLOCK,),))
    held = (frozenset({0, 1}), frozenset({2, 3}))
    memory = Placement(layout, held, (2, 1), 4).memory(0)
    lines = meet(2)
    between = HostSum(memory, Part(0, 2, 0, 2), lines[0], GENERATION)
    between.add_own(0, held, (0, 1, 2, 3))
    looked: list[int] = []

    def idle() -> None:
        looked.append(1)
        memory.header[HALT] = GENERATION

    with pytest.raises(Halted):
        between.run(0, held, (0, 1, 2, 3), idle)
    assert looked
    assert lines[0].bytes_sent == 0  # half a subtree must not travel
    for links in lines:
        links.close()


def test_idle_may_end_the_wait() -> None:
    """A host whose coordinator is gone does not wait for ever for another one."""
    layout = layout_of(((10,),))
    held = (frozenset({0}), frozenset({1}))
    memory = Placement(layout, held, (1, 1), 2).memory(0)
    lines = meet(2)
    between = HostSum(memory, Part(0, 2, 0, 1), lines[0], GENERATION)

    def idle() -> None:
        raise ConnectionAbortedError

    between.add_own(0, held, (0, 1))
    with pytest.raises(ConnectionAbortedError):
        between.run(0, held, (0, 1), idle)
    for links in lines:
        links.close()


def test_a_peer_that_goes_away_ends_the_sum() -> None:
    layout = layout_of(((10,),))
    held = (frozenset({0}), frozenset({1}))
    memory = Placement(layout, held, (1, 1), 2).memory(0)
    lines = meet(2)
    between = HostSum(memory, Part(0, 2, 0, 1), lines[0], GENERATION)
    lines[1].close()
    between.add_own(0, held, (0, 1))
    with pytest.raises(LinkLost, match="the line to host 1: "):
        between.run(0, held, (0, 1))
    assert memory.header[COMPLETE] == 0
    lines[0].close()


class LastWordKept:
    """Lines on which one kind of frame is never sent."""

    def __init__(self, links: Any, kind: Kind) -> None:
        self._links, self._kind = links, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._links, name)

    def send(self, host: int, kind: Kind, buffer: Any) -> None:
        if kind is not self._kind:
            self._links.send(host, kind, buffer)


@pytest.mark.parametrize(
    ("kept", "whole"), [(Kind.DONE, [1, 1, 1]), (Kind.FIGURES, [0, 1, 0]), (Kind.PARTIAL, [0, 1, 0])]
)
def test_no_host_goes_on_before_every_host_is_whole(kept: Kind, whole: list[int]) -> None:
    """Host 1 says nothing of one kind. Whoever lacks something is not complete, and nobody leaves the sum."""
    size = 10 if kept is Kind.PARTIAL else 6 * BLOCK
    layout = layout_of(((size,),))
    held = tuple(frozenset({host}) for host in range(3))
    memories = [Placement(layout, held, (1,) * 3, 3).memory(host) for host in range(3)]
    lines = meet(3)
    left: list[int] = []

    def body(host: int) -> None:
        links = LastWordKept(lines[host], kept) if host == 1 else lines[host]
        between = HostSum(memories[host], Part(host, 3, 0, 1), links, GENERATION)
        between.add_own(0, held, (0, 1, 2))
        try:
            between.run(0, held, (0, 1, 2))
            left.append(host)
        except Halted:
            pass

    thread = threading.Thread(target=in_threads, args=(3, body), daemon=True)
    thread.start()
    waiting = [0, 2]
    wait_until(lambda: all(memories[h].arrived[0, WAITS] > 20 for h in waiting))
    assert [int(m.header[COMPLETE]) for m in memories] == whole
    halt(memories)
    thread.join(60)
    assert left == ([1] if kept is Kind.DONE else [])
    for links in lines:
        links.close()


# --- overlap ----------------------------------------------------------------------------------------------------------


@contextmanager
def overlapping(held: tuple[frozenset[int], ...]) -> Iterator[tuple[list[Any], list[HostSum]]]:
    """Two hosts of one rank that have begun a step with overlap, and have reported nothing yet."""
    layout = layout_of(((6 * BLOCK,),))
    memories = [Placement(layout, held, (1, 1), 2).memory(host) for host in range(2)]
    lines = meet(2)
    with chunks_of(1):
        sums = [HostSum(memories[h], Part(h, 2, 0, 1), lines[h], GENERATION, True) for h in range(2)]
        for between in sums:
            between.start(0, held, (0, 1))
        yield memories, sums
        halt(memories)
        for between in sums:
            between.close()
    for links in lines:
        links.close()


def test_a_host_that_still_computes_does_not_wait_for_another_one() -> None:
    """Else it could hang in its model, and nobody would be blamed."""
    with overlapping((frozenset({0}), frozenset({1}))) as (memories, sums):
        sums[1].report(0)
        sums[0].report(0, len(sums[0].buckets) - 1)
        wait_until(lambda: memories[1].arrived[0, WAITS] > 10)
        assert memories[0].arrived[0, WAITS] == 0


def test_a_host_is_not_whole_before_its_own_slice_is_added() -> None:
    """One that holds no gradient has everything from the others before it has begun."""
    with overlapping((frozenset({0, 1}), frozenset())) as (memories, sums):
        sums[0].report(0)
        wait_until(lambda: memories[0].arrived[0, WAITS] > 10)
        assert memories[1].header[COMPLETE] == 0
        sums[1].report(0)
        sums[0].finish()
        sums[1].finish()
        assert [int(m.header[COMPLETE]) for m in memories] == [1, 1]


def test_what_goes_wrong_in_the_helper_thread_is_raised_where_the_step_ends() -> None:
    with overlapping((frozenset({0}), frozenset({1}))) as (memories, sums):
        sums[0].report(0)
        halt(memories)
        for between in sums:
            with pytest.raises(Halted):
                between.finish()
    with overlapping((frozenset({0}), frozenset({1}))) as (_, sums):
        sums[1]._links.close()  # type: ignore[union-attr]
        sums[0].report(0)
        with pytest.raises(LinkLost, match="the line to host 1: "):
            sums[0].finish()


def test_idle_may_end_the_wait_for_the_helper_thread() -> None:
    def idle() -> None:
        raise ConnectionAbortedError

    with overlapping((frozenset({0}), frozenset({1}))) as (_, sums), pytest.raises(ConnectionAbortedError):
        sums[0].finish(idle)


def test_values_that_are_not_finite_are_no_warning_of_the_helper_thread() -> None:
    """They are found by the finite check, with their place."""
    with warnings.catch_warnings(), overlapping((frozenset({0}), frozenset({1}))) as (memories, sums):
        warnings.simplefilter("error")
        memories[0].gradients[0], memories[1].gradients[1] = np.inf, -np.inf
        for between in sums:
            between.report(0)
        for between in sums:
            between.finish()
        assert np.isnan(memories[0].total).all()
