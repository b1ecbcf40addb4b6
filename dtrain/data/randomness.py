"""Counter-based random words for data: sample order, held-out splits, generated sources.

Invariant: what comes out is a function of (seed, stream, counter) alone, never of what was drawn before, so any process
can ask for any epoch in any order. Words are Philox's raw output, which NumPy keeps stable across versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtrain.errors import InputError

# The streams spell their names in ASCII, so that they cannot meet the small numbers that others choose.
SHUFFLE = int.from_bytes(b"shuffle", "big")
SPLIT = int.from_bytes(b"split", "big")
BLOBS = int.from_bytes(b"blobs", "big")
CLICKS = int.from_bytes(b"clicks", "big")
SYNTHETIC = int.from_bytes(b"synth", "big")
COPY = int.from_bytes(b"copy", "big")
REPEAT = int.from_bytes(b"repeat", "big")
RECALL = int.from_bytes(b"recall", "big")
NGRAMS = int.from_bytes(b"ngrams", "big")
SORT = int.from_bytes(b"sort", "big")

_WORDS = 2**64


def philox(seed: int, stream: int, counter: int = 0) -> np.random.Philox:
    """A Philox generator at key (seed, stream); different ``counter`` values are 2**128 draws apart."""
    if not 0 <= seed < _WORDS:
        raise InputError(f"seed: expected a whole number from 0 to 2**64 - 1, got {seed}; choose another seed")
    # Arrays, for a list that holds a seed of 2**63 or more would pass through float64.
    key = np.array([seed, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, counter, 0], dtype=np.uint64))


def words(seed: int, stream: int, counter: int, n: int) -> NDArray[np.uint64]:
    """The first ``n`` raw words of (seed, stream, counter), uint64 (n,)."""
    return philox(seed, stream, counter).random_raw(n)


def shuffled(seed: int, stream: int, counter: int, n: int) -> NDArray[np.int64]:
    """A permutation of ``range(n)``, int64 (n,): the stable order of ``n`` raw words."""
    return np.argsort(words(seed, stream, counter, n), kind="stable").astype(np.int64, copy=False)


def uniform(seed: int, stream: int, counter: int, n: int) -> NDArray[np.float64]:
    """``n`` multiples of 2**-53 in [0, 1), float64 (n,): the top 53 bits of each word."""
    return (words(seed, stream, counter, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, stream: int, counter: int, n: int, below: int) -> NDArray[np.int64]:
    """``n`` integers in [0, below), int64 (n,). The bias of the remainder, below / 2**64, does not matter here."""
    return (words(seed, stream, counter, n) % np.uint64(below)).astype(np.int64)


def normal(seed: int, stream: int, counter: int, n: int) -> NDArray[np.float64]:
    """``n`` standard normals, float64 (n,), by NumPy's ziggurat over the words of (seed, stream, counter)."""
    return np.random.Generator(philox(seed, stream, counter)).standard_normal(n)
