"""In-place shared-memory all-reduce against torch.distributed's gloo, in the same processes, interleaved.

    python benchmarks/all_reduce.py [--sizes 4K 64K ...] [--ranks 2] [--rounds 9] [--pin] [--quick] [--keep]

What is measured: the gradient of each rank (float32) is where backward left it, and afterwards every rank can read the
sum. For dtrain that is barrier, tree sum of the rank's slice as ``SliceSum`` does it, barrier, in memory that all ranks
map; for gloo ``all_reduce`` of a tensor over loopback TCP. ``sum and norm`` is what a step does: the squares of every
segment in float64 as well, of which gloo's figure has no part. Before it is timed the gradient is written anew, as a
backward pass would do. A round times every contestant, in turning order: 30 calls in a row of sizes below 1 MB, 5 below
16 MB, 1 above. A call lasts as long as its slowest rank, and a round counts as the median of its calls.

On a machine that others use too, the scheduler may put two ranks on one core, where they wait for each other in turn.
``--pin`` gives each rank a core of its own while it runs dtrain's calls. gloo runs free either way: pinning slows it.

Before and after the timing the sums are checked: ours bit for bit against the reference tree sum, the squares against
float64, gloo's against the same sum.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from common import Ranks, describe_machine, median, microseconds, publish, table
from numpy.typing import NDArray

from dtrain.comm.barrier import Barrier
from dtrain.comm.layout import Layout, split_evenly
from dtrain.comm.memory import Dimensions, RunMemory
from dtrain.comm.reduce import SliceSum
from dtrain.comm.tree import tree_sum

SIZES = ("4K", "64K", "1M", "16M", "100M")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_GLOO, _SUM, _NORM = "gloo", "sum", "with norm"
_LARGEST_REPEATED_BYTES = 16 << 20


@dataclass(frozen=True)
class Request:
    """Measure the run memory ``index`` in ``rounds`` rounds of ``repeats`` calls."""

    index: int
    rounds: int
    repeats: int
    is_pinned: bool


@dataclass(frozen=True)
class Answer:
    """Seconds of each call by contestant and round, and whether the sums were right."""

    seconds: dict[str, list[list[float]]]
    is_right: bool


class Rank:
    """One rank's side of the comparison. Every rank calls the same methods in the same order."""

    def __init__(self, memory: RunMemory) -> None:
        import torch
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.memory, self.layout = memory, memory.dimensions.layout
        blocks = split_evenly(self.layout.blocks, self.world_size)[self.rank]
        self._slice_sum = SliceSum(self.layout, memory.gradients, memory.total, blocks)
        self._present = tuple(range(self.world_size))
        self._squares = memory.squares[0]
        self._barrier = Barrier(memory, self.rank, self.world_size, generation=1)
        self._arrived = 0
        # A wrong sum of small numbers could hide in rounding; these differ by rank and place.
        self._source = np.random.Generator(np.random.Philox(key=[self.rank, 1])).standard_normal(
            self.layout.size, dtype=np.float32
        )
        self._cores = os.sched_getaffinity(0)
        self._tensor = torch.empty(self.layout.size)
        self._tensor_array: NDArray[Any] = self._tensor.numpy()

    def synchronise(self) -> None:
        self._arrived += 1
        self._barrier.arrive(self._arrived)
        self._barrier.wait(self._arrived)

    def sum(self) -> None:
        self.synchronise()
        self._slice_sum.run(self._present, None)
        self.synchronise()

    def sum_with_norm(self) -> None:
        self.synchronise()
        self._slice_sum.run(self._present, self._squares)
        self.synchronise()

    def gloo(self) -> None:
        self._dist.all_reduce(self._tensor)

    def pin(self, is_pinned: bool) -> None:
        """Bind the calling thread, not gloo's own, to one core or to none."""
        cores = sorted(self._cores)
        os.sched_setaffinity(0, {cores[self.rank % len(cores)]} if is_pinned else self._cores)

    def time(self, name: str, repeats: int) -> list[float]:
        """Seconds of each of ``repeats`` calls in a row, this rank's gradient written just before the first."""
        call: Callable[[], None] = {_GLOO: self.gloo, _SUM: self.sum, _NORM: self.sum_with_norm}[name]
        np.copyto(self._tensor_array if name == _GLOO else self.memory.gradients[self.rank], self._source)
        self.synchronise()
        marks = [perf_counter()]
        for _ in range(repeats):
            call()
            marks.append(perf_counter())
        return np.diff(marks).tolist()

    def is_right(self) -> bool:
        """Reduce once each way from fresh gradients and compare everything with the reference."""
        np.copyto(self.memory.gradients[self.rank], self._source)
        np.copyto(self._tensor_array, self._source)
        if self.rank == 0:
            self.memory.total.fill(np.nan)
            self._squares.fill(np.nan)
        self.sum_with_norm()
        self.gloo()
        expected = tree_sum(list(self.memory.gradients), np.empty_like(self.memory.total))
        squares = [
            float(np.square(expected[s.lo : s.hi], dtype=np.float64).sum()) for b in self.layout.segments for s in b
        ]
        result = (
            np.array_equal(self.memory.total, expected)
            and np.allclose(self._squares, squares, rtol=1e-12, atol=0.0)
            and np.allclose(self._tensor_array, expected, rtol=1e-5, atol=1e-5)
        )
        self.synchronise()
        return result


def measure(rank: Rank, request: Request) -> Answer:
    names = [_NORM, _SUM, _GLOO]
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    is_right = rank.is_right()
    for turn in range(request.rounds + 1):
        for name in names[turn % 3 :] + names[: turn % 3]:
            rank.pin(request.is_pinned and name != _GLOO)
            elapsed = rank.time(name, request.repeats)
            if turn:  # the first round touches the pages
                seconds[name].append(elapsed)
    rank.pin(False)
    return Answer(seconds, rank.is_right() and is_right)


def parse_size(text: str) -> int:
    """Bytes of a size as 4K, 1M or 4096."""
    return int(text[:-1]) * _UNITS[text[-1].upper()] if text[-1].upper() in _UNITS else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="In-place shared-memory all-reduce against gloo.")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="SIZE", help="bytes, as 64K or 1M")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pin", action="store_true", help="a core for each rank during dtrain's calls")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run?")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/results")
    arguments = parser.parse_args()
    sizes, rounds = (["4K", "256K"], 3) if arguments.quick else (arguments.sizes, arguments.rounds)
    world_size = arguments.ranks
    memories = [
        RunMemory(
            Dimensions(
                Layout(("gradient",), ((parse_size(size) // 4,),), np.dtype(np.float32)), (), world_size, world_size
            )
        )
        for size in sizes
    ]

    def serve(request: Request) -> Answer:
        return measure(Rank(memories[request.index]), request)

    rows = []
    with Ranks(world_size, serve) as ranks:
        for index, size in enumerate(sizes):
            nbytes = parse_size(size)
            repeats = 1 if nbytes >= _LARGEST_REPEATED_BYTES else 5 if nbytes >= 1 << 20 else 30
            answers = ranks.ask(Request(index, rounds, repeats, arguments.pin))
            if not all(answer.is_right for answer in answers):
                raise SystemExit(f"{size}: a sum is wrong")
            # A call takes as long as its slowest rank. The median over the calls of a round keeps out those in which
            # another program had the core; it does so for every contestant.
            slowest = {
                name: np.median(np.max([a.seconds[name] for a in answers], axis=0), axis=1).tolist()
                for name in (_GLOO, _SUM, _NORM)
            }

            def ratio(name: str, slowest: dict[str, list[float]] = slowest) -> str:
                times = statistics.median(g / o for g, o in zip(slowest[_GLOO], slowest[name], strict=True))
                return f"{times:.1f}×"

            rows.append(
                [
                    f"{size}B",
                    *[microseconds(median(slowest[name])) for name in (_SUM, _NORM, _GLOO)],
                    f"{nbytes / median(slowest[_SUM]) / 1e9:.1f}",
                    ratio(_SUM),
                    ratio(_NORM),
                ]
            )
    text = "\n".join(
        [
            f"# All-reduce, {world_size} ranks on one host, float32, median of {rounds} interleaved rounds",
            "",
            describe_machine() + ("; each rank on a core of its own for dtrain." if arguments.pin else "."),
            "Sums checked: ours bit for bit with the reference tree sum, gloo's within rounding.",
            "",
            table(
                [
                    "size",
                    "dtrain sum, µs",
                    "dtrain sum and norm, µs",
                    "gloo, µs",
                    "sum, GB/s",
                    "gloo / sum",
                    "gloo / sum and norm",
                ],
                rows,
            ),
        ]
    )
    publish("all_reduce_pinned" if arguments.pin else "all_reduce", text, arguments.keep)


if __name__ == "__main__":
    main()
