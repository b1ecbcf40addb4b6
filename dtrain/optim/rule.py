"""What an update rule is: options, named state, scalars of the step, and an elementwise update in place.

A rule owns no memory. The parameter, the gradient and each state are flat buffers of one layout that belong to the
run; a rule is handed 1-D blocks of them. Invariant of every rule: output element i depends on element i of the inputs
and on the scalars alone, through correctly rounded operations (+, −, ×, ÷, √, min, max), so the bits do not depend on
where the buffer is cut. For the same reason `np.power`, `np.exp` and reductions have no place in an update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dtrain.options import Options, number

Block = NDArray[Any]
"""A 1-D block of float32 or float64."""


@dataclass(frozen=True)
class Rule(Options):
    """Base of all update rules; a subclass gives its options as fields and the three methods below their content.

    ``weight_decay`` λ is coupled as in PyTorch: λ·parameter is added to the gradient before anything else, which for
    plain SGD is the L2 penalty ½·λ·Σ parameter². It acts on every parameter, biases too.
    """

    section: ClassVar[str] = "optimizer"

    weight_decay: float = number(0.0, at_least=0)

    @property
    def name(self) -> str:
        """The name of the rule in a job spec."""
        return type(self).__name__.lower()

    @property
    def state_names(self) -> tuple[str, ...]:
        """The flat buffers the rule keeps between steps, in the order in which ``update`` takes them."""
        return ()

    def state_init(self, name: str) -> float:
        """The value that fills state ``name`` before step 0."""
        return 0.0

    def coefficients(self, step: int, lr: float) -> tuple[float, ...]:
        """Scalars of one step (at most 8), computed once by the coordinator so that every rank uses the same bits.

        ``step`` counts committed updates from 0; ``lr`` is the schedule's value for this step.
        """
        return (lr,)

    def update(
        self,
        parameter: Block,
        gradient: Block,
        state: tuple[Block, ...],
        coefficients: tuple[float, ...],
        scratch: tuple[Block, Block],
    ) -> None:
        """Update a block of the parameter and of the state in place.

        All arrays are 1-D, of one length and one dtype, and do not overlap. ``gradient`` and both ``scratch`` arrays
        are left with undefined content. No array is allocated.
        """
        raise NotImplementedError

    def decay(self, parameter: Block, gradient: Block, scratch: Block) -> None:
        """Add coupled weight decay to the gradient in place; nothing if ``weight_decay`` is 0."""
        if self.weight_decay:
            np.multiply(parameter, parameter.dtype.type(self.weight_decay), out=scratch)
            np.add(gradient, scratch, out=gradient)


def moving_average(average: Block, value: Block, decay: float, scratch: Block) -> None:
    """average ← decay·average + (1 − decay)·value, in place. ``value`` may be ``scratch`` itself."""
    kind = average.dtype.type
    np.multiply(average, kind(decay), out=average)
    np.multiply(value, kind(1.0 - decay), out=scratch)
    np.add(average, scratch, out=average)
