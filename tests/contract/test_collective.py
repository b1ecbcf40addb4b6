"""The sum over shards by the ranks of a host: one body, run by threads of this process and by real processes.

Every rank computes the gradients of its shards, adds its slice and updates it, with the three barriers of a step.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pytest

from dtrain.comm.barrier import Barrier
from dtrain.comm.layout import BLOCK, Layout, split_evenly
from dtrain.comm.memory import (
    ARRIVED,
    BLOCKS_DONE,
    GRADIENTS,
    HALT,
    SUMMED,
    UPDATE_STEP,
    UPDATED,
    Dimensions,
    RunMemory,
)
from dtrain.comm.reduce import SliceSum
from dtrain.comm.threads import one_blas_thread
from dtrain.comm.tree import tree_sum
from dtrain.optim import make_rule
from dtrain.train.update import Decision, Settings, SliceUpdate
from tests.contract.ranks import DEADLINE_SECONDS, HALTED, Child, outcome, resident_bytes
from tests.unit.comm.floats import bits, finite

Body = Callable[[RunMemory, int], None]


class Ranks(Protocol):
    """Run ``body(memory, rank)`` on every rank; return 0, or HALTED, or another number for an error, of each."""

    def __call__(
        self, memory: RunMemory, world_size: int, body: Body, meanwhile: Callable[[], None] = ...
    ) -> list[int]: ...


def threads(memory: RunMemory, world_size: int, body: Body, meanwhile: Callable[[], None] = lambda: None) -> list[int]:
    codes = [-1] * world_size

    def run(rank: int) -> None:
        codes[rank] = outcome(lambda: body(memory, rank))

    started = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in started:
        thread.start()
    meanwhile()
    for thread in started:
        thread.join(DEADLINE_SECONDS)
    assert not any(t.is_alive() for t in started), "a rank hangs"
    return codes


def child_of(memory: RunMemory, rank: int, body: Body) -> Child:
    """A process that runs a rank over its own mapping of the run's memory."""
    return Child.of(lambda: body(RunMemory(memory.dimensions, memory.fd), rank))


def processes(
    memory: RunMemory, world_size: int, body: Body, meanwhile: Callable[[], None] = lambda: None
) -> list[int]:
    children = [child_of(memory, rank, body) for rank in range(world_size)]
    meanwhile()
    return [child.join() for child in children]


@pytest.fixture(params=[threads, processes], ids=["in-process", "processes"])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    return request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_blas_thread():
        yield


# --- the all-reduce --------------------------------------------------------------------------------------------------

SHARDS = 6


def memory_of(shapes: tuple[tuple[int, ...], ...], states: tuple[str, ...] = (), shards: int = SHARDS) -> RunMemory:
    layout = Layout(tuple(f"p{i}" for i in range(len(shapes))), shapes, np.dtype(np.float32))
    return RunMemory(Dimensions(layout, states, shards, max_workers=8))


def gradient(step: int, shard: int, size: int) -> np.ndarray:
    return finite(np.random.default_rng([step, shard]), (size,), np.float32)


def digest_word(total: np.ndarray) -> int:
    return int.from_bytes(hashlib.sha256(bits(total)).digest()[:6], "little")


def all_reduce(memory: RunMemory, rank: int, world_size: int, steps: int, present: tuple[int, ...]) -> None:
    """What a worker does in a step, without a model. Rank 0 notes a digest of each sum in ``coefficients``."""
    layout = memory.dimensions.layout
    barrier = Barrier(memory, rank, world_size, generation=1)
    slice_sum = SliceSum(layout, memory.gradients, memory.total, split_evenly(layout.blocks, world_size)[rank])
    first, end = split_evenly(memory.dimensions.shards, world_size)[rank]
    for step in range(steps):
        for shard in range(first, end):
            memory.gradients[shard] = gradient(step, shard, layout.size) if shard in present else np.nan
        barrier.arrive(4 * step + GRADIENTS)
        barrier.wait(4 * step + GRADIENTS)
        slice_sum.run(present, memory.squares[step])
        barrier.arrive(4 * step + SUMMED)
        barrier.wait(4 * step + SUMMED)
        if rank == 0:
            memory.coefficients[step, 0] = digest_word(memory.total)
        barrier.arrive(4 * step + UPDATED)
        barrier.wait(4 * step + UPDATED)


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize(
    "shapes",
    [
        ((0,),),
        ((1,),),
        ((31, 3), (0,), (7,)),
        ((1024,),),
        ((BLOCK,),),
        ((300, 257), (257,), (257, 10), (10,)),
    ],
    ids=["empty", "one", "odd", "4 KB", "a block", "312 KB"],
)
def test_the_sum_has_one_set_of_bits(ranks: Ranks, shapes: tuple[tuple[int, ...], ...], world_size: int) -> None:
    check_all_reduce(ranks, shapes, world_size, steps=3, present=tuple(range(SHARDS)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_sum_of_some_shards(ranks: Ranks, world_size: int) -> None:
    check_all_reduce(ranks, ((5, 4099), (13,)), world_size, steps=2, present=(0, 1, 2))


@pytest.mark.parametrize("world_size", [2, 5])
def test_the_sum_of_ten_megabytes(ranks: Ranks, world_size: int) -> None:
    check_all_reduce(ranks, ((2_500_000,), (123,)), world_size, steps=1, present=(0, 1, 2, 4))


def check_all_reduce(
    ranks: Ranks, shapes: tuple[tuple[int, ...], ...], world_size: int, steps: int, present: tuple[int, ...]
) -> None:
    memory = memory_of(shapes)
    codes = ranks(memory, world_size, lambda m, rank: all_reduce(m, rank, world_size, steps, present))
    assert codes == [0] * world_size
    size = memory.dimensions.layout.size
    for step in range(steps):
        leaves = [gradient(step, s, size) if s in present else None for s in range(SHARDS)]
        expected = tree_sum(list(leaves), np.empty(size, np.float32))
        assert memory.coefficients[step, 0] == digest_word(expected), f"step {step}"
        wide = expected.astype(np.float64)
        segments = [s for block in memory.dimensions.layout.segments for s in block]
        squares = np.array([np.dot(wide[s.lo : s.hi], wide[s.lo : s.hi]) for s in segments])
        assert memory.squares[step].tobytes() == squares.tobytes()
    memory.close()


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("absent", ["first", "last"])
def test_a_rank_that_never_arrives_ends_in_halted(ranks: Ranks, world_size: int, absent: str) -> None:
    memory = memory_of(((100,),))
    missing = 0 if absent == "first" else world_size - 1

    def body(own: RunMemory, rank: int) -> None:
        if rank != missing:
            all_reduce(own, rank, world_size, 1, tuple(range(SHARDS)))

    def halt() -> None:
        others = [r for r in range(world_size) if r != missing]
        deadline = time.monotonic() + DEADLINE_SECONDS
        while memory.arrived[others, ARRIVED].min() < GRADIENTS and time.monotonic() < deadline:
            os.sched_yield()
        memory.header[HALT] = 1

    codes = ranks(memory, world_size, body, halt)
    assert codes == [0 if rank == missing else HALTED for rank in range(world_size)]
    assert memory.arrived[:world_size, ARRIVED].max() == GRADIENTS
    memory.close()


@pytest.mark.parametrize("world_size", [2, 8])
def test_a_halt_in_the_middle_stops_all_ranks_in_the_same_step(ranks: Ranks, world_size: int) -> None:
    """Whoever is a barrier ahead has seen all arrive there, so how far the run came is what the least of them says."""
    memory = memory_of(((3,),))

    def halt() -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while memory.arrived[:world_size, ARRIVED].min() < 4 * 20 and time.monotonic() < deadline:
            os.sched_yield()
        memory.header[HALT] = 1

    codes = ranks(memory, world_size, lambda m, rank: all_reduce(m, rank, world_size, 250, (0,)), halt)
    assert set(codes) <= {HALTED} or set(codes) == {0}
    arrived = memory.arrived[:world_size, ARRIVED]
    assert arrived.max() - arrived.min() <= 2  # from one barrier to the next
    memory.close()


# --- barriers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ten_thousand_barriers_leak_nothing(ranks: Ranks, world_size: int) -> None:
    memory = memory_of(((3,),))
    names = set(os.listdir("/dev/shm"))
    rounds = 10_000
    if world_size > 2:
        rounds = 1_000  # ranks that share a core, or the interpreter, wait for their turn

    def body(own: RunMemory, rank: int) -> None:
        barrier = Barrier(own, rank, world_size, generation=1)
        others = own.arrived_words[ARRIVED::8][:world_size]
        descriptors = resident = 0
        for value in range(1, rounds + 1):
            barrier.arrive(value)
            barrier.wait(value)
            assert min(others) >= value
            if value == rounds // 10:
                descriptors, resident = len(os.listdir("/proc/self/fd")), resident_bytes()
        assert len(os.listdir("/proc/self/fd")) == descriptors or ranks is threads
        assert resident_bytes() < resident + 1_000_000

    before = len(os.listdir("/proc/self/fd"))
    assert ranks(memory, world_size, body) == [0] * world_size
    assert memory.arrived[:world_size, ARRIVED].tolist() == [rounds] * world_size
    assert set(os.listdir("/dev/shm")) <= names
    assert len(os.listdir("/proc/self/fd")) == before
    memory.close()


# --- death -----------------------------------------------------------------------------------------------------------


def test_the_memory_survives_the_death_of_the_worker_that_wrote_it() -> None:
    memory = memory_of(((1000,),), ("velocity",))
    read, write = os.pipe()

    def body(own: RunMemory, rank: int) -> None:
        own.parameters[:] = 3
        own.gradients[2] = 4
        own.state[0] = 5
        os.write(write, b"x")
        signal.pause()

    child = child_of(memory, 0, body)
    assert os.read(read, 1) == b"x"
    os.kill(child.pid, signal.SIGKILL)
    assert child.join() == -signal.SIGKILL
    assert (memory.parameters == 3).all()
    assert (memory.gradients[2] == 4).all()
    assert (memory.state == 5).all()
    other = child_of(memory, 0, lambda own, rank: np.testing.assert_array_equal(own.parameters, 3))
    assert other.join() == 0
    os.close(read)
    os.close(write)
    memory.close()


BLOCKS = 40
DECISION = Decision("update", 1.0, 1.0, 32)


def run_of(rule: Any) -> RunMemory:
    memory = memory_of(((BLOCKS * BLOCK - 77,),), rule.state_names, shards=1)
    random = np.random.default_rng(8)
    memory.parameters[:] = random.standard_normal(memory.parameters.size)
    memory.total[:] = random.standard_normal(memory.parameters.size)
    for step in range(2):
        values = rule.coefficients(step, 0.01)
        memory.coefficients[step, : len(values)] = values
    return memory


def state_of(memory: RunMemory) -> bytes:
    return memory.parameters.tobytes() + memory.state.tobytes()


@pytest.mark.parametrize("at_block", [0, 1, 17, BLOCKS - 1])
def test_an_update_killed_inside_a_block_is_completed(at_block: int) -> None:
    settings = Settings(make_rule("adam"), None, None, "stop")
    expected, memory = run_of(settings.rule), run_of(settings.rule)
    SliceUpdate(expected, settings, 0, (0, BLOCKS)).run(0, DECISION)
    read, write = os.pipe()

    class DiesInside:
        """The rule, which in one block writes half of parameter and state and then says that it may be killed."""

        def __init__(self) -> None:
            self.blocks = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(settings.rule, name)

        def update(self, parameter: Any, gradient: Any, state: Any, coefficients: Any, scratch: Any) -> None:
            if self.blocks == at_block:
                half = slice(0, len(parameter) // 2)
                settings.rule.update(
                    parameter[half],
                    gradient[half],
                    tuple(s[half] for s in state),
                    coefficients,
                    tuple(s[half] for s in scratch),  # type: ignore[arg-type]
                )
                os.write(write, b"x")
                signal.pause()
            settings.rule.update(parameter, gradient, state, coefficients, scratch)
            self.blocks += 1

    rule: Any = DiesInside()

    def body(own: RunMemory, rank: int) -> None:
        SliceUpdate(own, replace(settings, rule=rule), 0, (0, BLOCKS)).run(0, DECISION)

    child = child_of(memory, 0, body)
    assert os.read(read, 1) == b"x"
    os.kill(child.pid, signal.SIGKILL)
    assert child.join() == -signal.SIGKILL
    assert memory.arrived[0, BLOCKS_DONE] == at_block
    assert state_of(memory) != state_of(expected)
    SliceUpdate(memory, settings, 0, (0, BLOCKS)).complete(0, DECISION)
    assert state_of(memory) == state_of(expected)
    os.close(read)
    os.close(write)


def test_an_update_killed_anywhere_is_completed() -> None:
    settings = Settings(make_rule("rmsprop", centered=True, momentum=0.9), None, 0.5, "stop")
    expected, memory, fresh = (run_of(settings.rule) for _ in range(3))
    SliceUpdate(expected, settings, 0, (0, BLOCKS)).run(1, DECISION)
    inside = 0
    for kill_at in range(0, BLOCKS, 2):
        for name in ("parameters", "state", "arrived"):
            getattr(memory, name)[...] = getattr(fresh, name)

        def body(own: RunMemory, rank: int) -> None:
            SliceUpdate(own, settings, 0, (0, BLOCKS)).run(1, DECISION)

        child = child_of(memory, 0, body)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while memory.arrived[0, UPDATE_STEP] != 2 or memory.arrived[0, BLOCKS_DONE] < kill_at:
            assert time.monotonic() < deadline
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        inside += memory.arrived[0, BLOCKS_DONE] < BLOCKS
        SliceUpdate(memory, settings, 0, (0, BLOCKS)).complete(1, DECISION)
        assert state_of(memory) == state_of(expected), f"killed after block {memory.arrived[0, BLOCKS_DONE]}"
    assert inside > 0
