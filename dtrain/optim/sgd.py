"""Stochastic gradient descent: plain, with momentum (Polyak 1964), with Nesterov's momentum (Sutskever et al. 2013)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtrain.errors import InputError
from dtrain.optim.rule import Block, Rule
from dtrain.options import number


@dataclass(frozen=True)
class SGD(Rule):
    """The spec's ``sgd``, ``momentum`` (momentum 0.9 unless given) and ``nesterov`` (the same with ``nesterov`` on).

    PyTorch's form, the default: v ← μv + g; w ← w − lr·v, or with Nesterov w ← w − lr·(g + μv).

    ``lr_in_velocity`` gives the form of CS231n (notes on neural networks 3) and of the AlexNet paper (section 5): v ←
    μv − lr·g; w ← w + v, or with Nesterov w ← w − μ·v_before + (1 + μ)·v. Both forms walk the same path while lr is
    constant; when lr falls, the velocity of this form still carries the old, larger steps, that of the default does
    not. The state ``velocity`` has the sign of the gradient in both forms, so it is the negative of the lecture's v.
    """

    momentum: float = number(0.0, at_least=0, below=1)
    nesterov: bool = False
    lr_in_velocity: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise InputError("optimizer.nesterov: needs a momentum above 0, got 0; set optimizer.momentum")

    @property
    def name(self) -> str:
        if not self.momentum:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def update(
        self,
        parameter: Block,
        gradient: Block,
        state: tuple[Block, ...],
        coefficients: tuple[float, ...],
        scratch: tuple[Block, Block],
    ) -> None:
        kind = parameter.dtype.type
        lr, momentum = kind(coefficients[0]), kind(self.momentum)
        self.decay(parameter, gradient, scratch[0])
        if self.lr_in_velocity:
            np.multiply(gradient, lr, out=gradient)
        direction = gradient
        if self.momentum:
            (velocity,) = state
            np.multiply(velocity, momentum, out=velocity)
            np.add(velocity, gradient, out=velocity)
            if self.nesterov:
                np.multiply(velocity, momentum, out=scratch[0])
                np.add(gradient, scratch[0], out=gradient)
            else:
                direction = velocity
        if not self.lr_in_velocity:
            direction = np.multiply(direction, lr, out=scratch[0])
        np.subtract(parameter, direction, out=parameter)
