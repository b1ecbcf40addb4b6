"""A recommender: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv:1906.00091 (2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from dtrain.errors import InputError, ShapeError
from dtrain.nn.attention import embedding
from dtrain.nn.initializers import he, uniform, xavier, zeros
from dtrain.nn.layers import linear, relu
from dtrain.nn.models.model import Model, Params
from dtrain.nn.table import table
from dtrain.options import number


@dataclass(frozen=True)
class DLRM(Model):
    """Numbers x (n, features) and categories ids (n, tables) to one score (n, 1): above 0 for label 1, below for 0.

    Each category has a table of ``rows`` rows of ``width`` numbers. The perceptron ``bottom`` (hidden widths) takes x
    to ``width`` numbers; the products of every two of these tables + 1 vectors, and the first of them, go through the
    perceptron ``top``. The tables are one parameter, one after the other, that is marked with ``dtrain.nn.table``.
    """

    default_loss: ClassVar[str] = "binary_cross_entropy"
    arrays: ClassVar[tuple[str, ...]] = ("x", "ids")

    tables: int = number(26, at_least=1)
    rows: int = number(10_000, at_least=1)
    width: int = number(16, at_least=1, at_most=16384)
    bottom: tuple[int, ...] = number((64,), at_least=1)
    top: tuple[int, ...] = number((64, 32), at_least=1)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        """Rows are uniform within ±1/√rows, as in the paper's program. InputError unless there are two classes."""
        if classes != 2:
            raise InputError(f"model.name: dlrm expects labels 0 and 1, the data has {classes} classes; use two")
        vectors = self.tables + 1
        pairs = vectors * (vectors - 1) // 2
        return {
            "tables": table(uniform(rng, (self.tables * self.rows, self.width), self.rows**-0.5)),
            "bottom": [_layer(rng, *shape) for shape in pairwise((features, *self.bottom, self.width))],
            "top": [
                *(_layer(rng, *shape) for shape in pairwise((pairs + self.width, *self.top))),
                {"w": xavier(rng, ((pairs + self.width, *self.top)[-1], 1)), "b": zeros(1)},
            ],
        }

    def predict(self, params: Params, x: Any, ids: Any) -> Any:
        """The scores (n, 1) of samples x (n, features) and ids (n, tables)."""
        if ids.ndim != 2 or ids.shape[1] != self.tables or ids.dtype.kind not in "iu":
            raise ShapeError(
                f"model: expected ids of integers (n, {self.tables}), got {ids.dtype} {ids.shape}; "
                "give one for each table, or set model.tables"
            )
        for layer in params["bottom"]:
            x = relu(linear(x, layer["w"], layer["b"]))
        # An id that is no row of its own table must not be one of the next.
        is_row = np.logical_and(ids >= 0, ids < self.rows)
        places = np.where(is_row, ids + self.rows * np.arange(self.tables), self.rows * self.tables)
        vectors = np.concatenate([x[:, None, :], embedding(params["tables"], places)], axis=1)
        products = vectors @ np.swapaxes(vectors, 1, 2)
        first, second = np.tril_indices(self.tables + 1, -1)
        pairs = np.reshape(products, (x.shape[0], -1))[:, first * (self.tables + 1) + second]
        h = np.concatenate([x, pairs], axis=1)
        *inner, last = params["top"]
        for layer in inner:
            h = relu(linear(h, layer["w"], layer["b"]))
        return linear(h, last["w"], last["b"])

    def weights(self, params: Params) -> list[Any]:
        return [layer["w"] for layer in (*params["bottom"], *params["top"])]

    def check(self, part: str, arrays: Mapping[str, np.ndarray]) -> None:
        ids = arrays["ids"]
        wrong = np.argwhere((ids < 0) | (ids >= self.rows))
        if len(wrong):
            place = tuple(wrong[0].tolist())
            raise InputError(
                f"data.{part}: expected ids from 0 to {self.rows - 1}, got {ids[place]} in sample {place[0]}; "
                "correct the data, or set model.rows"
            )


def _layer(rng: np.random.Generator, fan_in: int, fan_out: int) -> Params:
    return {"w": he(rng, (fan_in, fan_out)), "b": zeros(fan_out)}
