"""The tasks of the Neural Turing Machine paper (Graves et al., arXiv:1410.5401, section 4), generated.

Every task gives ``x`` (n, time, inputs), ``y`` (n, time, outputs) of bits, and ``asked`` (n, time): whether the outputs
count at that time. Sequences shorter than the longest are followed by zeros at which nothing is asked. What a task
gives is a function of its options alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dtrain.data.randomness import COPY, NGRAMS, RECALL, REPEAT, SORT, philox
from dtrain.data.source import Source
from dtrain.errors import InputError
from dtrain.options import Options, number

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Task(Options):
    """Base of the tasks: so many ``sequences`` to train on, and ``held_out`` others."""

    section = "data"
    stream: ClassVar[int]
    """Where its random numbers are, among those of the seed."""

    sequences: int = number(30_000, at_least=1)
    held_out: int = number(256, at_least=0)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    dtype: Literal["float32", "float64"] = "float32"

    def load(self) -> Source:
        train = self._typed(self.make(self._generator(0), self.sequences))
        held_out = self._typed(self.make(self._generator(1), self.held_out)) if self.held_out else {}
        return Source(train, held_out)

    def _generator(self, counter: int) -> np.random.Generator:
        return np.random.Generator(philox(self.seed, self.stream, counter))

    def _typed(self, arrays: Arrays) -> Arrays:
        """Numbers in the job's dtype; bits stay bytes."""
        return {k: a.astype(self.dtype) if a.dtype.kind == "f" else a.view(np.uint8) for k, a in arrays.items()}

    def make(self, rng: np.random.Generator, n: int) -> Arrays:
        """Make ``n`` sequences: x, y and asked, of bools where they are bits."""
        raise NotImplementedError


def _check_range(low_key: str, low: int, high_key: str, high: int) -> None:
    if low > high:
        raise InputError(
            f"data.{low_key}: expected at most the {high} of data.{high_key}, got {low}; change one of them"
        )


@dataclass(frozen=True)
class Copy(Task):
    """Read ``shortest`` to ``longest`` random vectors of ``bits``, then a delimiter in a channel of its own; then give
    the vectors again. x (n, 2·longest + 1, bits + 1), y (…, bits)."""

    stream: ClassVar[int] = COPY
    bits: int = number(8, at_least=1)
    shortest: int = number(1, at_least=1)
    longest: int = number(20, at_least=1)

    def make(self, rng: np.random.Generator, n: int) -> Arrays:
        _check_range("shortest", self.shortest, "longest", self.longest)
        length = rng.integers(self.shortest, self.longest + 1, n)
        vectors = rng.random((n, self.longest, self.bits)) < 0.5
        time = 2 * self.longest + 1
        x, y = np.zeros((n, time, self.bits + 1), bool), np.zeros((n, time, self.bits), bool)
        at = np.arange(self.longest) < length[:, None]
        x[:, : self.longest, :-1] = vectors & at[..., None]
        x[np.arange(n), length, -1] = True
        sample, place = np.nonzero(at)
        y[sample, length[sample] + 1 + place] = vectors[sample, place]
        asked = np.zeros((n, time), bool)
        asked[sample, length[sample] + 1 + place] = True
        return {"x": x, "y": y, "asked": asked}


@dataclass(frozen=True)
class RepeatCopy(Task):
    """Read up to ``longest`` random vectors of ``bits``, then in a channel of its own how often to give them, up to
    ``most_repeats`` times, as a number of mean 0 and variance 1; give them so often, then an end mark.

    x (n, longest + 2 + longest·most_repeats, bits + 2): the vectors, the channel of the count, and one that marks the
    time of the count; y (…, bits + 1).
    """

    stream: ClassVar[int] = REPEAT
    sequences: int = number(60_000, at_least=1)
    bits: int = number(8, at_least=1)
    shortest: int = number(1, at_least=1)
    longest: int = number(10, at_least=1)
    fewest_repeats: int = number(1, at_least=1)
    most_repeats: int = number(10, at_least=1)

    def make(self, rng: np.random.Generator, n: int) -> Arrays:
        _check_range("shortest", self.shortest, "longest", self.longest)
        _check_range("fewest_repeats", self.fewest_repeats, "most_repeats", self.most_repeats)
        length = rng.integers(self.shortest, self.longest + 1, n)
        repeats = rng.integers(self.fewest_repeats, self.most_repeats + 1, n)
        vectors = rng.random((n, self.longest, self.bits)) < 0.5
        time = self.longest + 2 + self.longest * self.most_repeats
        x, y = np.zeros((n, time, self.bits + 2)), np.zeros((n, time, self.bits + 1), bool)
        asked = np.zeros((n, time), bool)
        counts = np.arange(1, 11)  # the paper's range, whatever this job's is: a longer run is told longer counts
        for i, (m, times) in enumerate(zip(length, repeats, strict=True)):
            end = m + 1 + m * times
            x[i, :m, :-2] = vectors[i, :m]
            x[i, m, -2:] = (times - counts.mean()) / counts.std(), 1.0
            y[i, m + 1 : end, :-1] = np.tile(vectors[i, :m], (times, 1))
            y[i, end, -1] = True
            asked[i, m + 1 : end + 1] = True
        return {"x": x, "y": y, "asked": asked}


@dataclass(frozen=True)
class AssociativeRecall(Task):
    """Read ``fewest`` to ``most`` items, each ``vectors`` random vectors of ``bits`` behind a delimiter; then one of
    them, but the last, between two delimiters of another kind; give the item that came after it.

    x (n, (most + 1)·(vectors + 1) + 1 + vectors, bits + 2), y (…, bits).
    """

    stream: ClassVar[int] = RECALL
    sequences: int = number(60_000, at_least=1)
    bits: int = number(6, at_least=1)
    vectors: int = number(3, at_least=1)
    fewest: int = number(2, at_least=2)
    most: int = number(6, at_least=2)

    def make(self, rng: np.random.Generator, n: int) -> Arrays:
        _check_range("fewest", self.fewest, "most", self.most)
        count = rng.integers(self.fewest, self.most + 1, n)
        asked_for = (rng.random(n) * (count - 1)).astype(int)
        items = rng.random((n, self.most, self.vectors, self.bits)) < 0.5
        block = self.vectors + 1
        time = (self.most + 1) * block + 1 + self.vectors
        x, y = np.zeros((n, time, self.bits + 2), bool), np.zeros((n, time, self.bits), bool)
        asked = np.zeros((n, time), bool)
        for i, (items_of_it, which) in enumerate(zip(count, asked_for, strict=True)):
            for item in range(items_of_it):
                x[i, item * block, -2] = True
                x[i, item * block + 1 : (item + 1) * block, :-2] = items[i, item]
            query = items_of_it * block
            x[i, [query, query + block], -1] = True
            x[i, query + 1 : query + block, :-2] = items[i, which]
            answer = slice(query + block + 1, query + block + 1 + self.vectors)
            y[i, answer] = items[i, which + 1]
            asked[i, answer] = True
        return {"x": x, "y": y, "asked": asked}


@dataclass(frozen=True)
class NGrams(Task):
    """Predict each next of ``length`` bits, whose probability depends on the ``order`` − 1 before it, in a table drawn
    anew for each sequence from Beta(½, ½). x and y (n, length − 1, 1); asked where those before are there.

    ``optimum`` (n,) is the loss in nats of the best guess, (N₁ + ½)/(N₀ + N₁ + 1) from the counts so far (equation 10).
    """

    stream: ClassVar[int] = NGRAMS
    sequences: int = number(30_000, at_least=1)
    length: int = number(200, at_least=2)
    order: int = number(6, at_least=1, at_most=16)

    def make(self, rng: np.random.Generator, n: int) -> Arrays:
        context = self.order - 1
        if self.length <= context:
            raise InputError(f"data.length: expected more than the {context} bits of a context, got {self.length}")
        table = rng.beta(0.5, 0.5, (n, 2**context))
        drawn = rng.random((n, self.length))
        bits = np.zeros((n, self.length), bool)
        bits[:, :context] = drawn[:, :context] < 0.5
        code = bits[:, :context] @ (1 << np.arange(context)[::-1]).astype(np.int64) if context else np.zeros(n, int)
        rows, counts = np.arange(n), np.zeros((n, 2**context, 2))
        optimum = np.zeros(n)
        for t in range(context, self.length):
            bits[:, t] = drawn[:, t] < table[rows, code]
            seen, bit = counts[rows, code], bits[:, t].astype(int)
            optimum -= np.log((seen[rows, bit] + 0.5) / (seen.sum(axis=1) + 1.0))
            counts[rows, code, bit] += 1
            code = (2 * code + bit) % 2**context
        asked = np.broadcast_to(np.arange(1, self.length) >= context, (n, self.length - 1))
        x, y = bits[:, :-1, None], (bits[:, 1:] & asked)[..., None]
        return {"x": x.copy(), "y": y, "asked": asked.copy(), "optimum": optimum}


@dataclass(frozen=True)
class PrioritySort(Task):
    """Read ``vectors`` random vectors of ``bits``, each with a priority from [−1, 1) in a channel of its own; give the
    ``given`` of the highest priority, the highest first. x (n, vectors + given, bits + 2), y (…, bits).

    The last channel of x is 1 while the vectors come.
    """

    stream: ClassVar[int] = SORT
    bits: int = number(8, at_least=1)
    vectors: int = number(20, at_least=1)
    given: int = number(16, at_least=1)

    def make(self, rng: np.random.Generator, n: int) -> Arrays:
        if self.given > self.vectors:
            raise InputError(f"data.given: expected at most the {self.vectors} vectors, got {self.given}")
        vectors = rng.random((n, self.vectors, self.bits)) < 0.5
        priority = 2.0 * rng.random((n, self.vectors)) - 1.0
        time = self.vectors + self.given
        x, y = np.zeros((n, time, self.bits + 2)), np.zeros((n, time, self.bits), bool)
        x[:, : self.vectors, :-2], x[:, : self.vectors, -2], x[:, : self.vectors, -1] = vectors, priority, 1.0
        first = np.argsort(-priority, axis=1, kind="stable")[:, : self.given]
        y[:, self.vectors :] = np.take_along_axis(vectors, first[..., None], axis=1)
        asked = np.broadcast_to(np.arange(time) >= self.vectors, (n, time))
        return {"x": x, "y": y, "asked": asked.copy()}
