"""The table of docs/coverage.md: which functions of NumPy are covered by dtrain, by HIPS autograd and by JAX.

`python -m tests.coverage_table` writes the page anew; it needs `autograd` and `jax`, in any environment. A test holds
the column of dtrain to the code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.graph.operators import FUNCTIONS, UFUNCS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"
MODULES = {"np": np, "np.linalg": np.linalg, "np.fft": np.fft}

INTRODUCTION = """\
The public functions of `np`, `np.linalg` and `np.fft` (NumPy {numpy}) that at least one of the three covers, compared
with HIPS autograd {autograd} and JAX {jax}. dtrain and autograd: the function has a gradient rule, is composed of
functions that have one, or is computed without a gradient as is right for it (comparisons, `np.argmax`). JAX:
`jax.numpy` has a function of this name. A function counts where some of its arguments are refused, and nothing is said
of its speed. What dtrain covers is listed with its limits in [models.md](models.md#covered-functions).
"""


def dispatched_functions() -> dict[str, Callable[..., Any]]:
    """Return each public function of NumPy that asks its arguments how it is to be computed, once, under its name."""
    found: dict[str, Callable[..., Any]] = {}
    for prefix, module in MODULES.items():
        for name in sorted(module.__all__):
            function = getattr(module, name)
            is_dispatched = isinstance(function, np.ufunc) or hasattr(function, "_implementation")
            if is_dispatched and function.__name__ == name:
                found[f"{prefix}.{name}"] = function
    return found


def is_covered(function: Callable[..., Any]) -> bool:
    """Whether dtrain records the function."""
    return function in UFUNCS or function in FUNCTIONS


# NumPy itself composes these of functions that autograd covers, as their traced arguments come in a list.
LISTS_IN_AUTOGRAD = {"np.block", "np.choose", "np.dstack", "np.linalg.multi_dot"}


def _in_autograd(name: str) -> bool:
    """Whether autograd has a gradient rule for its function of this name, says that there is none, or composes it."""
    core, tracer = importlib.import_module("autograd.core"), importlib.import_module("autograd.tracer")
    function = _attribute(importlib.import_module("autograd.numpy"), name)
    if function is None or name in LISTS_IN_AUTOGRAD:
        return function is not None
    is_without = function in tracer.notrace_primitives[core.VJPNode]
    return function in core.primitive_vjps or is_without or not hasattr(function, "_is_autograd_primitive")


def _attribute(module: Any, name: str) -> Any:
    for part in name.split(".")[1:]:
        module = getattr(module, part, None)
    return module


def page(versions: dict[str, str], others: dict[str, tuple[bool, bool]]) -> str:
    """Return the text of the page; `others` says for each name whether autograd and JAX cover it."""
    rows = []
    for name, function in dispatched_functions().items():
        covered = (is_covered(function), *others[name])
        if any(covered):
            rows.append((name, covered))
    totals = [sum(covered[k] for _, covered in rows) for k in range(3)]
    lines = [
        "# Functions of NumPy: dtrain, HIPS autograd, JAX",
        "",
        "<!-- Written by `python -m tests.coverage_table`. -->",
        "",
        *INTRODUCTION.format(**versions).splitlines(),
        "",
        "| Function | dtrain | HIPS autograd | JAX |",
        "|---|---|---|---|",
        f"| **of {len(rows)}** | **{totals[0]}** | **{totals[1]}** | **{totals[2]}** |",
        *(f"| `{name}` | " + " | ".join("yes" if c else "no" for c in covered) + " |" for name, covered in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    try:
        versions = {m: importlib.import_module(m).__version__ for m in ("numpy", "jax")}
        importlib.import_module("autograd")
    except ImportError as error:
        sys.exit(f"coverage_table: {error.name} is not installed; pip install autograd jax")
    versions["autograd"] = importlib.import_module("importlib.metadata").version("autograd")
    jax_numpy = importlib.import_module("jax.numpy")
    others = {n: (_in_autograd(n), _attribute(jax_numpy, n) is not None) for n in dispatched_functions()}
    PAGE.write_text(page(versions, others), encoding="utf-8")


if __name__ == "__main__":
    main()
