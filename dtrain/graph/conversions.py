"""What takes a recorded array out of the graph: Python's numbers, plain arrays, text, copies.

The invariant: a gradient is never lost in silence. What carries one is refused with the remedy; with compile=False what
carries none, such as the result of np.argmax or of stop_gradient, is a plain number or array.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from dtrain.errors import TraceError, UnsupportedFunctionError
from dtrain.graph.location import format_line, numpy_caller, scipy_caller, user_line
from dtrain.graph.nearest import NEAREST, not_covered
from dtrain.graph.operators import METHODS

if TYPE_CHECKING:
    from dtrain.graph.tensor import Graph, Tensor

_NUMBER = (
    "it would lose the gradient, and so would a function of `math` or assignment to a plain array; use the function of "
    "NumPy, np.stack or np.concatenate, np.zeros_like(x) of a traced x to assign into, or `.value` to look at it"
)


def carries_gradient(x: Any) -> bool:
    """Whether a float input reaches the recorded array x by operations that have a derivative."""
    seen: set[int] = set()
    stack: list[Tensor] = [x]
    while stack:
        node = stack.pop()
        if id(node) in seen or node.is_constant:
            continue
        seen.add(id(node))
        is_float = node.dtype.kind in "fc"
        if node.op is None:
            if is_float:
                return True
        elif (is_float and node.op.name != "stop") or hasattr(node.op, "adjoint"):  # a loop's results lie in bytes
            stack.extend(node.inputs)
    return False


class Conversions:
    """How a recorded array answers Python and NumPy where they ask for its value."""

    __slots__ = ()

    if TYPE_CHECKING:
        graph: Graph
        value: Any

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise TraceError(f"{what} of a traced array at {format_line(user_line())}: {remedy}")

    def _scalar(self, convert: Callable[[Any], Any], what: str) -> Any:
        if self.graph.is_branching_allowed:
            return convert(self.value)
        if self.graph.depth:
            self._refuse(what, "it may differ in the next step of the loop; use np.where, or a Python loop")
        self._refuse(
            what,
            "its value may differ in the next call; use np.where, a static (int, bool, str) argument, or compile=False",
        )

    def __bool__(self) -> bool:
        return bool(self._scalar(bool, "the truth value"))

    def _number(self, convert: Callable[[Any], Any], what: str) -> Any:
        """Convert to Python's numbers, which lose a gradient; with compile=False what has none may be asked for."""
        if carries_gradient(self):
            constant = (
                ", or dtrain.stop_gradient(x) to take it for a constant" if self.graph.is_branching_allowed else ""
            )
            self._refuse(what, _NUMBER + constant)
        return self._scalar(convert, what)

    def __float__(self) -> float:
        return float(self._number(float, "float()"))

    def __int__(self) -> int:
        return int(self._number(int, "int()"))

    def __trunc__(self) -> int:
        return int(self._number(int, "math.trunc()"))

    def __index__(self) -> int:
        return int(self._scalar(operator.index, "a Python index"))

    def __complex__(self) -> complex:
        return complex(self._number(complex, "complex()"))

    def item(self, *args: int) -> Any:
        return self._number(lambda value: np.asarray(value).item(*args), "item()")

    def tolist(self) -> Any:
        return self._number(lambda value: np.asarray(value).tolist(), "tolist()")

    def __format__(self, spec: str) -> str:
        return format(np.asarray(self.value)[()], spec) if spec else str(self)

    def __copy__(self) -> Any:
        return METHODS["copy"](self)

    def __deepcopy__(self, memo: Any) -> Any:
        return METHODS["copy"](self)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if self.graph.is_branching_allowed and not carries_gradient(self):
            return np.array(self.value, dtype)
        caller = scipy_caller() if "scipy" in sys.modules else None
        if caller is not None:
            raise UnsupportedFunctionError(not_covered(caller))
        caller = numpy_caller()
        if caller is not None:
            remedy = NEAREST.get(caller, f"stack a list first, {caller}(np.stack(list))")
            self._refuse(f"the conversion in {caller}", f"NumPy would lose the gradient; {remedy}")
        self._refuse(
            "np.array() or np.asarray()",
            "it would lose the gradient; use np.stack for a list, np.zeros_like(x) of a traced x for an array to "
            "assign into, NumPy functions on the array itself, or `.value` to look at it",
        )
