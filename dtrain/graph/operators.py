"""The operators of a recorded array, and the tables through which NumPy's dispatch finds what records a function.

The tables are filled once by `numpy_functions.py` and only read afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

UFUNCS: dict[np.ufunc, Callable[..., Any]] = {}
"""What records each NumPy ufunc; filled by `numpy_functions.py`, the table of all that is covered."""
REDUCTIONS: dict[np.ufunc, Callable[..., Any]] = {}
"""What records `ufunc.reduce`."""
ACCUMULATIONS: dict[np.ufunc, Callable[..., Any]] = {}
"""What records `ufunc.accumulate`."""
SPECIAL: dict[np.ufunc, Callable[..., Any]] = {}
"""What records each ufunc of scipy.special; filled by `ops/special.py`, once a program has imported SciPy."""
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""What records each NumPy function that is not a ufunc."""

METHODS: dict[str, Callable[..., Any]] = {}
"""What records each array method; filled by `numpy_functions.py`."""


class Operators:
    """Each operator records the ufunc that NumPy would call."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        return UFUNCS[np.add](self, other)

    def __radd__(self, other: Any) -> Any:
        return UFUNCS[np.add](other, self)

    def __sub__(self, other: Any) -> Any:
        return UFUNCS[np.subtract](self, other)

    def __rsub__(self, other: Any) -> Any:
        return UFUNCS[np.subtract](other, self)

    def __mul__(self, other: Any) -> Any:
        return UFUNCS[np.multiply](self, other)

    def __rmul__(self, other: Any) -> Any:
        return UFUNCS[np.multiply](other, self)

    def __truediv__(self, other: Any) -> Any:
        return UFUNCS[np.divide](self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return UFUNCS[np.divide](other, self)

    def __floordiv__(self, other: Any) -> Any:
        return UFUNCS[np.floor_divide](self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return UFUNCS[np.floor_divide](other, self)

    def __mod__(self, other: Any) -> Any:
        return UFUNCS[np.remainder](self, other)

    def __rmod__(self, other: Any) -> Any:
        return UFUNCS[np.remainder](other, self)

    def __divmod__(self, other: Any) -> Any:
        return UFUNCS[np.divmod](self, other)

    def __rdivmod__(self, other: Any) -> Any:
        return UFUNCS[np.divmod](other, self)

    def __pow__(self, other: Any) -> Any:
        return UFUNCS[np.power](self, other)

    def __rpow__(self, other: Any) -> Any:
        return UFUNCS[np.power](other, self)

    def __lshift__(self, other: Any) -> Any:
        return UFUNCS[np.left_shift](self, other)

    def __rlshift__(self, other: Any) -> Any:
        return UFUNCS[np.left_shift](other, self)

    def __rshift__(self, other: Any) -> Any:
        return UFUNCS[np.right_shift](self, other)

    def __rrshift__(self, other: Any) -> Any:
        return UFUNCS[np.right_shift](other, self)

    def __matmul__(self, other: Any) -> Any:
        return UFUNCS[np.matmul](self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return UFUNCS[np.matmul](other, self)

    def __and__(self, other: Any) -> Any:
        return UFUNCS[np.bitwise_and](self, other)

    def __rand__(self, other: Any) -> Any:
        return UFUNCS[np.bitwise_and](other, self)

    def __or__(self, other: Any) -> Any:
        return UFUNCS[np.bitwise_or](self, other)

    def __ror__(self, other: Any) -> Any:
        return UFUNCS[np.bitwise_or](other, self)

    def __xor__(self, other: Any) -> Any:
        return UFUNCS[np.bitwise_xor](self, other)

    def __rxor__(self, other: Any) -> Any:
        return UFUNCS[np.bitwise_xor](other, self)

    def __lt__(self, other: Any) -> Any:
        return UFUNCS[np.less](self, other)

    def __le__(self, other: Any) -> Any:
        return UFUNCS[np.less_equal](self, other)

    def __gt__(self, other: Any) -> Any:
        return UFUNCS[np.greater](self, other)

    def __ge__(self, other: Any) -> Any:
        return UFUNCS[np.greater_equal](self, other)

    def __eq__(self, other: Any) -> Any:
        return UFUNCS[np.equal](self, other)

    def __ne__(self, other: Any) -> Any:
        return UFUNCS[np.not_equal](self, other)

    def __neg__(self) -> Any:
        return UFUNCS[np.negative](self)

    def __abs__(self) -> Any:
        return UFUNCS[np.absolute](self)

    def __invert__(self) -> Any:
        return UFUNCS[np.invert](self)

    def __round__(self, digits: int = 0) -> Any:
        return FUNCTIONS[np.round](self, digits)

    def __pos__(self) -> Any:
        return self

    __hash__ = object.__hash__

    # In place: the handle, and every other name of it, stands for the new value.

    def __iadd__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.add](self, other))

    def __isub__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.subtract](self, other))

    def __imul__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.multiply](self, other))

    def __itruediv__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.divide](self, other))

    def __ifloordiv__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.floor_divide](self, other))

    def __imod__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.remainder](self, other))

    def __ipow__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.power](self, other))

    def __imatmul__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.matmul](self, other))

    def __iand__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.bitwise_and](self, other))

    def __ior__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.bitwise_or](self, other))

    def __ixor__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.bitwise_xor](self, other))

    def __ilshift__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.left_shift](self, other))

    def __irshift__(self, other: Any) -> Any:
        return METHODS["in_place"](self, UFUNCS[np.right_shift](self, other))
