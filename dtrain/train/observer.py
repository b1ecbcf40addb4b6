"""What a run tells to whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dtrain.monitor.records import EvalRecord, StepRecord


class Observer:
    """Told by the coordinator's shell, in order; every method may be overridden, none may fail or block."""

    def started(self, parameters: Mapping[str, int], steps: int, first_step: int, steps_per_epoch: int) -> None:
        """The run is about to start: the elements of its parameters by name, and where it stands of how many steps."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        """These steps, one after the other and at least one, were committed."""

    def evaluation(self, record: EvalRecord) -> None:
        """An evaluation is complete."""

    def generation(self, generation: int, members: tuple[int, ...], restarts: int) -> None:
        """A new generation begins, after so many workers were lost in all."""

    def checkpoint(self, step: int, seconds: float, size: int) -> None:
        """A checkpoint of so many bytes is on disk after so many seconds. Called by the thread that wrote it."""

    def state(self, step: int, tensors: Any) -> None:
        """A copy of the state after so many steps (`RunState.tensors`), as often as the run is looked into."""

    def event(self, kind: str, text: str, **details: Any) -> None:
        """Anything else worth telling: a worker died, a checkpoint failed."""

    def flush(self) -> None:
        """Write what is held back."""
