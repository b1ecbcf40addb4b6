"""Clicks on advertisements as a recommender sees them, made by a formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dtrain.data.randomness import CLICKS, normal, uniform
from dtrain.data.source import Source
from dtrain.errors import InputError
from dtrain.options import Options, number

SIGNAL = 3.0
"""The standard deviation of the logit: the best that can be known of a sample is its probability, not its label."""


@dataclass(frozen=True)
class Clicks(Options):
    """``samples`` with numbers x (n, features), categories ids (n, tables), int64 below ``rows``, and labels y, 0 or 1.

    The label is drawn with the probability that a logistic model gives it: a weight for each number, and one for each
    row of each table, half of the variance each. Small ids are frequent, as in real data: an id is below r with
    probability (r/rows)^(1/skew). ``held_out`` of the samples, a fifth unless given, are for evaluation.
    """

    section = "data"
    samples: int = number(20_000, at_least=2)
    features: int = number(13, at_least=1)
    tables: int = number(26, at_least=1)
    rows: int = number(10_000, at_least=1)
    skew: float = number(6.0, above=0)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    held_out: int | None = number(None, at_least=0)
    dtype: Literal["float32", "float64"] = "float32"

    def load(self) -> Source:
        n, seed = self.samples, self.seed
        held_out = n // 5 if self.held_out is None else self.held_out
        if held_out >= n:
            raise InputError(f"data.held_out: expected fewer than the {n} samples, got {held_out}; leave some to train")
        x = normal(seed, CLICKS, 0, n * self.features).reshape(n, self.features)
        part = uniform(seed, CLICKS, 1, n * self.tables).reshape(n, self.tables)
        ids = (self.rows * part**self.skew).astype(np.int64)
        of_numbers = x @ normal(seed, CLICKS, 2, self.features) / np.sqrt(self.features)
        of_rows = normal(seed, CLICKS, 3, self.tables * self.rows).reshape(self.tables, self.rows)
        of_categories = np.sum(of_rows[np.arange(self.tables), ids], axis=1) / np.sqrt(self.tables)
        logit = SIGNAL * np.sqrt(0.5) * (of_numbers + of_categories)
        y = (uniform(seed, CLICKS, 4, n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        arrays = {"x": x.astype(self.dtype), "ids": ids, "y": y}
        train = {name: a[held_out:] for name, a in arrays.items()}
        return Source(train, {name: a[:held_out] for name, a in arrays.items()} if held_out else {}, classes=2)
