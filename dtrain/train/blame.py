"""Where a value that is not finite came from: the step, the shard, the tensor, and the data if it is to blame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dtrain.comm.memory import RING, RunMemory
from dtrain.comm.rows import dense_tables
from dtrain.errors import NonFiniteError
from dtrain.train.program import Program
from dtrain.train.shard import ShardRunner


def explain_nonfinite(program: Program, memory: RunMemory, step: int) -> NonFiniteError:
    """Return the error for a step whose loss or summed gradient is not finite; all ranks are at rest.

    Runs the first shard to blame once more, operation by operation.
    """
    layout = memory.dimensions.layout
    sampler = program.sampler()
    runner = ShardRunner(program, memory)
    shards: Sequence[int] = range(min(sampler.batch_size(step), program.shards))
    if runner.meets(step, shards):  # what one shard hands in spoils the others
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
        what = f"the loss is {loss}"
        if np.isfinite(loss):
            part = "what was reported for the running value" if bad[0] in layout.momenta else "the gradient of"
            what = f"{part} {layout.names[bad[0]]} is not finite"
        place = f"step {step}, shard {shard}: {what}"
        indices = sampler.indices(step, shard)
        for key, array in program.train.items():
            if array.dtype.kind == "f":
                for sample in indices:
                    if not np.isfinite(array[sample]).all():
                        return NonFiniteError(
                            f"{place}; the training data {key} has nan or inf in sample {sample}: clean the data"
                        )
        with np.errstate(all="ignore"):
            origin = runner.gather(step, shard).bind(shard).first_nonfinite()
        return NonFiniteError(
            f"{place}; first in {origin}. Lower the learning rate, clip the gradient, or set on_nonfinite: skip"
        )
    totals = layout.views(memory.total)
    for index in layout.momenta:
        if not np.isfinite(totals[index]).all():
            return NonFiniteError(
                f"step {step}: what every shard reported for the running value {layout.names[index]} is finite, but "
                "their sum is not; scale it down"
            )
    return NonFiniteError(
        f"step {step}: every shard's gradient is finite, but their sum is not; lower the learning rate or clip"
    )
