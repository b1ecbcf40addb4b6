"""dtrain: distributed data-parallel training of models written in plain NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from dtrain.graph import grad, trace, value_and_grad, vjp

if TYPE_CHECKING:
    from dtrain.jobs.fit import fit

__all__ = ["__version__", "fit", "grad", "trace", "value_and_grad", "vjp"]


def __getattr__(name: str) -> Any:
    # `fit` brings the whole trainer; a program that only differentiates should not wait for it.
    if name == "fit":
        from dtrain.jobs.fit import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
