"""Functions of SciPy that turn their arguments into plain arrays first, for traced arrays too.

The names and arguments are those of SciPy: `from dtrain.scipy import special, stats` instead of `from scipy import
special, stats`. The ufuncs of scipy.special are recorded as they are. Needs SciPy.
"""

from __future__ import annotations

import importlib
from typing import Any

try:
    import scipy  # noqa: F401
except ImportError:
    raise ImportError("dtrain.scipy needs SciPy: pip install scipy") from None

__all__ = ["integrate", "linalg", "signal", "special", "stats"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"dtrain.scipy.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
