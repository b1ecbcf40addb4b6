"""The memory of a run has no name, and each field has its own place in it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dtrain.comm.layout import BLOCK, Layout
from dtrain.comm.memory import COEFFICIENTS, PHASES, RING, ROW_WORDS, Dimensions, RunMemory, anonymous_file

FIELDS = [
    "header",
    "arrived",
    "shard_done",
    "coefficients",
    "losses",
    "shard_squares",
    "squares",
    "moved",
    "phases",
    "undo",
    "parameters",
    "state",
    "total",
    "gradients",
]


def dimensions(dtype: type = np.float32, states: tuple[str, ...] = ("m", "v"), shards: int = 5) -> Dimensions:
    layout = Layout(("w", "b"), ((BLOCK + 5,), (37,)), np.dtype(dtype))
    return Dimensions(layout, states, shards, max_workers=4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("states", [(), ("velocity",), ("m", "v")])
def test_fields_have_their_shapes_and_never_overlap(dtype: type, states: tuple[str, ...]) -> None:
    d = dimensions(dtype, states)
    memory = RunMemory(d)
    size = d.layout.size
    assert memory.arrived.shape == (4, ROW_WORDS)
    assert memory.shard_done.shape == (5,)
    assert memory.coefficients.shape == (RING, COEFFICIENTS)
    assert memory.losses.shape == (RING, 5)
    assert memory.shard_squares.shape == (RING, 5)
    assert memory.squares.shape == (RING, 3)
    assert memory.moved.shape == (RING, 2, 3)
    assert memory.phases.shape == (RING, 4, len(PHASES))
    assert memory.undo.shape == (4, 1 + len(states), BLOCK)
    assert memory.parameters.shape == memory.total.shape == (size,)
    assert memory.state.shape == (len(states), size)
    assert memory.gradients.shape == (5, size)
    for value, name in enumerate(FIELDS, 1):
        array = getattr(memory, name)
        assert not array.any()  # fresh memory is zero
        array[...] = value
    for value, name in enumerate(FIELDS, 1):
        assert (getattr(memory, name) == value).all(), name
    memory.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_ranks_write_share_no_cache_line_or_page(dtype: type) -> None:
    memory = RunMemory(dimensions(dtype))
    for name in FIELDS:
        assert getattr(memory, name).ctypes.data % 4096 == 0, name
    assert memory.arrived.strides[0] == 64
    assert memory.gradients.strides[0] % 4096 == 0  # the pages of shards that a worker never runs cost nothing
    memory.close()


def test_a_second_mapping_is_the_same_memory() -> None:
    first = RunMemory(dimensions())
    second = RunMemory(dimensions(), os.dup(first.fd))
    for name in FIELDS:
        getattr(first, name)[...] = 7
        assert (getattr(second, name) == 7).all()
    second.arrived[2, 3] = 11
    assert first.arrived_words[2 * ROW_WORDS + 3] == 11
    first.header_words[1] = 13
    assert second.header[1] == 13
    first.close()
    second.close()


def test_arrays_outlive_the_descriptor() -> None:
    memory = RunMemory(dimensions())
    parameters = memory.parameters
    memory.close()
    memory.close()
    assert memory.fd == -1
    del memory
    parameters[:] = 3
    assert parameters.sum() == 3 * len(parameters)


def test_it_has_no_name_and_no_heir() -> None:
    before = set(os.listdir("/dev/shm"))
    memory = RunMemory(dimensions())
    assert set(os.listdir("/dev/shm")) <= before
    target = os.readlink(f"/proc/self/fd/{memory.fd}")
    assert target.endswith("(deleted)")
    assert not os.get_inheritable(memory.fd)
    assert os.fstat(memory.fd).st_size == memory.nbytes
    memory.close()


def test_descriptors_come_back() -> None:
    RunMemory(dimensions()).close()
    before = os.listdir("/proc/self/fd")
    for _ in range(50):
        RunMemory(dimensions()).close()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_without_memfd_it_still_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fd = anonymous_file(8192)
    assert os.fstat(fd).st_size == 8192
    assert os.fstat(fd).st_nlink == 0
    assert list(tmp_path.iterdir()) == []
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_pages_that_nobody_touches_cost_nothing() -> None:
    layout = Layout(("w",), ((50_000_000,),), np.dtype(np.float32))
    memory = RunMemory(Dimensions(layout, ("m", "v"), 8, 4))
    memory.parameters[:100] = 1
    assert memory.nbytes > 2_000_000_000
    assert os.fstat(memory.fd).st_blocks * 512 < 1_000_000
    memory.close()
