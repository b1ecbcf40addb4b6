"""Sources that come with dtrain: the handwritten digits, and data made by a formula.

Each is a frozen dataclass whose fields are the options of the job spec and whose ``load`` returns a ``Source``.
Invariant: what it returns is a function of those options alone. Held-out samples do not depend on the job's seed, so
that jobs with different seeds are measured on the same samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dtrain.data.files import read_npz
from dtrain.data.randomness import BLOBS, SPLIT, SYNTHETIC, integers, normal, shuffled, uniform
from dtrain.data.source import Source
from dtrain.errors import InputError
from dtrain.options import Options, number

Float = Literal["float32", "float64"]

DIGITS_FILE = Path(__file__).with_name("digits.npz")
DIGITS_HELD_OUT = 360
CENTRE_RANGE = 10.0
"""Centres of blobs are uniform in [-CENTRE_RANGE, CENTRE_RANGE) along each axis, as in scikit-learn's make_blobs."""


@dataclass(frozen=True)
class Digits(Options):
    """The 1797 handwritten digits, 8 × 8 pixels, of the UCI test part; licence and source in digits.LICENSE.

    ``x`` is pixels / 16 in [0, 1], (n, 64·scale²): every pixel ``scale`` times in each direction; ``y`` the digit,
    int64 (n,). 1437 samples to train, 360 held out.
    """

    section = "data"
    scale: int = number(1, at_least=1, at_most=32)
    dtype: Float = "float32"

    def load(self) -> Source:
        arrays = read_npz(DIGITS_FILE, "data")
        x = arrays["images"].astype(self.dtype) / np.dtype(self.dtype).type(16)
        if self.scale > 1:
            square = x.reshape(-1, 8, 8).repeat(self.scale, axis=1).repeat(self.scale, axis=2)
            x = square.reshape(len(x), -1)
        order = shuffled(0, SPLIT, 0, len(x))
        return split(x, arrays["labels"].astype(np.int64), order, DIGITS_HELD_OUT, classes=10)


@dataclass(frozen=True)
class Spiral(Options):
    """CS231n's spiral arms, ``samples_per_class`` points for each of ``classes``, in the order of the course's notes.

    The points are those of ``np.random.seed(seed)`` and NumPy's legacy generator, so the published losses can be
    reproduced. ``x`` (n, 2), ``y`` int64 (n,). Evaluation is on the training samples, as in the notes.
    """

    section = "data"
    samples_per_class: int = number(100, at_least=1)
    classes: int = number(3, at_least=1)
    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    dtype: Float = "float32"

    def load(self) -> Source:
        random = np.random.RandomState(self.seed)
        n, arms = self.samples_per_class, []
        for k in range(self.classes):
            radius = np.linspace(0.0, 1, n)
            angle = np.linspace(k * 4, (k + 1) * 4, n) + random.randn(n) * 0.2
            arms.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1))
        arrays = {
            "x": np.concatenate(arms).astype(self.dtype),
            "y": np.repeat(np.arange(self.classes, dtype=np.int64), n),
        }
        return Source(arrays, dict(arrays), classes=self.classes)


@dataclass(frozen=True)
class Blobs(Options):
    """Gaussian clusters: ``samples`` points, dealt out to the classes in turn, with deviation ``spread``.

    ``x`` (n, features), ``y`` int64 (n,). ``held_out`` of the samples, a fifth unless given, are for evaluation.
    """

    section = "data"
    samples: int = number(1000, at_least=2)
    features: int = number(2, at_least=1)
    classes: int = number(3, at_least=1)
    spread: float = number(1.0, at_least=0)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    held_out: int | None = number(None, at_least=0)
    dtype: Float = "float32"

    def load(self) -> Source:
        n, d = self.samples, self.features
        held_out = n // 5 if self.held_out is None else self.held_out
        if held_out >= n:
            raise InputError(f"data.held_out: expected fewer than the {n} samples, got {held_out}; leave some to train")
        centres = (2 * uniform(self.seed, BLOBS, 0, self.classes * d) - 1).reshape(self.classes, d) * CENTRE_RANGE
        y = np.arange(n, dtype=np.int64) % self.classes
        x = centres[y] + self.spread * normal(self.seed, BLOBS, 1, n * d).reshape(n, d)
        return split(x.astype(self.dtype), y, shuffled(self.seed, SPLIT, 1, n), held_out, classes=self.classes)


@dataclass(frozen=True)
class Synthetic(Options):
    """Random numbers of a given shape, for measuring speed: there is nothing to learn in them.

    ``x`` uniform in [0, 1), (samples, *shape); ``y`` int64 (samples,). Nothing is held out.
    """

    section = "data"
    shape: tuple[int, ...] = number((784,), at_least=1)
    samples: int = number(1024, at_least=1)
    classes: int = number(10, at_least=1)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    dtype: Float = "float32"

    def load(self) -> Source:
        n = self.samples
        x = uniform(self.seed, SYNTHETIC, 0, n * math.prod(self.shape)).astype(self.dtype).reshape(n, *self.shape)
        return Source({"x": x, "y": integers(self.seed, SYNTHETIC, 1, n, self.classes)}, classes=self.classes)


def split(x: NDArray[Any], y: NDArray[np.int64], order: NDArray[np.int64], held_out: int, classes: int) -> Source:
    """Hold out the first ``held_out`` samples of ``order``; the others train, in that order."""
    evaluation, train = order[:held_out], order[held_out:]
    return Source(
        {"x": x[train], "y": y[train]}, {"x": x[evaluation], "y": y[evaluation]} if held_out else {}, classes=classes
    )
