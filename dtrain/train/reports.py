"""What a recorded loss has reported of its running values, in the place of their gradients.

A shard hands in (its number of samples) × (its value), so that the sum over shards, divided by the samples of the step,
is the weighted mean. Invariant: each running value is reported exactly once in every recording of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.comm.layout import Layout
from dtrain.errors import InputError
from dtrain.graph import Tensor
from dtrain.graph.context import Report
from dtrain.graph.primitive import as_tensor


def reported(layout: Layout, leaves: Sequence[Tensor], reports: Sequence[Report], samples: int) -> dict[int, Tensor]:
    """Return samples × value in the layout's dtype, by index of the running value; to be called while recording.

    ``leaves`` are the recorded parameters in the order of the layout. Raises InputError for a report of anything else
    than a running value, for a second one, and for a missing one.
    """
    found: dict[int, Tensor] = {}
    for each in reports:
        index = next((i for i, leaf in enumerate(leaves) if leaf is each.leaf), None)
        if index is None:
            raise InputError(
                f"report at {each.line}: expected a running value just as it is in params, got the result of an "
                "operation or another array"
            )
        name = layout.names[index]
        if index not in layout.momenta:
            raise InputError(f"report at {each.line}: {name} is a parameter; mark it in init with dtrain.nn.running")
        if index in found:
            raise InputError(
                f"report at {each.line}: {name} is reported a second time; give each use a running value of its own"
            )
        value = as_tensor(each.value)
        if value.dtype.kind not in "biuf":
            raise InputError(f"report at {each.line}: expected real numbers for {name}, got {value.dtype}")
        value = value.astype(layout.dtype)
        found[index] = value * layout.dtype.type(samples)
    for index, _ in layout.running:
        if index not in found:
            raise InputError(
                f"loss: the running value {layout.names[index]} is not reported in training; hand it to "
                "dtrain.nn.batch_norm or dtrain.nn.report, or remove dtrain.nn.running around it in init"
            )
    return found
