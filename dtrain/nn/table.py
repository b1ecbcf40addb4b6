"""Tables: parameters of which a step uses few rows, as an embedding of many words or users.

A table is a leaf of the parameters, (rows, …), that ``table`` has marked in ``init``. The loss may use it only by
taking rows: ``table[ids]``, ``np.take(table, ids, axis=0)`` or ``dtrain.nn.embedding(table, ids)``. Then its gradient
is rows too, and only the rows that a step takes are added, sent between hosts and updated. The others stand still, so a
rule with memory (momentum, Adam, weight decay) is the lazy form of itself there, as PyTorch's ``SparseAdam`` is.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Table(np.ndarray[Any, Any]):
    """An array that is marked. The mark survives copies, views, ``astype`` and pickling; results of arithmetic are
    plain arrays."""

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __reduce_ex__(self, protocol: Any) -> Any:
        return table, (np.asarray(self),)


def table(array: Any) -> Table:
    """Mark an array (rows, …) of floats as a table, whose gradient is that of the rows that a step takes."""
    return np.asarray(array).view(Table)
