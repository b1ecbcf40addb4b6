"""What a run writes down of each step and evaluation, and ``metrics.jsonl``, where it is kept.

Invariant: in the log of a run, however often it was killed and resumed, each step and each evaluation appears once, in
order. ``step`` is always the number of updates that the parameters had seen when the loss was computed: the first step
has 0, and an evaluation after it has 1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dtrain.monitor.lines import LineFile, encode, read_lines

_MOST_PENDING = 100_000  # a run on a full disk goes on, but not until its memory is full as well


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One committed step.

    ``epoch`` counts from 0. ``loss`` is the mean over the ``samples`` of the batch, ``gradient_norm`` the global L2
    norm before clipping, ``clip_scale`` the factor that clipping put on the gradient (1 is none), ``seconds`` the wall
    time. ``parameter_norms`` are L2 norms of the gradient by parameter, where they were taken at this step; ``phases``
    are seconds by worker and phase, summed over the steps since the record before that has them; ``digest`` is the
    run's chain of digests up to this step, in hex.

    At sampled steps: ``weight_norms`` and ``update_norms``, L2 norms of the parameters after the step and of what it
    added to them; ``noise``, as `NoiseScale.add` returns it. ``summed_bytes`` are the bytes of the shards' gradients.
    ``barrier_skew`` is by how many seconds a step the ``slowest_worker`` came later to the first barrier than the
    fastest, in the mean of the steps that ``phases`` is of. ``resident_bytes`` are by worker, and the coordinator's.
    """

    step: int
    epoch: int
    loss: float
    gradient_norm: float
    clip_scale: float
    learning_rate: float
    samples: int
    seconds: float
    parameter_norms: Mapping[str, float] | None = None
    phases: Mapping[int, Mapping[str, float]] | None = None
    digest: str = ""
    is_skipped: bool = False
    weight_norms: Mapping[str, float] | None = None
    update_norms: Mapping[str, float] | None = None
    noise: Mapping[str, float] | None = None
    summed_bytes: int = 0
    barrier_skew: float | None = None
    slowest_worker: int | None = None
    resident_bytes: Mapping[str, int] | None = None


_FLOATS_BY_NAME = ("parameter_norms", "weight_norms", "update_norms", "noise")


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One evaluation over the whole held-out set. ``epoch`` is the number of complete passes over the training data.

    ``metrics`` are means over the set by name, such as accuracy (a ratio).
    """

    step: int
    epoch: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def to_line(record: StepRecord | EvalRecord) -> bytes:
    """Return a record as a line of JSON; NumPy's floats are taken too."""
    if isinstance(record, EvalRecord):
        metrics = {name: float(value) for name, value in record.metrics.items()}
        return encode(
            {"type": "eval", "step": record.step, "epoch": record.epoch, "loss": float(record.loss), "metrics": metrics}
        )
    values: dict[str, Any] = {
        "type": "step",
        "step": record.step,
        "epoch": record.epoch,
        "loss": float(record.loss),
        "gradient_norm": float(record.gradient_norm),
        "clip_scale": float(record.clip_scale),
        "learning_rate": float(record.learning_rate),
        "samples": record.samples,
        "seconds": float(record.seconds),
    }
    if record.summed_bytes:
        values["summed_bytes"] = record.summed_bytes
    for key in _FLOATS_BY_NAME:
        by_name = getattr(record, key)
        if by_name is not None:
            values[key] = _floats(by_name)
    if record.phases is not None:
        values["phases"] = {
            str(worker): {phase: float(seconds) for phase, seconds in phases.items()}
            for worker, phases in record.phases.items()
        }
    if record.barrier_skew is not None:
        values["barrier_skew"] = float(record.barrier_skew)
    if record.slowest_worker is not None:
        values["slowest_worker"] = record.slowest_worker
    if record.resident_bytes is not None:
        values["resident_bytes"] = dict(record.resident_bytes)
    if record.digest:
        values["digest"] = record.digest
    if record.is_skipped:
        values["is_skipped"] = True
    return encode(values)


def from_values(values: Mapping[str, Any]) -> StepRecord | EvalRecord | None:
    """Return the record that a line holds, or None for a line of another type. Unknown keys are ignored."""
    if values.get("type") == "eval":
        return EvalRecord(values["step"], values["epoch"], float(values["loss"]), _floats(values["metrics"]))
    if values.get("type") != "step":
        return None
    phases = values.get("phases")
    skew = values.get("barrier_skew")
    by_name = {key: _floats(values[key]) for key in _FLOATS_BY_NAME if values.get(key) is not None}
    return StepRecord(
        step=values["step"],
        epoch=values["epoch"],
        loss=float(values["loss"]),
        gradient_norm=float(values["gradient_norm"]),
        clip_scale=float(values["clip_scale"]),
        learning_rate=float(values["learning_rate"]),
        samples=values["samples"],
        seconds=float(values["seconds"]),
        phases=None if phases is None else {int(worker): _floats(seconds) for worker, seconds in phases.items()},
        digest=values.get("digest", ""),
        is_skipped=values.get("is_skipped", False),
        summed_bytes=values.get("summed_bytes", 0),
        barrier_skew=None if skew is None else float(skew),
        slowest_worker=values.get("slowest_worker"),
        resident_bytes=values.get("resident_bytes"),
        **by_name,
    )


def read_records(path: str | os.PathLike[str], start: int = 0) -> Iterator[tuple[StepRecord | EvalRecord, int]]:
    """Yield the records of a log from byte ``start`` on, each with the byte behind it; a running log may be read."""
    for values, position in read_lines(path, start):
        record = from_values(values)
        if record is not None:
            yield record, position


class MetricsLog:
    """The writer of ``metrics.jsonl``. Records are held back and written together, one system call a batch.

    Not thread-safe. Whoever writes checkpoints calls ``flush`` first: a resumed run goes on behind its checkpoint, so a
    record that was still held back at a crash would be missing for ever.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        committed: int | None = None,
        *,
        batch_records: int = 256,
        batch_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the log of a run that stands at ``committed`` steps; what it says of later steps is dropped.

        None keeps all that is there. Records are written when ``batch_records`` have come together, or when one comes
        ``batch_seconds`` after the last writing. Raises DtrainError if the file cannot be opened.
        """
        self._file = LineFile(path)
        self._pending: list[bytes] = []
        self._refused = 0  # of them, how many the disk did not take the last time
        self._batch_records, self._batch_seconds, self._clock = batch_records, batch_seconds, clock
        self._flushed = clock()
        last = self._file.cut(lambda line: committed is not None and not _is_within(line, committed))
        self._next_step = self._last_eval = -1
        record = from_values(last) if last is not None else None
        if isinstance(record, EvalRecord):
            self._next_step = self._last_eval = record.step
        elif record is not None:
            self._next_step = record.step + 1

    def append(self, record: StepRecord | EvalRecord) -> None:
        """Take a record. A repeated evaluation, as a resumed run may make it, is passed over: it says the same.

        Raises ValueError for a step that is in the log already, DtrainError as ``flush`` does.
        """
        if isinstance(record, EvalRecord):
            if record.step <= self._last_eval:
                return
            self._last_eval = record.step
        elif record.step < self._next_step:
            raise ValueError(f"step {record.step} is in the log already; the next one is {self._next_step}")
        else:
            self._next_step = record.step + 1
        self._pending.append(to_line(record))
        del self._pending[:-_MOST_PENDING]
        is_full = len(self._pending) - self._refused >= self._batch_records
        if is_full or self._clock() - self._flushed >= self._batch_seconds:
            self.flush()

    def flush(self, sync: bool = False) -> None:
        """Write what is held back, with ``sync`` down to the disk.

        Raises DtrainError if that fails, and keeps the records, up to 100,000, for the next time.
        """
        self._flushed = self._clock()
        self._refused = len(self._pending)
        self._file.append(self._pending)
        self._refused = 0
        self._pending.clear()
        if sync:
            self._file.sync()

    def close(self) -> None:
        """Flush and close; the file is closed even if flushing fails."""
        try:
            if self._pending:
                self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_within(line: Mapping[str, Any], committed: int) -> bool:
    step = line.get("step")
    if not isinstance(step, int):
        return False
    return step <= committed if line.get("type") == "eval" else step < committed


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
