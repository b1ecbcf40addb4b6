"""Where a value that is not finite came from: the step, the shard, its samples, the tensor, the operation and its line.

The same is told in words, by the error's text, and as plain values, by its ``place``:

    step, shard   the shard is None if every shard is finite and their sum is not
    samples       indices in the training data: those whose row of the operation's result is not finite, or all of the
                  shard if the result has no row for each sample
    tensor        loss, or the parameter or running value whose gradient or report is not finite
    op, line, result, inputs    the first operation with a result that is not finite, and the ranges; None, and [] for
                  the inputs, if it is not known
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.memory import RING, RunMemory
from dtrain.comm.rows import dense_tables
from dtrain.errors import NonFiniteError
from dtrain.graph.blame import Origin
from dtrain.train.program import Program
from dtrain.train.shard import ShardRunner

_ADVICE = "Lower the learning rate, clip the gradient, or set on_nonfinite: skip"
_NAMED = 8


def explain_nonfinite(program: Program, memory: RunMemory, step: int) -> NonFiniteError:
    """Return the error for a step whose loss or summed gradient is not finite; all ranks are at rest.

    Runs the first shard to blame once more, operation by operation.
    """
    layout = memory.dimensions.layout
    sampler = program.sampler()
    runner = ShardRunner(program, memory)
    shards: Sequence[int] = range(min(sampler.batch_size(step), program.shards))
    with np.errstate(all="ignore"):  # it may record the loss
        is_spoilt = runner.meets(step, shards)
    if is_spoilt:  # what one shard hands in spoils the others
        culprit = runner.sums.first_nonfinite()
        shards = sorted(shards, key=lambda s: s != culprit)
    for shard in shards:
        if memory.shard_done[shard] != step + 1:  # its gradient is on another host; the same can be computed here
            with np.errstate(all="ignore"):
                runner.gather(step, shard).bind(shard).run()
        views = layout.views(memory.gradients[shard])
        for index, table in dense_tables(memory, memory.gradients[shard], [shard]).items():
            views[index] = table
        bad = [i for i, v in enumerate(views) if not np.isfinite(v).all()]
        loss = float(memory.losses[step % RING, shard])
        if np.isfinite(loss) and not bad:
            continue
        what, tensor = f"the loss is {loss}", "loss"
        if np.isfinite(loss):
            tensor = layout.names[bad[0]]
            part = "what was reported for the running value" if bad[0] in layout.momenta else "the gradient of"
            what = f"{part} {tensor} is not finite"
        place = f"step {step}, shard {shard}: {what}"
        if (found := _bad_data(program, sampler.indices(step, shard))) is not None:
            key, sample = found
            return _error(
                f"{place}; the training data {key} has nan or inf in sample {sample}: clean the data",
                step=step,
                shard=shard,
                samples=[sample],
                tensor=tensor,
                origin=Origin(f"input batch.{key}", "not finite"),
            )
        origin, samples = _trace_back(runner, step, shard)
        first = "" if origin is None else f"; first in {origin}"
        return _error(f"{place}{first}{_in(samples)}. {_ADVICE}", step, shard, samples, tensor, origin)
    totals = layout.views(memory.total)
    for index in layout.momenta:
        if not np.isfinite(totals[index]).all():
            name = layout.names[index]
            return _error(
                f"step {step}: what every shard reported for the running value {name} is finite, but "
                "their sum is not; scale it down",
                step,
                tensor=name,
            )
    return _error(
        f"step {step}: every shard's gradient is finite, but their sum is not; lower the learning rate or clip",
        step,
        tensor="gradient",
    )


def explain_skipped(program: Program, memory: RunMemory, step: int) -> NonFiniteError:
    """Return what would have been the error for a step that was skipped, while the ranks go on.

    The step's losses must still be in the ring. A shard is run again on a copy of the parameters as they are now: if
    they have changed too much since, there is no operation to name. Nor is there a shard to name if shards are summed
    in the middle of a step: one spoils the others, and what they handed in is gone.
    """
    losses = memory.losses[step % RING, : min(program.sampler().batch_size(step), program.shards)].tolist()
    shard = next((s for s, loss in enumerate(losses) if not np.isfinite(loss)), 0)
    has_bad_loss = not np.isfinite(losses[shard])
    own = RunMemory(memory.dimensions)  # pages that nobody touches cost nothing
    try:
        own.parameters[:] = memory.parameters
        runner = ShardRunner(program, own)
        with np.errstate(all="ignore"):
            is_apart = not runner.meets(step, (shard,))
        origin, samples = _trace_back(runner, step, shard) if is_apart else (None, [])
    finally:
        own.close()
    what = f"the loss is {losses[shard]}" if has_bad_loss else "the losses are finite, a gradient is not"
    where = f", shard {shard}" if is_apart and (has_bad_loss or origin is not None) else ""
    how = f"; first in {origin}{_in(samples)}" if origin is not None else ""
    return _error(
        f"step {step}{where}: {what}{how}; the step is skipped",
        step,
        shard if where else None,
        samples if where else [],
        "loss" if has_bad_loss else "gradient",
        origin,
    )


def _trace_back(runner: ShardRunner, step: int, shard: int) -> tuple[Origin | None, list[int]]:
    """The first operation of a shard that is not finite, and the samples in whose rows."""
    indices = runner.sampler.indices(step, shard)
    with np.errstate(all="ignore"):
        origin = runner.gather(step, shard).bind(shard).first_nonfinite()
    rows = list(origin.rows) if origin is not None and origin.length == len(indices) else slice(None)
    return origin, indices[rows].tolist()


def _bad_data(program: Program, indices: NDArray[np.int64]) -> tuple[str, int] | None:
    for key, array in program.train.items():
        if array.dtype.kind == "f":
            for sample in indices.tolist():
                if not np.isfinite(array[sample]).all():
                    return key, sample
    return None


def _in(samples: Sequence[int]) -> str:
    """How the samples are named in a sentence: the first few of them."""
    shown = ", ".join(map(str, samples[:_NAMED])) + (f" and {len(samples) - _NAMED} more" * (len(samples) > _NAMED))
    return f"; sample{'s' * (len(samples) > 1)} {shown} of the training data" if samples else ""


def _error(
    text: str,
    step: int,
    shard: int | None = None,
    samples: Sequence[int] = (),
    tensor: str = "",
    origin: Origin | None = None,
) -> NonFiniteError:
    place: dict[str, Any] = {"step": step, "shard": shard, "samples": list(samples), "tensor": tensor}
    place |= {"op": None, "line": None, "result": None, "inputs": []}
    if origin is not None:
        place |= {"op": origin.op, "line": origin.line or None, "result": origin.result, "inputs": list(origin.inputs)}
    return NonFiniteError(text, place)
