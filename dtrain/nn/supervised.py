"""From a model and a loss to the three plain functions that the trainer runs: ``init``, ``loss`` and ``metrics``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtrain.errors import ShapeError
from dtrain.nn.losses import LOSSES, accuracy
from dtrain.nn.models.model import Model, Params
from dtrain.options import unknown_name

Batch = dict[str, Any]


@dataclass(frozen=True)
class Supervised:
    """A model under a loss, on batches {"x": (n, …), "y": (n,) labels or (n, classes) numbers}.

    The batch also has what the model's ``arrays`` names beside x.
    The two are (n, time) integers in a model of sequences; its loss and accuracy are means over the time.
    The three methods are what a user's own model file gives. The dataclass holds options alone, so it can be rebuilt
    in any process from the job spec.
    """

    model: Model
    loss_name: str
    features: int
    classes: int

    def init(self, rng: np.random.Generator) -> Params:
        """Fresh float32 parameters."""
        return self.model.init(rng, self.features, self.classes)

    def predict(self, params: Params, x: Any, *others: Any) -> Any:
        """The scores (n, classes). Samples of any shape are flattened, and taken in the dtype of the parameters.

        A model of sequences gives scores (n, time, classes); ``ShapeError`` if x is not integers (n, time) of the time
        that it was made for.
        """
        if self.model.reads_integers:
            if x.ndim != 2 or x.shape[1] != self.features or x.dtype.kind not in "iu":
                raise ShapeError(
                    f"model: expected x of integers (n, {self.features}), got {x.dtype} {x.shape}; "
                    "give sequences, such as those of the data source characters"
                )
            return self.model.predict(params, x)
        dtype = self.model.weights(params)[0].dtype
        if x.ndim != 2:
            x = x.reshape(x.shape[0], -1)
        return self.model.predict(params, x if x.dtype == dtype else x.astype(dtype), *others)

    def loss(self, params: Params, batch: Batch) -> Any:
        """The loss of each sample (n,), the model's penalty added to each, so that their mean is the lecture's loss."""
        losses = self._of_each(LOSSES[self.loss_name], params, batch)
        return losses + self.model.penalty(params) if self.model.l2 else losses

    def metrics(self, params: Params, batch: Batch) -> dict[str, Any]:
        """The accuracy of each sample (n,) where the targets are labels; nothing otherwise."""
        if batch["y"].dtype.kind not in "iu":
            return {}
        return {"accuracy": self._of_each(accuracy, params, batch)}

    def _of_each(self, measure: Callable[[Any, Any], Any], params: Params, batch: Batch) -> Any:
        """The measure of each sample (n,): of its scores and target, or the mean over those of its sequence."""
        scores, targets = self.predict(params, *(batch[name] for name in self.model.arrays)), batch["y"]
        if not self.model.reads_integers:
            return measure(scores, targets)
        n, time, classes = scores.shape
        if targets.shape != (n, time):
            raise ShapeError(
                f"model: expected y of integers {(n, time)}, got {targets.dtype} {targets.shape}; give one for each x"
            )
        values = measure(np.reshape(scores, (n * time, classes)), np.reshape(targets, (n * time,)))
        return np.mean(np.reshape(values, (n, time)), axis=1)


def supervise(model: Model, loss: str | None, features: int, classes: int) -> Supervised:
    """Join ``model`` and the loss of that name (the model's own if None); ``InputError`` if there is no such loss."""
    name = model.default_loss if loss is None else loss
    if name not in LOSSES:
        raise unknown_name("loss", "loss", name, LOSSES)
    return Supervised(model, name, features, classes)
