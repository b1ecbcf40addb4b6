"""Adam: Kingma and Ba, arXiv:1412.6980 (2014). AdamW: Loshchilov and Hutter, arXiv:1711.05101 (2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dtrain.optim.rule import Block, Rule, moving_average
from dtrain.options import number


@dataclass(frozen=True)
class Adam(Rule):
    """m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; w ← w − lr·m̂/(√v̂ + ε), where m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ), t = step + 1.

    PyTorch and CS231n agree on this form. It is computed as at the end of the paper's section 2, lrₜ·m/(√v + εₜ),
    with both corrections folded into two scalars of the step; here εₜ = ε·√(1−β₂ᵗ), so that nothing but rounding
    differs from PyTorch. ``bias_correction`` off is the incomplete form that the lecture shows first.
    """

    beta1: float = number(0.9, at_least=0, below=1)
    beta2: float = number(0.999, at_least=0, below=1)
    eps: float = number(1e-8, at_least=0)
    bias_correction: bool = True

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")

    def coefficients(self, step: int, lr: float) -> tuple[float, ...]:
        if not self.bias_correction:
            return lr, self.eps, lr
        root = math.sqrt(1.0 - self.beta2 ** (step + 1))
        return lr * root / (1.0 - self.beta1 ** (step + 1)), self.eps * root, lr

    def update(
        self,
        parameter: Block,
        gradient: Block,
        state: tuple[Block, ...],
        coefficients: tuple[float, ...],
        scratch: tuple[Block, Block],
    ) -> None:
        kind, (first, second), work = parameter.dtype.type, state, scratch[0]
        rate, eps, lr = coefficients
        self.apply_decay(parameter, gradient, lr, work)
        moving_average(first, gradient, self.beta1, work)
        np.multiply(gradient, gradient, out=gradient)
        moving_average(second, gradient, self.beta2, gradient)
        np.sqrt(second, out=work)
        np.add(work, kind(eps), out=work)
        np.divide(first, work, out=work)
        np.multiply(work, kind(rate), out=work)
        np.subtract(parameter, work, out=parameter)

    def apply_decay(self, parameter: Block, gradient: Block, lr: float, scratch: Block) -> None:
        """Decay the parameter in place or through the gradient; ``AdamW`` differs here alone."""
        self.decay(parameter, gradient, scratch)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as in PyTorch: w ← w − lr·λ·w, then Adam's update of the gradient alone.

    The paper's λ is not multiplied by lr but by the schedule's factor; PyTorch's is, and so is this one (λ = 0.01 by
    default).
    """

    weight_decay: float = number(0.01, at_least=0)

    def apply_decay(self, parameter: Block, gradient: Block, lr: float, scratch: Block) -> None:
        if self.weight_decay:
            np.multiply(parameter, parameter.dtype.type(1.0 - lr * self.weight_decay), out=parameter)
