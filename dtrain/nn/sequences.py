"""From a model of sequences of vectors to ``init``, ``loss`` and ``metrics``, for tasks that ask for bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtrain.errors import ShapeError
from dtrain.nn.models.model import Model, Params
from dtrain.nn.supervised import Batch


@dataclass(frozen=True)
class SequenceTask:
    """A model on batches {"x": (n, time, inputs), "y": (n, time, outputs) of bits, "asked": (n, time)}.

    The loss of a sequence is the cross-entropy in nats of all its bits that are asked; without ``asked`` all are.
    """

    model: Model
    features: int
    classes: int

    def init(self, rng: np.random.Generator) -> Params:
        """Fresh float32 parameters."""
        return self.model.init(rng, self.features, self.classes)

    def predict(self, params: Params, x: Any) -> Any:
        """The scores (n, time, outputs), above 0 where a bit is likely 1, of sequences of any length."""
        if x.ndim != 3 or x.shape[2] != self.features:
            raise ShapeError(f"model: expected x (n, time, {self.features}), got {x.shape}")
        dtype = self.model.weights(params)[0].dtype
        return self.model.predict(params, x if x.dtype == dtype else x.astype(dtype))

    def _nats(self, scores: Any, batch: Batch) -> Any:
        """The cross-entropy of each sequence (n,)."""
        y = batch["y"].astype(scores.dtype)
        each = np.sum(np.logaddexp(scores, np.zeros_like(scores)) - scores * y, axis=2)
        return np.sum(np.where(batch["asked"] > 0, each, 0.0) if "asked" in batch else each, axis=1)

    def loss(self, params: Params, batch: Batch) -> Any:
        """The cross-entropy of each sequence in nats (n,), the model's penalty added to each."""
        nats = self._nats(self.predict(params, batch["x"]), batch)
        return nats + self.model.penalty(params) if self.model.l2 else nats

    def metrics(self, params: Params, batch: Batch) -> dict[str, Any]:
        """Of each sequence (n,): ``wrong_bits``, the asked bits on the wrong side of ½, ``wrong_ratio``, their share,
        and ``log_loss_bits``; with ``optimum`` in the batch, how many bits of loss above it."""
        scores = self.predict(params, batch["x"])
        is_wrong = (scores > 0) != (batch["y"] > 0)
        asked = np.broadcast_to(batch["asked"][..., None] > 0, is_wrong.shape) if "asked" in batch else True
        wrong = np.sum(is_wrong & asked, axis=(1, 2)).astype(np.float32)
        count = np.sum(np.broadcast_to(asked, is_wrong.shape), axis=(1, 2))
        bits = self._nats(scores, batch) / math.log(2.0)
        found = {"wrong_bits": wrong, "wrong_ratio": wrong / np.maximum(count, 1), "log_loss_bits": bits}
        if "optimum" in batch:
            found["bits_above_optimum"] = bits - batch["optimum"] / math.log(2.0)
        return found
