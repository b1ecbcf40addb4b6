"""Adagrad: Duchi, Hazan and Singer, Adaptive Subgradient Methods for Online Learning, JMLR 12 (2011)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtrain.optim.rule import Block, Rule
from dtrain.options import number


@dataclass(frozen=True)
class Adagrad(Rule):
    """c ← c + g²; w ← w − lr·g/(√c + ε).

    PyTorch and CS231n agree on this form; they differ in ε, 1e-10 (the default here) against 1e-8 to 1e-4.
    ``lr_decay`` divides lr by 1 + step·lr_decay, and ``initial_accumulator`` is the value of c before the first step,
    both as in PyTorch.
    """

    eps: float = number(1e-10, at_least=0)
    lr_decay: float = number(0.0, at_least=0)
    initial_accumulator: float = number(0.0, at_least=0)

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("square_sum",)

    def state_init(self, name: str) -> float:
        return self.initial_accumulator

    def coefficients(self, step: int, lr: float) -> tuple[float, ...]:
        return (lr / (1.0 + step * self.lr_decay),)

    def update(
        self,
        parameter: Block,
        gradient: Block,
        state: tuple[Block, ...],
        coefficients: tuple[float, ...],
        scratch: tuple[Block, Block],
    ) -> None:
        kind, (square_sum,), work = parameter.dtype.type, state, scratch[0]
        self.decay(parameter, gradient, work)
        np.multiply(gradient, gradient, out=work)
        np.add(square_sum, work, out=square_sum)
        np.sqrt(square_sum, out=work)
        np.add(work, kind(self.eps), out=work)
        np.divide(gradient, work, out=work)
        np.multiply(work, kind(coefficients[0]), out=work)
        np.subtract(parameter, work, out=parameter)
