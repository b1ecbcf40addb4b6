"""Adadelta: Zeiler, ADADELTA: An Adaptive Learning Rate Method, arXiv:1212.5701 (2012)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtrain.optim.rule import Block, Rule, moving_average
from dtrain.options import number


@dataclass(frozen=True)
class Adadelta(Rule):
    """s ← ρs + (1−ρ)g²; d = g·√(u + ε)/√(s + ε); u ← ρu + (1−ρ)d²; w ← w − lr·d.

    The paper's algorithm 1 with PyTorch's factor lr (1 is the paper) and PyTorch's ρ = 0.9; the paper and the
    lecture's demonstrations use ρ = 0.95. The paper's accumulators start at 0, so its first steps are of size √ε.
    """

    rho: float = number(0.9, at_least=0, below=1)
    eps: float = number(1e-6, above=0)

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("square_average", "step_average")

    def update(
        self,
        parameter: Block,
        gradient: Block,
        state: tuple[Block, ...],
        coefficients: tuple[float, ...],
        scratch: tuple[Block, Block],
    ) -> None:
        kind, (square_average, step_average), (step, root) = parameter.dtype.type, state, scratch
        eps = kind(self.eps)
        self.decay(parameter, gradient, step)
        np.multiply(gradient, gradient, out=step)
        moving_average(square_average, step, self.rho, step)
        np.add(step_average, eps, out=step)
        np.sqrt(step, out=step)
        np.add(square_average, eps, out=root)
        np.sqrt(root, out=root)
        np.divide(step, root, out=step)
        np.multiply(step, gradient, out=step)
        np.multiply(step, step, out=root)
        moving_average(step_average, root, self.rho, root)
        np.multiply(step, kind(coefficients[0]), out=step)
        np.subtract(parameter, step, out=parameter)
