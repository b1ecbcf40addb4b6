"""RMSProp: Tieleman and Hinton, Coursera lecture 6.5 (2012); centred by Graves, arXiv:1308.0850, equations 38 to 41."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtrain.optim.rule import Block, Rule, moving_average
from dtrain.options import number


@dataclass(frozen=True)
class RMSProp(Rule):
    """c ← ρc + (1−ρ)g²; w ← w − lr·g/(√c + ε).

    PyTorch's and CS231n's form; PyTorch calls ρ ``alpha`` and takes 0.99 (the default here), the lecture 0.9 to
    0.999. ``centered`` subtracts the squared moving average m of the gradient: √(c − m²) in place of √c.
    ``eps_inside_root`` puts ε under the root, √(c − m² + ε), where it also bounds the step of a gradient that does
    not change. ``momentum`` μ keeps a velocity, v ← μv + g/(√c + ε); w ← w − lr·v, and ``lr_in_velocity`` multiplies
    lr into it: v ← μv + lr·g/(√c + ε); w ← w − v. Graves' rule is all four: rho 0.95, eps 1e-4, momentum 0.9.
    """

    rho: float = number(0.99, at_least=0, below=1)
    eps: float = number(1e-8, at_least=0)
    centered: bool = False
    eps_inside_root: bool = False
    momentum: float = number(0.0, at_least=0, below=1)
    lr_in_velocity: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        return (
            "square_average",
            *(("gradient_average",) if self.centered else ()),
            *(("velocity",) if self.momentum else ()),
        )

    def update(
        self,
        parameter: Block,
        gradient: Block,
        state: tuple[Block, ...],
        coefficients: tuple[float, ...],
        scratch: tuple[Block, Block],
    ) -> None:
        kind, square_average, root, work = parameter.dtype.type, state[0], *scratch
        lr, eps = kind(coefficients[0]), kind(self.eps)
        self.decay(parameter, gradient, work)

        np.multiply(gradient, gradient, out=work)
        moving_average(square_average, work, self.rho, work)
        variance = square_average
        if self.centered:
            moving_average(state[1], gradient, self.rho, work)
            np.multiply(state[1], state[1], out=work)
            np.subtract(square_average, work, out=root)
            # Rounding takes c − m² below 0 when the gradient hardly changes, and its root would be nan.
            variance = np.maximum(root, kind(0), out=root)
        if self.eps_inside_root:
            np.add(variance, eps, out=root)
            np.sqrt(root, out=root)
        else:
            np.sqrt(variance, out=root)
            np.add(root, eps, out=root)
        direction = np.divide(gradient, root, out=gradient)

        if self.lr_in_velocity:
            np.multiply(direction, lr, out=direction)
        if self.momentum:
            velocity = state[-1]
            np.multiply(velocity, kind(self.momentum), out=velocity)
            direction = np.add(velocity, direction, out=velocity)
        if not self.lr_in_velocity:
            direction = np.multiply(direction, lr, out=work)
        np.subtract(parameter, direction, out=parameter)
