"""The memory of a run on one host: one copy of everything, mapped by every worker, owned by none of them.

It is an anonymous file (``memfd``), handed on as a file descriptor. It has no name, so nothing can be left in /dev/shm,
not even after ``kill -9`` of everything; it lives as long as any process maps it, so it survives the death of a worker.
Pages that nobody touches cost nothing.

Who may write what, so that no lock is needed: the coordinator writes ``header``, ``coefficients`` and, between
generations, everything; rank r writes row r of ``arrived``, ``undo`` and ``phases``, the gradients, row ids, losses,
``shard_squares`` and ``shard_done`` of its own shards, its own slice of ``total``, ``parameters`` and ``state``, and
the ``squares`` and ``moved`` of that slice; rank 0 also writes ``decisions``. With several hosts each has such a memory
of its own, and rank r means its rank among those of the host; rank 0 writes all of ``total``, ``squares``, ``losses``
and ``shard_squares``, and each rank its slice of ``partials``: the sums of this host's shards that other hosts add.
``values`` and ``value_steps`` of a shard are written by who runs it, those of shards on other hosts by rank 0
(`shard_sums.py`).
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import BLOCK, Layout

RING = 512
"""Steps whose figures are kept until the coordinator has read them; no rank runs further ahead than that."""

VALUE_BYTES = 4 << 20
"""What a shard may hand in to sums over shards in a step; what is not needed costs nothing."""
VALUE_COUNT = 4096
"""How many such values it may hand in."""

COEFFICIENTS = 9  # at most 8 scalars of the rule, and SAMPLED
SAMPLED = 8  # 1 if this step's norms are taken
PHASES = ("data", "forward", "backward", "sum", "update", "wait")
_ALIGN = 4096

# words of a step's row in `decisions`, which every rank computes alike and rank 0 writes down
SKIPPED, NORM, CLIP = 0, 1, 2
DECISION_WORDS = 3

# rows of a step in `moved`, squared norms of the segments after its update
VALUE, UPDATE = 0, 1

# header words
HALT = 0  # generations up to this number are halted
GRANTED = 1  # steps below this number may run
BEGUN = 2  # the generation for which the words below and those of the ranks are set
COMPLETE = 3  # step + 1 whose whole sum over all hosts is in `total`, and all figures of shards
HEADER_WORDS = 8

# words of a rank's row in `arrived`, one cache line each
ARRIVED = 0  # 4 * step + phase reached
BLOCKS_DONE = 1  # blocks of its slice that are updated in UPDATE_STEP
BLOCK_IN_WORK = 2  # block that may be half updated, whose old content is in `undo`; -1: none
UPDATE_STEP = 3  # step + 1 to which the two words before belong
BEATS = 4  # grows with every finished piece of work
PARTIAL = 5  # step + 1 whose part of `partials` is there
WAITS = 6  # grows while the rank waits for another host
READY = 7  # buckets of this step's gradients that are there, counted over all steps (`exchange.py`)
ROW_WORDS = 8

# phases of a step, in `ARRIVED`
GRADIENTS, SUMMED, UPDATED = 1, 2, 3


@dataclass(frozen=True)
class Dimensions:
    """What decides the size of a run's memory. Every process computes the same offsets from it."""

    layout: Layout
    state_names: tuple[str, ...]
    shards: int
    max_workers: int


def anonymous_file(size: int) -> int:
    """Return a descriptor of ``size`` zero bytes of shared memory without a name, inheritable by nobody by default."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("dtrain", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def open_memory(process: int, fd: int) -> int:
    """Return a descriptor of the memory that another process of this host and user holds as ``fd``. Raises OSError."""
    return os.open(f"/proc/{process}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def words(array: NDArray[np.int64]) -> memoryview[int]:
    """The flat words of a contiguous int64 array; reading one costs a third of indexing the array."""
    return array.reshape(-1).data.cast("B").cast("q")


class RunMemory:
    """Arrays over the shared memory of a run. ``RunMemory(d)`` makes it, ``RunMemory(d, fd)`` maps an existing one."""

    def __init__(self, dimensions: Dimensions, fd: int | None = None) -> None:
        self.dimensions = d = dimensions
        layout = d.layout
        workers, shards, segments = d.max_workers, d.shards, len(layout.square_parameters)
        real = layout.dtype
        fields: list[tuple[str, tuple[int, ...], np.dtype[np.generic]]] = [
            ("header", (HEADER_WORDS,), np.dtype(np.int64)),
            ("arrived", (workers, ROW_WORDS), np.dtype(np.int64)),
            ("shard_done", (shards,), np.dtype(np.int64)),
            ("row_counts", (shards, len(layout.groups)), np.dtype(np.int64)),
            ("coefficients", (RING, COEFFICIENTS), np.dtype(np.float64)),
            ("losses", (RING, shards), np.dtype(np.float64)),
            ("decisions", (RING, DECISION_WORDS), np.dtype(np.float64)),
            ("shard_squares", (RING, shards), np.dtype(np.float64)),
            ("squares", (RING, segments), np.dtype(np.float64)),
            ("moved", (RING, 2, segments), np.dtype(np.float64)),
            ("phases", (RING, workers, len(PHASES)), np.dtype(np.float64)),
            ("undo", (workers, 1 + len(d.state_names), BLOCK), real),
            ("old_rows", (layout.size if layout.groups else 0,), real),
            ("row_ids", (shards, layout.table_rows), np.dtype(np.int64)),
            ("parameters", (layout.size,), real),
            ("state", (len(d.state_names), layout.size), real),
            ("total", (layout.size,), real),
            ("gradients", (shards, -(-layout.nbytes // _ALIGN) * _ALIGN // real.itemsize), real),
            ("partials", (max(1, shards // 2), -(-layout.nbytes // _ALIGN) * _ALIGN // real.itemsize), real),
            ("value_steps", (shards, VALUE_COUNT), np.dtype(np.int64)),
            ("values", (shards, VALUE_BYTES), np.dtype(np.uint8)),
        ]
        offsets, end = {}, 0
        for name, shape, dtype in fields:
            offsets[name] = end
            nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            end += -(-nbytes // _ALIGN) * _ALIGN
        self.nbytes = end
        self.fd = anonymous_file(end) if fd is None else fd
        self._map = mmap.mmap(self.fd, end)
        arrays = {
            name: np.ndarray(shape, dtype, buffer=self._map, offset=offsets[name]) for name, shape, dtype in fields
        }
        self.header: NDArray[np.int64] = arrays["header"]
        self.arrived: NDArray[np.int64] = arrays["arrived"]
        self.shard_done: NDArray[np.int64] = arrays["shard_done"]
        self.row_counts: NDArray[np.int64] = arrays["row_counts"]
        self.row_ids: NDArray[np.int64] = arrays["row_ids"]
        self.old_rows: NDArray[np.generic] = arrays["old_rows"]
        self.coefficients: NDArray[np.float64] = arrays["coefficients"]
        self.losses: NDArray[np.float64] = arrays["losses"]
        self.decisions: NDArray[np.float64] = arrays["decisions"]
        self.shard_squares: NDArray[np.float64] = arrays["shard_squares"]
        self.squares: NDArray[np.float64] = arrays["squares"]
        self.moved: NDArray[np.float64] = arrays["moved"]
        self.phases: NDArray[np.float64] = arrays["phases"]
        self.undo: NDArray[np.generic] = arrays["undo"]
        self.parameters: NDArray[np.generic] = arrays["parameters"]
        self.state: NDArray[np.generic] = arrays["state"]
        self.total: NDArray[np.generic] = arrays["total"]
        self.gradients: NDArray[np.generic] = arrays["gradients"][:, : layout.size]
        self.partials: NDArray[np.generic] = arrays["partials"][:, : layout.size]
        self.value_steps: NDArray[np.int64] = arrays["value_steps"]
        self.values: NDArray[np.uint8] = arrays["values"]
        self.header_words, self.arrived_words = words(self.header), words(self.arrived)

    @property
    def resident_bytes(self) -> int:
        """What it takes when all of it is in use, but for gradients of tables: a few rows where all have place."""
        layout = self.dimensions.layout
        copies = len(self.gradients) + len(self.partials) + 1
        rows = (layout.size - layout.dense_size) * layout.dtype.itemsize
        return self.nbytes - copies * rows - self.row_ids.nbytes - self.old_rows.nbytes

    def close(self) -> None:
        """Give the descriptor back; the mapping goes when the last array over it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
