"""Where nan or inf first appeared: a run taken again step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dtrain.graph.regions import Packed, parts

if TYPE_CHECKING:
    from dtrain.graph.plan import Bound


def _range(array: np.ndarray) -> str:
    if array.dtype.kind != "f" or array.size == 0:
        return f"{array.dtype}{list(array.shape)}"
    finite = array[np.isfinite(array)]
    bad = array.size - finite.size
    span = f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "nothing finite"
    return f"{array.dtype}{list(array.shape)} from {span}" + (f", {bad} not finite" if bad else "")


@dataclass(frozen=True)
class Origin:
    """The first array that is not finite: which operation made it, where in the user's code, and from what.

    ``op`` is "input NAME" for an array that was given, which has no ``line``. ``result`` and ``inputs`` tell dtype,
    shape and range. ``length`` is that of the first axis, and ``rows`` are the places along it that are not finite; 0
    and () without axes.
    """

    op: str
    result: str
    scope: str = ""
    line: str = ""
    inputs: tuple[str, ...] = ()
    length: int = 0
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.line:
            return f"{self.op}: {self.result}"
        scope = f" in {self.scope}" if self.scope else ""
        return f"{self.op}{scope}, made at {self.line}: result {self.result}; inputs {'; '.join(self.inputs) or 'none'}"


def first_nonfinite(bound: Bound) -> Origin | None:
    """Run the bound plan again and describe the first array that is not finite: an input, or the result of an
    operation. None if everything is finite. The outputs are written again."""
    plan = bound.plan
    for node, array in zip(plan.inputs, bound.inputs, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return Origin(f"input {node.name}", _range(array), **_rows(array))
    with np.errstate(all="ignore"):
        for step, call in zip(plan.steps, bound.calls, strict=True):
            before = [_range(bound.arrays[i.position]) for i in step.inputs]
            call()
            block = bound.arrays[step.out.position]
            for out in parts(step.op, step.static, block) if isinstance(step.op, Packed) else [block]:
                if out.dtype.kind == "f" and not np.isfinite(out).all():
                    node = step.node
                    return Origin(
                        step.op.name, _range(out), node.scope or "", node.location, tuple(before), **_rows(out)
                    )
    return None


def _rows(array: np.ndarray) -> dict[str, Any]:
    if array.ndim == 0:
        return {}
    is_bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return {"length": len(array), "rows": tuple(np.flatnonzero(is_bad).tolist())}
