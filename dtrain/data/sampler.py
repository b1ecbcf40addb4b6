"""Which samples make up a shard of a step: pure functions of (seed, epoch, step, shard).

Invariant: every sample is used exactly once per epoch, and no answer depends on a rank, on the number of workers or on
what was asked before. The last batch of an epoch is ragged; nothing is padded or dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.data.randomness import SHUFFLE, shuffled
from dtrain.errors import InputError


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of the ``n`` samples in ``epoch``, int64 (n,)."""
    return shuffled(seed, SHUFFLE, epoch, n)


def position(step: int, n: int, batch: int) -> tuple[int, int]:
    """The (epoch, index of the batch in it) of ``step``; an epoch has ceil(n / batch) steps. All count from 0."""
    return divmod(step, steps_per_epoch(n, batch))


def steps_per_epoch(n: int, batch: int) -> int:
    """ceil(n / batch)."""
    return -(-n // batch)


def batch_size(step: int, n: int, batch: int) -> int:
    """The number of samples in the batch of ``step``: ``batch``, or what is left at the end of an epoch."""
    _, index = position(step, n, batch)
    return min(batch, n - index * batch)


def shard_bounds(size: int, shards: int) -> list[tuple[int, int]]:
    """Cut ``range(size)`` into ``shards`` contiguous (low, high) whose sizes differ by at most one, longer ones first.

    Shards are empty when there are more of them than samples.
    """
    return [_shard(size, shards, shard) for shard in range(shards)]


def _shard(size: int, shards: int, shard: int) -> tuple[int, int]:
    short, longer = divmod(size, shards)
    low = shard * short + min(shard, longer)
    return low, low + short + (shard < longer)


class Sampler:
    """The samples of every (step, shard) of a job.

    Keeps the order of the epoch asked for last, because sorting it again for each shard would cost more than the step;
    this changes the time, never the answer. Costs 8 bytes a sample.

    Args: ``n`` samples, the global ``batch``, the number of ``shards``, the job's ``seed`` (0 to 2**64 - 1); without
    ``shuffle`` the samples come in their own order.
    """

    def __init__(self, n: int, batch: int, shards: int, seed: int, shuffle: bool = True) -> None:
        for name, value in (("n", n), ("batch", batch), ("shards", shards)):
            if value < 1:
                what = "samples of the training data" if name == "n" else name
                raise InputError(f"{what}: expected at least 1, got {value}; correct the job")
        self.n = n
        self.batch = batch
        self.shards = shards
        self.seed = seed
        self.shuffle = shuffle
        self.steps_per_epoch = steps_per_epoch(n, batch)
        self._epoch = 0
        self._order = permutation(seed, 0, n) if shuffle else np.arange(n, dtype=np.int64)
        self._order.flags.writeable = False

    def indices(self, step: int, shard: int) -> NDArray[np.int64]:
        """The samples of ``shard`` in ``step``, int64 (m,), possibly none; read-only, a view of the epoch's order."""
        if step < 0 or not 0 <= shard < self.shards:
            raise IndexError(f"no shard {shard} of step {step}; steps count from 0 and there are {self.shards} shards")
        epoch, index = divmod(step, self.steps_per_epoch)
        if self.shuffle and epoch != self._epoch:
            self._order = permutation(self.seed, epoch, self.n)
            self._order.flags.writeable = False
            self._epoch = epoch
        start = index * self.batch
        low, high = _shard(min(self.batch, self.n - start), self.shards, shard)
        return self._order[start + low : start + high]

    def batch_size(self, step: int) -> int:
        """The number of samples in the global batch of ``step``."""
        return batch_size(step, self.n, self.batch)


def gather(
    arrays: Mapping[str, NDArray[Any]], indices: NDArray[np.int64], out: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """Copy the samples ``indices`` (m,) of each array (n, …) into C-contiguous, aligned arrays (m, …).

    ``out`` gives the buffers by name, of the arrays' dtypes and shapes (m, …); they are filled without an allocation,
    which is why ``arrays`` must be C-contiguous (those of a ``Source`` are). Without ``out`` new arrays are made. An
    index outside the arrays is an ``IndexError`` and nothing is written.
    """
    if not arrays:
        return {}
    n = len(next(iter(arrays.values())))
    # As unsigned words negative indices are huge, so that one pass finds both kinds of error.
    if indices.size and int(indices.view(np.uint64).max()) >= n:
        bad = indices[(indices < 0) | (indices >= n)][0]
        raise IndexError(f"sample {bad} asked for, but there are {n}; they count from 0")
    result: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if out is None:
            target = np.empty((len(indices), *array.shape[1:]), array.dtype)
        else:
            target = out[name]
            if target.dtype != array.dtype or target.shape != (len(indices), *array.shape[1:]):
                raise ValueError(
                    f"gather of {name!r}: expected a buffer {array.dtype.name} {(len(indices), *array.shape[1:])}, "
                    f"got {target.dtype.name} {target.shape}"
                )
        take_into(array, target)(indices)
        result[name] = target
    return result


def take_into(array: NDArray[Any], target: NDArray[Any]) -> Callable[[NDArray[np.int64]], object]:
    """Return the call that copies the samples of valid indices (m,) from ``array`` (n, …) into ``target`` (m, …)."""
    if not (array.flags.c_contiguous and array.flags.aligned):
        # The items of a memory-mapped zip member may be unaligned; then `take` would first copy the whole array.
        array, target = _rows(array), _rows(target)
    # `clip` because the default mode writes through a buffer.
    return partial(array.take, axis=0, out=target, mode="clip")


def _rows(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The same memory as bytes, uint8 (n, bytes of a sample)."""
    if not array.flags.c_contiguous:
        raise ValueError("gather: expected C-contiguous arrays; use np.ascontiguousarray")
    row_bytes = array.itemsize
    for length in array.shape[1:]:
        row_bytes *= length
    return array.reshape(-1).view(np.uint8).reshape(len(array), row_bytes)
