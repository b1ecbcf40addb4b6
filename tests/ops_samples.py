"""What the rows of the table of operations are made of: samples, reproducible inputs, and the list of all rows."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Sample:
    """One row: `function` of NumPy arrays, the same in PyTorch (None: no counterpart), and float64 inputs."""

    name: str
    function: Callable[..., Any]
    torch: Callable[..., Any] | None
    inputs: tuple[np.ndarray, ...]
    orders: int = 2
    """How many orders of derivative the own gradient check takes."""


SAMPLES: list[Sample] = []


def real(name: str, *shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Return reproducible numbers in [low, high], no two of them closer than the kinks' tests can stand."""
    size = int(np.prod(shape))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    grid = low + (high - low) * (np.arange(size) + 0.5 + 0.2 * (rng.random(size) - 0.5)) / max(size, 1)
    return rng.permutation(grid).reshape(shape)


def row(name: str, function: Any, oracle: Any, *inputs: np.ndarray, orders: int = 2) -> None:
    SAMPLES.append(Sample(name, function, oracle, inputs, orders))


X, Y, V = real("x", 3, 4), real("y", 3, 4), real("v", 4)
POSITIVE = real("p", 3, 4, low=0.3, high=3.0)
INSIDE = real("i", 3, 4, low=-0.9, high=0.9)
ABOVE = real("a", 3, 4, low=1.2, high=3.0)
CUBE, ONES = real("c", 2, 3, 4), np.ones((3, 4))
ROWS = np.array([2, 0, 2, 1])
MASK = (np.arange(12).reshape(3, 4) % 3) == 0
tensor = torch.tensor
