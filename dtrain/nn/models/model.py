"""What a model that ships is: options, initial parameters, scores, and a penalty on its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dtrain.options import Options, number

Params = dict[str, Any]


@dataclass(frozen=True)
class Model(Options):
    """Base of the models. ``l2`` is λ of the lecture's penalty ½·λ·Σ W² on the weights; biases are free."""

    section: ClassVar[str] = "model"
    default_loss: ClassVar[str] = "softmax_cross_entropy"
    """The loss of a spec that names none."""

    reads_integers: ClassVar[bool] = False
    """Whether samples are sequences of integers below ``classes`` (n, time), and scores (n, time, classes)."""

    arrays: ClassVar[tuple[str, ...]] = ("x",)
    """The arrays of a batch that ``predict`` takes, in its order."""

    reads_vectors: ClassVar[bool] = False
    """Whether samples are sequences of vectors (n, time, features), and scores (n, time, classes)."""

    l2: float = number(0.0, at_least=0)

    def init(self, rng: np.random.Generator, features: int, classes: int) -> Params:
        """Fresh float32 parameters for samples of ``features`` numbers and ``classes`` scores."""
        raise NotImplementedError

    def predict(self, params: Params, x: Any, *others: Any) -> Any:
        """The scores (n, classes) of samples x (n, features), and of what ``arrays`` names beside it."""
        raise NotImplementedError

    def check(self, part: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise ``InputError`` for data, of which ``arrays`` are the ``part`` "train" or "eval", that do not fit."""

    def weights(self, params: Params) -> list[Any]:
        """The arrays that ``l2`` holds down."""
        return [params["w"]]

    def penalty(self, params: Params) -> Any:
        """½·λ·Σ W², a scalar."""
        return 0.5 * self.l2 * sum(np.sum(np.square(w)) for w in self.weights(params))
