"""The shards of a rank in a step whose loss sums something over all shards in its middle (`sum_over_shards`).

The calls of each shard are cut into stretches at these sums. A rank runs stretch after stretch, each of all its shards,
so that it never waits for a value that it has still to make itself. With the same calls in the same order within a
shard, and sums that do not depend on who makes them (`comm/shard_sums.py`), the bits are the same for any number of
ranks. A halted step leaves nothing behind but values that are right: its shards begin anew.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from dtrain.comm.barrier import Halted
from dtrain.comm.links import Links
from dtrain.comm.memory import BEATS, HALT, RING, ROW_WORDS, SAMPLED, words
from dtrain.comm.own import Held, Part
from dtrain.comm.shard_sums import HostValues, Patience
from dtrain.graph import Bound
from dtrain.train.shard import ShardRunner


class Together:
    """Runs the shards of one rank in one generation, in which the host has so many ranks.

    ``links`` are those of the first rank of a host, if there are other hosts.
    """

    def __init__(
        self,
        runner: ShardRunner,
        rank: int,
        ranks: int,
        generation: int,
        idle: Callable[[], None],
        part: Part | None = None,
        links: Links | None = None,
    ) -> None:
        memory = runner.memory
        self._runner, self._memory, self._generation = runner, memory, generation
        self._header, self._words, self._beats = memory.header_words, memory.arrived_words, rank * ROW_WORDS + BEATS
        self._done = words(memory.shard_done)
        self._patience = Patience(memory, rank, ranks, generation, idle)
        self._hosts = None if part is None or links is None else HostValues(part, links, self._patience)
        self._stretches: dict[int, _Stretches] = {}

    def run(
        self, step: int, shards: tuple[int, ...], present: tuple[int, ...], held: Held
    ) -> tuple[float, float, float, float]:
        """Run these shards of a step; the seconds for data, forward and backward, and of waiting.

        Raises Halted, LinkLost.
        """
        runner, sums, hosts = self._runner, self._runner.sums, self._hosts
        memory, slot = self._memory, step % RING
        is_sampled = bool(memory.coefficients[slot, SAMPLED])
        forward = waited = 0.0
        start = perf_counter()
        own = [(s, runner.gather(step, s)) for s in shards if s < len(present)]
        gathered = perf_counter()
        under_way = [self._of(signature.bind(shard), signature) for shard, signature in own]
        sums.patience = self._patience
        sums.begin(step, present)
        if hosts is not None:
            hosts.begin(sums, step, held, present)
        for number in range(len(sums.values)) if own or hosts is not None else ():
            for (shard, _), stretches in zip(own, under_way, strict=True):
                forward += self._run(stretches, number)
                sums.hand_in(number, shard, stretches.values[number])
            arrived = perf_counter()
            if hosts is not None:
                hosts.exchange(number)
            if own:
                total = sums.total(number)
                for stretches in under_way:
                    np.copyto(stretches.sums[number], total)
            waited += perf_counter() - arrived
            self._beat()
        for (shard, signature), stretches in zip(own, under_way, strict=True):
            forward += self._run(stretches, len(sums.values))
            memory.losses[slot, shard] = signature.loss
            if is_sampled:
                memory.shard_squares[slot, shard] = runner.square(shard)
            self._done[shard] = step + 1
        for shard in shards[len(own) :]:  # the others are empty
            self._done[shard] = step + 1
        return gathered - start, forward, perf_counter() - gathered - forward - waited, waited

    def _run(self, stretches: _Stretches, number: int) -> float:
        """Run a stretch of a shard; the seconds for its part of the forward pass."""
        start = perf_counter()
        for call in stretches.forward[number]:
            call()
        forward = perf_counter() - start
        for call in stretches.backward[number]:
            call()
        self._beat()
        if self._header[HALT] >= self._generation:
            raise Halted
        return forward

    def _beat(self) -> None:
        self._words[self._beats] += 1

    def _of(self, bound: Bound, signature: Any) -> _Stretches:
        found = self._stretches.get(id(bound))
        if found is None:
            found = self._stretches[id(bound)] = _Stretches(bound, signature.forward_calls, signature.places(bound))
        return found


class _Stretches:
    """The calls of one shard before, between and after the sums, what it hands in, and where the sums go."""

    def __init__(self, bound: Bound, forward_calls: int, places: list[tuple[int, Any, Any]]) -> None:
        ends = [-1, *(call for call, _, _ in places), len(bound.calls)]
        self.forward = [bound.calls[before + 1 : min(end, forward_calls)] for before, end in pairwise(ends)]
        self.backward = [bound.calls[max(before + 1, forward_calls) : end] for before, end in pairwise(ends)]
        self.values = [value for _, value, _ in places]
        self.sums = [out for _, _, out in places]
