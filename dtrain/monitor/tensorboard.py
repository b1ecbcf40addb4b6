"""The figures of a run as TensorBoard's event files, with the package ``tensorboard``: no other part of it is used.

A point ten times a second at most, so that fast steps cost nothing; every evaluation and every sampled step is there.
``metrics.jsonl`` has every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.errors import InputError
from dtrain.monitor.records import EvalRecord, StepRecord

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_POINT_SECONDS = 0.1
_NORMS = {
    "gradient_norm": "parameter_norms",
    "parameter_norm": "weight_norms",
    "update_norm": "update_norms",
}


def check_installed() -> None:
    """Raise InputError if the package is not there."""
    try:
        from tensorboard.summary.writer import event_file_writer  # noqa: F401
    except ImportError:
        raise InputError(
            "monitor.tensorboard: the package tensorboard is not installed; install dtrain[tensorboard], or set it to "
            "false"
        ) from None


class TensorBoardLog:
    """Writes event files into ``folder``. Steps are those of the records. Not thread-safe."""

    def __init__(self, folder: Path, first_step: int, clock: Callable[[], float] = time.monotonic) -> None:
        """A run that begins behind ``first_step`` hides what files of earlier processes say of later steps."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._clock, self._next_point = clock, 0.0
        self._writer: EventFileWriter = EventFileWriter(str(folder), max_queue_size=1000, flush_secs=5)
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=first_step, session_log=start))

    def append(self, record: StepRecord | EvalRecord) -> None:
        """Take a record; steps in between are passed over."""
        if isinstance(record, EvalRecord):
            self._add(record.step, {"eval/loss": record.loss} | {f"eval/{k}": v for k, v in record.metrics.items()})
            return
        if record.update_norms is None and self._clock() < self._next_point:
            return
        self._next_point = self._clock() + _POINT_SECONDS
        values = {
            "train/loss": record.loss,
            "train/gradient_norm": record.gradient_norm,
            "train/learning_rate": record.learning_rate,
        }
        if record.noise is not None:
            values["train/gradient_noise_scale"] = record.noise["scale"]
        for tag, key in _NORMS.items():
            values |= {f"{tag}/{name}": norm for name, norm in (getattr(record, key) or {}).items()}
        self._add(record.step, values)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        points = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        summary = summary_pb2.Summary(value=points)
        self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Put what is held back on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
