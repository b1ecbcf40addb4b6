"""Steps that stand out: a loss or gradient norm far beyond the recent ones, and an update that was skipped; and how
the observer is told of them, and of a worker that is silent.

A **spike** is a loss or global gradient norm of more than ``factor`` times the median of the last 50 committed steps
(at least 20 of them) and more than the median of the first 20 since this process began: where a run has learnt its data
by heart, both are tiny, and any step is many times as large as the others. It is told of once in 50 steps, and so is a
skipped step. Values that are not finite count for no median.
What is known of it costs nothing to find: the shards' losses and the squares of the gradient are in the run's memory.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Any

from dtrain.comm.memory import RING
from dtrain.monitor.records import StepRecord
from dtrain.train.blame import explain_skipped
from dtrain.train.observer import Observer
from dtrain.train.stacks import Whereabouts
from dtrain.train.state import RunState

WINDOW, LEAST = 50, 20


class Recent:
    """The last ``WINDOW`` values of a figure, and the ``limit`` above which the next one is a spike."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._values: deque[float] = deque()
        self._sorted: list[float] = []
        self._first: float | None = None  # the median of the first values
        self.median: float | None = None
        """None as long as there are too few values to tell. Of an even number the upper one."""
        self.limit = math.inf

    def add(self, value: float) -> None:
        """Take a finite value in, and let the oldest go if there are too many."""
        ordered = self._sorted
        self._values.append(value)
        insort(ordered, value)
        if len(ordered) > WINDOW:
            del ordered[bisect_left(ordered, self._values.popleft())]
        if len(ordered) >= LEAST:
            self.median = median = ordered[len(ordered) // 2]
            if self._first is None:
                self._first = median
            self.limit = max(self._factor * median, self._first) if median > 0 else math.inf


class Alarms:
    """Looks at each committed step, in order, while its figures are still in the run's memory."""

    def __init__(self, state: RunState, observer: Observer, factor: float | None) -> None:
        """``factor`` says what a spike is; None: nothing is."""
        self._state, self._observer, self._factor = state, observer, factor
        self._loss, self._norm = Recent(factor or 1.0), Recent(factor or 1.0)
        self._told = {"spike": -WINDOW, "skipped": -WINDOW}

    def look(self, records: Sequence[StepRecord]) -> None:
        """Tell the observer of the steps among these that stand out."""
        for record in records:
            if record.is_skipped:
                if self._is_due("skipped", record.step):
                    self._tell_skipped(record.step)
            elif self._factor is not None:
                loss, norm = record.loss, record.gradient_norm
                if (loss > self._loss.limit or norm > self._norm.limit) and self._is_due("spike", record.step):
                    self._tell_spike(record)
                if math.isfinite(loss):
                    self._loss.add(loss)
                if math.isfinite(norm):
                    self._norm.add(norm)

    def _is_due(self, kind: str, step: int) -> bool:
        if step < self._told[kind] + WINDOW:
            return False
        self._told[kind] = step
        return True

    def _tell_skipped(self, step: int) -> None:
        error = explain_skipped(self._state.program, self._state.memory, step)
        tell_nonfinite(self._observer, str(error), error.place, is_skipped=True)

    def _tell_spike(self, record: StepRecord) -> None:
        state, sampler, step = self._state, self._state.sampler, record.step
        figures = {"loss": (record.loss, self._loss), "gradient_norm": (record.gradient_norm, self._norm)}
        beyond = {name: value / recent.limit for name, (value, recent) in figures.items()}
        quantity = max(beyond, key=beyond.__getitem__)
        value, median = figures[quantity][0], figures[quantity][1].median or 0.0
        losses = state.memory.losses[step % RING, : state.present(step)].tolist()
        samples = [sampler.indices(step, shard).tolist() for shard in range(len(losses))]
        means = [loss / len(indices) for loss, indices in zip(losses, samples, strict=True)]
        shard = max(range(len(means)), key=means.__getitem__)
        norms = state.parameter_norms(step)
        parameter = max(norms, key=norms.__getitem__)
        self._observer.event(
            "spike",
            f"step {step}: the {quantity.replace('_', ' ')} is {value:.6g}, {value / median:.1f} times the median of "
            f"the last steps ({median:.6g}); shard {shard} has the largest loss, parameter {parameter} the largest "
            f"gradient",
            step=step,
            quantity=quantity,
            value=value,
            median=median,
            shard=shard,
            samples=samples[shard],
            parameter=parameter,
        )


def tell_nonfinite(observer: Observer, text: str, place: dict[str, Any], is_skipped: bool = False) -> None:
    """Tell of a value that is not finite, as `blame` has found it; the run goes on if the step ``is_skipped``."""
    observer.event(
        "nonfinite",
        text,
        step=place["step"],
        shard=place["shard"],
        samples=place["samples"],
        tensor=place["tensor"],
        op=place["op"],
        line=place["line"],
        result=place["result"],
        inputs=place["inputs"],
        is_skipped=is_skipped,
    )


def tell_where(observer: Observer, worker: int, found: Whereabouts) -> None:
    """Tell where a silent worker is."""
    observer.event(
        "worker_stack",
        f"worker {worker} {found}",
        worker=worker,
        state=found.state,
        waits_in=found.waits_in,
        line=found.line,
        stack=found.stack,
    )
