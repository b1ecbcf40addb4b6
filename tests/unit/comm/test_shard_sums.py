"""Values that shards hand in in the middle of a step: the bits of their sums, who waits for whom, and between hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from dtrain.comm.barrier import Halted
from dtrain.comm.layout import Layout
from dtrain.comm.links import LinkLost, Links
from dtrain.comm.memory import HALT, ROW_WORDS, VALUE_BYTES, VALUE_COUNT, WAITS, Dimensions, RunMemory
from dtrain.comm.own import Part
from dtrain.comm.shard_sums import HostValues, Patience, ShardSums, Value
from dtrain.comm.tree import tree_sum
from dtrain.errors import InputError
from tests.support import wait_until
from tests.unit.comm.hosts import GENERATION, in_threads, meet

SHARDS = 5
VALUES = (
    Value((3, 4), np.dtype(np.float32), "model.py:1"),
    Value((), np.dtype(np.float64), "model.py:2"),
    Value((0, 2), np.dtype(np.float32), "model.py:3"),
    Value((7,), np.dtype(np.int64), "model.py:4"),
    Value((2,), np.dtype(np.complex128), "model.py:5"),
)
EVERY = tuple(range(SHARDS))


def memory_of(shards: int = SHARDS) -> RunMemory:
    return RunMemory(Dimensions(Layout(("w",), ((3,),), np.dtype(np.float32)), (), shards, 4))


def handed(number: int, shard: int, step: int = 0) -> np.ndarray:
    """What a shard hands in: numbers of many magnitudes, so that the order of the sum shows."""
    value, rng = VALUES[number], np.random.default_rng([number, shard, step])
    wide = rng.standard_normal(value.shape) * 10.0 ** rng.integers(0, 6, value.shape)
    return (wide + 1j * rng.standard_normal(value.shape) if value.dtype.kind == "c" else wide).astype(value.dtype)


def expected(number: int, present: Sequence[int], step: int = 0) -> bytes:
    leaves = [handed(number, shard, step) if shard in present else None for shard in range(SHARDS)]
    return tree_sum(leaves, np.empty(VALUES[number].shape, VALUES[number].dtype)).tobytes()


@pytest.mark.parametrize("present", [EVERY, (0, 1, 2), (0,)], ids=["all", "ragged", "one"])
def test_sums_have_the_bits_of_the_tree_whoever_makes_them(present: tuple[int, ...]) -> None:
    memory = memory_of()
    ranks = [ShardSums(memory, VALUES), ShardSums(memory, VALUES)]
    for step in (0, 1):
        for rank in ranks:
            rank.begin(step, present)
        for number in range(len(VALUES)):
            for shard in present:
                ranks[shard % 2].hand_in(number, shard, handed(number, shard, step))
            for rank in ranks:
                assert rank.total(number).tobytes() == expected(number, present, step)
    assert expected(0, EVERY) != sum(handed(0, shard) for shard in reversed(EVERY)).tobytes()  # type: ignore[union-attr]


def test_what_is_handed_in_may_lie_anyhow() -> None:
    sums = ShardSums(memory_of(1), VALUES)
    sums.begin(0, (0,))
    turned = np.asfortranarray(handed(0, 0))
    out = np.empty((4, 3), np.float32).T
    sums.meet(0, 0, turned, out)
    np.testing.assert_array_equal(out, turned)


def test_a_value_that_is_there_stays_in_its_step_and_gives_way_in_the_next() -> None:
    memory = memory_of(1)
    sums = ShardSums(memory, VALUES)
    sums.begin(3, (0,))
    sums.hand_in(1, 0, np.array(5.0))
    again = ShardSums(memory, VALUES)  # another rank begins the shard anew
    again.begin(3, (0,))
    again.hand_in(1, 0, np.array(7.0))
    assert again.total(1) == 5.0
    again.begin(4, (0,))
    again.hand_in(1, 0, np.array(7.0))
    assert again.total(1) == 7.0


def test_without_patience_a_missing_value_is_an_error() -> None:
    sums = ShardSums(memory_of(), VALUES)
    sums.begin(2, EVERY)
    sums.hand_in(0, 0, handed(0, 0))
    with pytest.raises(RuntimeError, match="shard 1 has not handed in value 0 of step 2"):
        sums.total(0)


def waiting(memory: RunMemory, idle: Callable[[], None] = lambda: None) -> tuple[threading.Thread, list[object]]:
    """Rank 1 waits for the sum of value 0 of step 0; the list is what it found."""
    sums, found = ShardSums(memory, VALUES), list[object]()
    sums.patience = Patience(memory, 1, 2, GENERATION, idle)
    sums.begin(0, (0, 1))
    sums.hand_in(0, 1, handed(0, 1))

    def wait() -> None:
        try:
            found.append(sums.total(0).tobytes())
        except Halted as halted:
            found.append(halted)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, found


def test_who_waits_says_so_and_goes_on_when_all_is_there() -> None:
    memory, idle = memory_of(), threading.Event()
    thread, found = waiting(memory, idle.set)
    waits = ROW_WORDS + WAITS
    before = wait_until(lambda: memory.arrived_words[waits])
    wait_until(lambda: memory.arrived_words[waits] > before)
    assert idle.wait(30)
    assert not found
    other = ShardSums(memory, VALUES)
    other.begin(0, (0, 1))
    other.hand_in(0, 0, handed(0, 0))
    thread.join(30)
    assert found == [expected(0, (0, 1))]
    assert not memory.arrived_words[WAITS]  # of the other rank


def test_a_halt_ends_the_wait() -> None:
    memory = memory_of()
    thread, found = waiting(memory)
    wait_until(lambda: memory.arrived_words[ROW_WORDS + WAITS])
    memory.header_words[HALT] = GENERATION
    thread.join(30)
    assert [type(each) for each in found] == [Halted]


def test_too_much_is_refused_with_the_line_of_the_largest() -> None:
    large = Value((VALUE_BYTES // 8 + 1,), np.dtype(np.float64), "model.py:9")
    with pytest.raises(InputError, match=r"sums 2 arrays .* smaller ones, the largest \(\d+,\) is .* model.py:9"):
        ShardSums(memory_of(), (VALUES[0], large))
    with pytest.raises(InputError, match=f"sums {VALUE_COUNT + 1} arrays"):
        ShardSums(memory_of(), (VALUES[1],) * (VALUE_COUNT + 1))
    ShardSums(memory_of(), (Value((VALUE_BYTES // 8,), np.dtype(np.float64), ""),))


def test_the_shard_that_first_spoilt_a_sum_is_found() -> None:
    sums = ShardSums(memory_of(), VALUES)
    sums.begin(1, EVERY)
    for number in (0, 1):
        for shard in EVERY:
            spoilt = shard == 3 if number == 0 else shard <= 3
            sums.hand_in(number, shard, handed(number, shard) * (np.nan if spoilt else 1))
    assert sums.first_nonfinite() == 3
    sums.begin(2, EVERY)
    assert sums.first_nonfinite() is None


# --- between hosts ---------------------------------------------------------------------------------------------------


def exchange(
    held: Sequence[frozenset[int]], present: tuple[int, ...], links: Sequence[Links], memories: Sequence[RunMemory]
) -> list[list[bytes]]:
    """Two steps on a host for each of ``held``; the sums of all values that the first rank of each has."""
    found: list[list[bytes]] = [[] for _ in held]

    def body(host: int) -> None:
        memory = memories[host]
        sums, patience = ShardSums(memory, VALUES), Patience(memory, 0, 1, GENERATION)
        sums.patience = patience
        hosts = HostValues(Part(host, len(held), 0, 1), links[host], patience)
        for step in (0, 1):
            sums.begin(step, present)
            hosts.begin(sums, step, tuple(held), present)
            for number in range(len(VALUES)):
                for shard in sorted(held[host] & set(present)):
                    sums.hand_in(number, shard, handed(number, shard, step))
                hosts.exchange(number)
                found[host].append(sums.total(number).tobytes())

    def halt() -> None:
        for memory in memories:
            memory.header_words[HALT] = GENERATION

    in_threads(len(held), body, halt)
    return found


@pytest.mark.parametrize(
    ("held", "present"),
    [
        ([{0, 1, 2}, {3, 4}], EVERY),
        ([{0, 3}, {1}, {2, 4}], EVERY),
        ([{0, 1}, {2, 3}, {4}], (0, 1)),  # two hosts have nothing to hand in
        ([{4}, {0, 1, 2, 3}], (0,)),
    ],
)
def test_every_host_has_the_same_sums(held: list[set[int]], present: tuple[int, ...]) -> None:
    links, memories = meet(len(held)), [memory_of() for _ in held]
    found = exchange([frozenset(h) for h in held], present, links, memories)
    for each in found:
        assert each == [expected(n, present, step) for step in (0, 1) for n in range(len(VALUES))]
    for memory in memories:  # the other ranks of a host find everything
        sums = ShardSums(memory, VALUES)
        sums.begin(1, present)
        assert sums.total(3).tobytes() == expected(3, present, 1)
    for line in links:
        line.close()


class Damaged:
    """Links that lose the line in the middle of the second step."""

    def __init__(self, links: Links) -> None:
        self._links, self._step = links, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._links, name)

    def begin(self, step: int) -> None:
        self._step = step
        self._links.begin(step)

    def progress(self, step: int, timeout_seconds: float) -> object:
        if self._step == 1:
            raise LinkLost(1, "it was cut")
        return self._links.progress(step, timeout_seconds)


def test_a_line_that_is_lost_is_told_and_a_halt_ends_the_exchange() -> None:
    held, links, memories = [frozenset({0, 1}), frozenset({2, 3, 4})], meet(2), [memory_of(), memory_of()]
    start = time.monotonic()
    with pytest.raises(LinkLost, match="it was cut"):
        exchange(held, EVERY, [Damaged(links[0]), links[1]], memories)  # type: ignore[list-item]
    assert time.monotonic() - start < 30  # the other host was halted
    memories[0].header_words[HALT] = GENERATION
    with pytest.raises(Halted):
        exchange(held, EVERY, [Damaged(links[0]), links[1]], memories)  # type: ignore[list-item]
    for line in links:
        line.close()
