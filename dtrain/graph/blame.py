"""Where nan or inf first appeared: a run taken again step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def first_nonfinite(bound: Bound) -> str | None:
    """Run the bound plan again and describe the first array that is not finite: an input, or the operation that made
    it.

    Returns one line with the operation, the user's line and the ranges of its inputs, or None if everything is
    finite. The outputs are written again.
    """
    plan = bound.plan
    for node, array in zip(plan.inputs, bound.inputs, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"input {node.name}: {_range(array)}"
    with np.errstate(all="ignore"):
        for step, call in zip(plan.steps, bound.calls, strict=True):
            before = [_range(bound.arrays[i.position]) for i in step.inputs]
            call()
            block = bound.arrays[step.out.position]
            for out in parts(step.op, step.static, block) if isinstance(step.op, Packed) else [block]:
                if out.dtype.kind != "f" or np.isfinite(out).all():
                    continue
                scope = f" in {step.node.scope}" if step.node.scope else ""
                return (
                    f"{step.op.name}{scope}, made at {step.node.location}: result {_range(out)}; "
                    f"inputs {'; '.join(before) or 'none'}"
                )
    return None
