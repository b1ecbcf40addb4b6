"""A model of one host's memory and of a line to a worker, for the simulator of several hosts.

A number stands for the content of a block. It is a function of all that the block was made of: its content before, the
step's coefficients and every gradient of the step, so a step that is lost, repeated or summed of other gradients shows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from dtrain.comm.channel import ChannelClosed, Message
from dtrain.comm.layout import split_evenly
from dtrain.train.host import Report
from tests.simulate.simulator import BLOCKS, SUMMED, Row

ROWS = 32


def coefficients(step: int) -> list[int]:
    return [7 * step + 1]


def gradient(step: int, shard: int, parameters: Sequence[int]) -> int:
    return hash((step, shard, *parameters))


def total(step: int, gradients: Sequence[int]) -> list[int]:
    return [hash((step, block, *gradients)) for block in range(BLOCKS)]


def updated(block: int, step: int, summed: int, values: Sequence[int]) -> int:
    return hash((block, step, summed, *values))


def undisturbed(first: int, steps: int, shards: int) -> list[list[int]]:
    """The parameters after each number of steps, those before ``first`` left empty."""
    parameters = list(range(BLOCKS))
    history = [[] for _ in range(first)] + [parameters]
    for step in range(first, steps):
        sums = total(step, [gradient(step, s, parameters) for s in range(shards)])
        parameters = [updated(p, step, t, coefficients(step)) for p, t in zip(parameters, sums, strict=True)]
        history.append(parameters)
    return history


class Memory:
    """Stands where `dtrain.train.host.Host` and its memory are. ``state`` is how many updates a block has had."""

    def __init__(self, shards: int, step: int, check: Callable[[bool, str], None]) -> None:
        self.memory = self
        self._check = check
        self.parameters, self.state = list(range(BLOCKS)), [step] * BLOCKS
        self.half_done = set[int]()
        self.halted = self.begun = self.complete = 0
        self.granted = step
        self.coefficients: dict[int, list[int]] = {}
        self.ranks = [Row(0) for _ in range(ROWS)]
        self.gradients, self.total = [0] * shards, [0] * BLOCKS
        self.shard_done = [0] * shards
        self.size = 1  # ranks of the generation

    def begin(self, generation: int, step: int) -> None:
        self.halted, self.complete = generation - 1, 0
        self.ranks = [Row(4 * step) for _ in range(ROWS)]
        self.begun = generation

    def halt(self, generation: int) -> None:
        self.halted = max(self.halted, generation)

    def grant(self, first: int, values: Sequence[Sequence[int]]) -> None:
        self.coefficients.update({step: list(v) for step, v in enumerate(values, first)})
        self.granted = first + len(values)

    def rows(self, ranks: int) -> list[tuple[int, int, int]]:
        return [(r.arrived, r.beats, r.waits) for r in self.ranks[:ranks]]

    def report(self, ranks: int) -> Report:
        least = min(r.arrived for r in self.ranks[:ranks])
        step = (least + 1) // 4
        is_whole = least >= 4 * step + SUMMED or self.complete == step + 1
        done = frozenset(s for s, done in enumerate(self.shard_done) if done == step + 1)
        return Report(self.begun, step, is_whole, done)

    def mend(self, ranks: int) -> int:
        step = self.report(ranks).committed
        for row, (lo, hi) in zip(self.ranks, split_evenly(BLOCKS, ranks), strict=False):
            for block in range(row.blocks_done if row.update_step == step + 1 else lo, hi):
                self.half_done.discard(block)
                self.update(block, step)
                row.update_step, row.blocks_done = step + 1, block + 1
            row.arrived = 4 * step + 3
        return step + 1

    def update(self, block: int, step: int) -> None:
        self._check(self.state[block] == step, f"update {step} of block {block}, which has had {self.state[block]}")
        self._check(step in self.coefficients, f"step {step} is made without coefficients")
        values = self.coefficients[step]
        self.parameters[block] = updated(self.parameters[block], step, self.total[block], values)
        self.state[block] += 1


class Line:
    """The coordinator's end of the line to a worker. ``deliver`` brings something there, ``wait`` lets time pass."""

    def __init__(
        self,
        is_broken: Callable[[], bool],
        deliver: Callable[[Any], None],
        wait: Callable[[float, Callable[[], bool]], None],
    ) -> None:
        self._is_broken, self._deliver, self._wait = is_broken, deliver, wait
        self.incoming: deque[Message] = deque()

    def send(self, message: Message) -> None:
        if self._is_broken():
            raise ChannelClosed
        self._deliver(message)

    def send_array(self, array: Sequence[int], timeout_seconds: float) -> None:
        if self._is_broken():
            raise ChannelClosed
        self._deliver(list(array))

    def receive(self, timeout_seconds: float) -> Message | None:
        self._wait(timeout_seconds, lambda: bool(self.incoming) or self._is_broken())
        if self.incoming:
            return self.incoming.popleft()
        if self._is_broken():
            raise ChannelClosed
        return None

    def close(self) -> None:
        self.incoming.clear()
