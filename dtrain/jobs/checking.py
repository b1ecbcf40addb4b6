"""What `dtrain check` does: the gradient of a job's loss by every parameter, against differences, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph import CheckReport, check_grads, step_context
from dtrain.jobs.build import build
from dtrain.jobs.spec import JobSpec
from dtrain.train.shard import Batch, called


def check_job(spec: JobSpec) -> CheckReport:
    """Check the loss of the first shard at the initial parameters: for each parameter the derivative along a random
    direction, which depends on all of its elements. The report has one entry a parameter, and raises nothing."""
    program = build(spec)
    indices = program.sampler().indices(0, 0)
    batch = Batch(program.train, len(indices), np.dtype(np.float64))
    batch.fill(indices)

    def loss(params: Any) -> Any:
        with step_context(program.seed, 0, 0, training=True):  # the same dropout at every evaluation
            return np.sum(called("loss", program.loss, params, batch.arrays))

    return check_grads(loss, [program.initial_parameters()], tolerance=np.inf)


def table(report: CheckReport) -> str:
    """The report as lines: parameter, relative error, method, its reading, and the kinks crossed."""
    rows = []
    for found in report.arguments:
        name = found.name.partition("(")[2].rstrip(")") or found.name
        kinks = f"; kinks crossed: {', '.join(found.kinks)}" if found.kinks else ""
        rows.append((name, f"{found.relative_error:.1e}", found.method, found.band + kinks))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)
