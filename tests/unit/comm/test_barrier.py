"""No rank passes a barrier before all have arrived, and a halted generation ends every wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dtrain.comm.barrier import Barrier, Halted
from dtrain.comm.layout import Layout
from dtrain.comm.memory import ARRIVED, HALT, Dimensions, RunMemory

JOIN_SECONDS = 60.0


@pytest.fixture
def memory() -> Iterator[RunMemory]:
    layout = Layout(("w",), ((4,),), np.dtype(np.float32))
    memory = RunMemory(Dimensions(layout, (), shards=2, max_workers=8))
    yield memory
    memory.close()


def in_threads(world_size: int, body: Callable[[int], None]) -> list[BaseException | None]:
    """Run ``body(rank)`` in a thread per rank; return what each raised."""
    raised: list[BaseException | None] = [None] * world_size

    def run(rank: int) -> None:
        try:
            body(rank)
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return raised


@pytest.mark.parametrize("world_size", range(1, 9))
def test_no_rank_passes_before_all_have_arrived(memory: RunMemory, world_size: int) -> None:
    rounds = 200
    reached = [0] * world_size

    def body(rank: int) -> None:
        barrier = Barrier(memory, rank, world_size, generation=1)
        for value in range(1, rounds + 1):
            reached[rank] = value
            barrier.arrive(value)
            barrier.wait(value)
            assert min(reached) >= value
            assert max(reached) <= value + 1

    assert in_threads(world_size, body) == [None] * world_size
    assert memory.arrived[:world_size, ARRIVED].tolist() == [rounds] * world_size
    assert not memory.arrived[world_size:].any()  # nobody writes another's row


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_a_rank_that_never_arrives_ends_in_halted(memory: RunMemory, world_size: int) -> None:
    def body(rank: int) -> None:
        if rank == world_size - 1:  # plays the coordinator: it halts once the others wait
            while min(memory.arrived[:rank, ARRIVED]) < 5:
                pass
            memory.header[HALT] = 3
            return
        barrier = Barrier(memory, rank, world_size, generation=3)
        barrier.arrive(5)
        barrier.wait(5)

    raised = in_threads(world_size, body)
    assert [type(error) for error in raised] == [Halted] * (world_size - 1) + [type(None)]


def test_a_halt_of_an_earlier_generation_halts_nobody(memory: RunMemory) -> None:
    memory.header[HALT] = 2

    def body(rank: int) -> None:
        barrier = Barrier(memory, rank, 2, generation=3)
        for value in range(1, 50):
            barrier.arrive(value)
            barrier.wait(value)

    assert in_threads(2, body) == [None, None]


def test_who_has_seen_all_passes_even_when_halted(memory: RunMemory) -> None:
    """All or none: once everyone has arrived, a halt may not stop some and let others go on."""
    memory.header[HALT] = 1
    memory.arrived[:3, ARRIVED] = 7
    for rank in range(3):
        Barrier(memory, rank, 3, generation=1).wait(7)
        with pytest.raises(Halted):
            Barrier(memory, rank, 3, generation=1).wait(8)


class HeaderThatLetsTheOtherArrive:
    """The header, in a run in which the other rank arrives between the look at its word and the look at the halt."""

    def __init__(self, memory: RunMemory, row: int, value: int) -> None:
        self._memory, self._row, self._value = memory, row, value

    def __getitem__(self, index: int) -> int:
        self._memory.arrived[self._row, ARRIVED] = self._value
        return int(self._memory.header[index])


def test_an_arrival_between_the_two_looks_counts(memory: RunMemory) -> None:
    memory.header[HALT] = 1
    memory.header_words = HeaderThatLetsTheOtherArrive(memory, row=1, value=4)  # type: ignore[assignment]
    barrier = Barrier(memory, 0, 2, generation=1)
    barrier.arrive(4)
    barrier.wait(4)  # the other rank has passed this barrier and may go on: this one must not say it was halted
    with pytest.raises(Halted):
        barrier.wait(5)


def test_a_wait_without_end_asks_whether_the_coordinator_lives(memory: RunMemory) -> None:
    class CoordinatorGone(Exception):
        pass

    def idle() -> None:
        raise CoordinatorGone

    barrier = Barrier(memory, 0, 2, 1, idle)
    barrier.arrive(1)
    with pytest.raises(CoordinatorGone):
        barrier.wait(1)


def test_a_lone_rank_never_waits(memory: RunMemory) -> None:
    memory.header[HALT] = 9
    barrier = Barrier(memory, 0, 1, generation=1)
    barrier.arrive(3)
    barrier.wait(3)
    assert memory.arrived_words[ARRIVED] == 3
