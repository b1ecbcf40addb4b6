"""Sums over the shards of a step that are wanted in the middle of it, such as the statistics of a whole mini-batch.

Every shard hands in the same number of small arrays in the same order, its *values*. They lie in the run's memory, an
area for each shard, with a word each that becomes step + 1 when the value is there. Who has handed in value k waits
until value k of all present shards is there, adds them itself in the order of `tree.py`, and goes on.

A value of a step is the same whoever computes it and however often, so one that is there is never written again in that
step: a shard that is begun anew after a death finds what it had handed in, and a shard that was finished before has
left all of its values to the others. Nobody waits for ever: a present shard is either finished or in somebody's hands.

No value is overwritten while somebody reads it: a rank reads the values of step t before it arrives at the first
barrier of step t, and nobody writes one of step t + 1 before having passed that barrier, which is behind the arrival of
every rank. After a death the next generation begins when every rank is at rest.

Between hosts, the first rank of each sends the values of its host's shards to all others, and puts theirs into its
host's memory; the other ranks see no difference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.barrier import Halted
from dtrain.comm.links import Kind, LinkLost, Links
from dtrain.comm.memory import HALT, ROW_WORDS, WAITS, RunMemory, words
from dtrain.comm.own import Held, Part
from dtrain.comm.reduce import Call, bind_additions
from dtrain.comm.tree import Leaf, additions, registers
from dtrain.errors import InputError

_ALIGN = 64
_YIELDS = 2000
_YIELDS_OF_MANY = 100  # more ranks than cores: who yields is soon on again, and keeps the awaited one from running
_SLEEP_SECONDS = 100e-6
_PATIENCE_SECONDS = 0.005


@dataclass(frozen=True)
class Value:
    """What a shard hands in at one place of the loss; ``line`` is the user's."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    line: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Patience:
    """How one rank waits for others in one generation. It says all the while that it is not itself waited for."""

    def __init__(
        self, memory: RunMemory, rank: int, ranks: int, generation: int, idle: Callable[[], None] = lambda: None
    ) -> None:
        self._header, self._arrived = memory.header_words, memory.arrived_words
        self._waits = rank * ROW_WORDS + WAITS
        self._generation, self._idle = generation, idle
        self._yields = _YIELDS if ranks <= (os.cpu_count() or 1) else _YIELDS_OF_MANY

    def until(self, words: memoryview[int], word: int, value: int) -> None:
        """Wait until a word has reached a value. Raises Halted."""
        turns = 0
        while words[word] < value:
            self.check()
            turns += 1
            if turns < self._yields:
                os.sched_yield()
            else:
                if turns % 1000 == 0:
                    self._idle()
                time.sleep(_SLEEP_SECONDS)

    def check(self) -> None:
        """Raise Halted if the generation is; else say that this rank waits."""
        if self._header[HALT] >= self._generation:
            raise Halted
        self._arrived[self._waits] += 1

    def receive(self, links: Links, step: int) -> list[tuple[int, Kind]]:
        """Move what can be moved between hosts; what has arrived. Raises Halted, LinkLost."""
        self.check()
        try:
            arrived = links.progress(step, _PATIENCE_SECONDS)
        except LinkLost:
            if self._header[HALT] >= self._generation:  # the other host has only seen it first
                raise Halted from None
            raise
        if not arrived:
            self._idle()
        return arrived


class ShardSums:
    """The values of one loss in the memory of a run, and their sums as one process makes them.

    ``values`` are those of a shard in order. Raises InputError if they are too many or too large. ``patience`` is how
    to wait; without it all values have to be there.
    """

    def __init__(self, memory: RunMemory, values: tuple[Value, ...]) -> None:
        self.values = values
        self.patience: Patience | None = None
        offsets, end = [], 0
        for value in values:
            offsets.append(end)
            end += -(-value.nbytes // _ALIGN) * _ALIGN
        shards, most = memory.values.shape
        count = memory.value_steps.shape[1]
        if end > most or len(values) > count:
            largest = max(values, key=lambda v: v.nbytes)
            raise InputError(
                f"loss: sum_over_shards sums {len(values)} arrays of {end:,} bytes together in a step; {count} arrays "
                f"of {most:,} bytes are possible; sum smaller ones, the largest {largest.shape} is summed at "
                f"{largest.line}"
            )
        self.nbytes = end
        self._places = [
            [memory.values[s, o : o + v.nbytes].view(v.dtype).reshape(v.shape) for s in range(shards)]
            for o, v in zip(offsets, values, strict=True)
        ]
        self._words, self._row = words(memory.value_steps), count
        self._shards = shards
        self._totals = [np.empty(v.shape, v.dtype) for v in values]
        self._total_tags = [0] * len(values)
        self._bound: dict[tuple[int, ...], list[list[Call]]] = {}
        self._tag = 0
        self._present: tuple[int, ...] = ()

    def begin(self, step: int, present: tuple[int, ...]) -> None:
        """What follows is of ``step``, in which these shards have samples."""
        self._tag, self._present = step + 1, present

    def hand_in(self, number: int, shard: int, value: NDArray[np.generic]) -> None:
        """Put a shard's value of this number where all can see it, unless it is there."""
        word = shard * self._row + number
        if self._words[word] != self._tag:
            np.copyto(self._places[number][shard], value)
            self._words[word] = self._tag  # x86-64 keeps stores in order: who sees the word sees the value

    def wait(self, number: int, shards: tuple[int, ...]) -> None:
        """Wait until the values of this number of these shards are there. Raises Halted."""
        for shard in shards:
            word = shard * self._row + number
            if self._words[word] < self._tag:
                if self.patience is None:
                    raise RuntimeError(f"shard {shard} has not handed in value {number} of step {self._tag - 1}")
                self.patience.until(self._words, word, self._tag)

    def total(self, number: int) -> NDArray[np.generic]:
        """Wait for the values of this number of all present shards, and return their sum. Raises Halted.

        It is made once for all shards of this process, and stays as it is until the next step.
        """
        if self._total_tags[number] != self._tag:
            self.wait(number, self._present)
            calls = self._bound.get(self._present)
            if calls is None:
                calls = self._bound[self._present] = self._bind(self._present)
            for call in calls[number]:
                call()
            self._total_tags[number] = self._tag
        return self._totals[number]

    def meet(self, number: int, shard: int, value: NDArray[np.generic], out: NDArray[np.generic]) -> None:
        """Hand in a shard's value and wait for the sum: for a shard that is run alone. Raises Halted."""
        self.hand_in(number, shard, value)
        np.copyto(out, self.total(number))

    def handed_in(self, number: int, shard: int) -> NDArray[np.generic]:
        """A shard's value of this number, once it is there."""
        return self._places[number][shard]

    def first_nonfinite(self) -> int | None:
        """The shard that has first handed in something that is not finite in this step; None if none has."""
        for number, value in enumerate(self.values):
            for shard in self._present if value.dtype.kind in "fc" else ():
                word = shard * self._row + number
                if self._words[word] == self._tag and not np.isfinite(self._places[number][shard]).all():
                    return shard
        return None

    def _bind(self, present: tuple[int, ...]) -> list[list[Call]]:
        adds, result = additions(self._shards, present)
        found = []
        for places, total in zip(self._places, self._totals, strict=True):
            scratch = [np.empty(total.size, total.dtype) for _ in range(registers(self._shards) - 1)]

            def value(leaf: Leaf, places: list[NDArray[np.generic]] = places) -> NDArray[np.generic]:
                return places[leaf.shard].reshape(-1)

            found.append(bind_additions(adds, result, value, total.reshape(-1), scratch))
        return found


class HostValues:
    """What the first rank of a host does for a sum over shards: it sends its host's values and takes in the others'."""

    def __init__(self, part: Part, links: Links, patience: Patience) -> None:
        self._part, self._links, self._patience = part, links, patience
        self._frames: dict[tuple[Held, tuple[int, ...]], list[_Frames]] = {}

    def begin(self, sums: ShardSums, step: int, held: Held, present: tuple[int, ...]) -> None:
        """What follows is of ``step``, in which each host has the values of the shards that it holds."""
        self._sums, self._step = sums, step
        self._links.begin(step)
        frames = self._frames.get((held, present))
        if frames is None:
            if len(self._frames) > 4:  # a first step after a loss has one of its own
                self._frames.clear()
            frames = [_Frames(sums, tuple(sorted(h & set(present)))) for h in held]
            self._frames[held, present] = frames
        self._own = frames[self._part.host]
        self._others = {host: f for host, f in enumerate(frames) if host != self._part.host}

    def exchange(self, number: int) -> None:
        """Put the values of this number of all hosts into this host's memory. Raises Halted, LinkLost."""
        links, own = self._links, self._own
        self._sums.wait(number, own.shards)
        for row, shard in zip(own.rows(number), own.shards, strict=True):
            np.copyto(row, self._sums.handed_in(number, shard))
        missing = 0
        for host, frames in self._others.items():
            if frames.content[number].size:
                links.receive(host, Kind.VALUES, frames.content[number])
                missing += 1
            else:
                self._take(number, frames)
            if own.content[number].size:
                links.send(host, Kind.VALUES, own.content[number])
        while missing or not links.is_sent():
            for host, _ in self._patience.receive(links, self._step):
                self._take(number, self._others[host])
                missing -= 1

    def _take(self, number: int, frames: _Frames) -> None:
        for row, shard in zip(frames.rows(number), frames.shards, strict=True):
            self._sums.hand_in(number, shard, row)


class _Frames:
    """What one host sends in a step: for each number a frame with the values of its shards.

    They are buffers of this process alone: what is in the host's memory may be in use, and must not be received into.
    """

    def __init__(self, sums: ShardSums, shards: tuple[int, ...]) -> None:
        self.shards = shards
        self.content = [np.empty((len(shards), *v.shape), v.dtype) for v in sums.values]

    def rows(self, number: int) -> list[NDArray[np.generic]]:
        """The value of each shard."""
        content = self.content[number]
        return [content[i, ...] for i in range(len(self.shards))]
