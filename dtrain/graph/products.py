"""The gradients of a loop's constants that are sums of products over the steps, each as one matrix product.

Where a step has h @ w, the gradient of w is the sum over the steps of hᵀ·g. A step that adds its product reads and
writes an array of w's size several times; instead the steps leave h and g behind, and Σ hᵀ·g is one product of their
stacks. Measured on an LSTM of 128 units over 64 steps: 0.78 of the time with 4 samples, 0.87 with 32.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from math import prod

from dtrain.graph.differentiate import branch_sum
from dtrain.graph.ops.elementwise import multiply
from dtrain.graph.ops.linear import matmul
from dtrain.graph.ops.shape import reshape, transpose
from dtrain.graph.tensor import Tensor

Factors = tuple[Tensor, Tensor]
_WHOLE = ("...", None, ("slice", None, None, None))


def factors(gradient: Tensor) -> list[Factors] | None:
    """Return the pairs (h, g) of a gradient (k, m) that is Σ hᵀ·g; None if it is not. Both hold rows, of k and m
    numbers: one for each sample, or one."""
    if gradient.ndim != 2:
        return None
    if gradient.op is branch_sum:
        found = [factors(term) for term in gradient.inputs]
        return None if None in found else [pair for pairs in found if pairs for pair in pairs]
    if _is_turned(gradient):  # of h @ w.T
        pairs = factors(gradient.inputs[0])
        return pairs and [(g, h) for h, g in pairs]
    if gradient.op is matmul and _is_turned(gradient.inputs[0]):
        (h,), g = gradient.inputs[0].inputs, gradient.inputs[1]
    elif gradient.op is multiply and gradient.inputs[0].shape[1:] == (1,) and gradient.inputs[1].shape[:1] == (1,):
        h, g = gradient.inputs  # the outer product of two vectors
    else:
        return None
    return [(_plain(h), _plain(g))]


def _is_turned(x: Tensor) -> bool:
    return x.op is not None and x.op.name == "transpose" and x.static["axes"] == (1, 0)


def _plain(x: Tensor) -> Tensor:
    """The array of which x is another shape, with the same elements in the same order."""
    while x.op is not None and (
        x.op.name == "reshape" or (x.op.name == "slice" and all(i in _WHOLE for i in x.static["index"]))
    ):
        (x,) = x.inputs
    return x


class Products:
    """The sums of products of one loop, by the place of the constant whose gradient they are.

    ``left`` are the values that the steps must leave behind for them, by index; those in ``known`` have a stack anyway.
    """

    def __init__(self, known: Container[int]) -> None:
        self._known = known
        self.left: dict[int, Tensor] = {}
        self.sums: dict[int, tuple[Tensor, list[Factors]]] = {}

    def take(self, place: int, gradient: Tensor) -> bool:
        """Take a gradient over if it is a sum of products, and what it leaves behind is no larger than itself."""
        pairs = factors(gradient)
        if pairs is None:
            return False
        new = {x.index: x for pair in pairs for x in pair if x.index not in self._known and x.index not in self.left}
        if sum(prod(x.shape) for x in new.values()) > prod(gradient.shape):
            return False
        self.left |= new
        self.sums[place] = gradient, pairs
        return True

    def made(self, stacks: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Record the sums after the loop, from the stacks (steps, …) of all values by index."""
        found = {}
        for place, (gradient, pairs) in self.sums.items():
            terms = []
            for h, g in pairs:
                rows, columns = (reshape(stacks[v.index], (-1, n)) for v, n in zip((h, g), gradient.shape, strict=True))
                terms.append(matmul(transpose(rows), columns))
            found[place] = sum(terms[1:], terms[0])
        return found
