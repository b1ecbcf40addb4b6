"""dtrain: distributed data-parallel training of models written in plain NumPy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dtrain.graph import (
        check_grads,
        checkpoint,
        custom_vjp,
        draw,
        elementwise_grad,
        grad,
        hessian,
        hvp,
        inspect,
        jacobian,
        jvp,
        scan,
        stop_gradient,
        trace,
        value_and_grad,
        vjp,
    )
    from dtrain.graph.custom import primitive
    from dtrain.jobs.fit import fit

__all__ = [
    "__version__",
    "check_grads",
    "checkpoint",
    "custom_vjp",
    "draw",
    "elementwise_grad",
    "fit",
    "grad",
    "hessian",
    "hvp",
    "inspect",
    "jacobian",
    "jvp",
    "primitive",
    "scan",
    "stop_gradient",
    "trace",
    "value_and_grad",
    "vjp",
]

_HOME = {**dict.fromkeys(__all__[1:], "dtrain.graph"), "fit": "dtrain.jobs.fit"}


def __getattr__(name: str) -> Any:
    # Loaded when first used: the command line starts its workers before it imports NumPy itself.
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name == "scipy":
        return importlib.import_module("dtrain.scipy")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
