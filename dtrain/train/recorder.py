"""From the ring of figures in the run's memory to records: what the coordinator tells about committed steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.memory import PHASES, RING
from dtrain.monitor.records import StepRecord
from dtrain.train.fingerprint import extend_chain
from dtrain.train.state import RunState


class Recorder:
    """Reads each committed step once, in order. ``chain`` and ``last_loss`` stand after step ``next_step`` - 1."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self.next_step, self.chain = state.first_step, state.chain
        self.last_loss: float | None = None

    def read(
        self, committed: int, members: tuple[int, ...], others: Mapping[int, Sequence[float]] | None = None
    ) -> list[StepRecord]:
        """Return the records of the steps below ``committed`` that were not yet read; ``members`` ran them.

        ``others`` are the phases that the members on other hosts have told last.
        """
        if committed <= self.next_step:
            return []
        state, memory, program = self._state, self._state.memory, self._state.program
        steps = range(self.next_step, committed)
        slots = [step % RING for step in steps]
        phases = memory.phases[slots, : len(members)]
        seconds = phases.sum(axis=2).max(axis=1).tolist()
        decisions, losses = memory.decisions[slots].tolist(), memory.losses[slots].tolist()
        records = []
        for i, step in enumerate(steps):
            samples = state.sampler.batch_size(step)
            is_skipped, norm, clip = decisions[i]
            self.last_loss = sum(losses[i][: state.present(step)]) / samples
            self.chain = extend_chain(self.chain, step, self.last_loss, norm)
            is_last = step == committed - 1  # what costs more is told once for all steps that are read together
            records.append(
                StepRecord(
                    step=step,
                    epoch=state.epoch(step),
                    loss=self.last_loss,
                    gradient_norm=norm,
                    clip_scale=clip,
                    learning_rate=program.schedule.lr(step),
                    samples=samples,
                    seconds=seconds[i],
                    is_skipped=bool(is_skipped),
                    parameter_norms=state.parameter_norms(step) if is_last else None,
                    phases=_by_worker(members, phases.sum(axis=0), others or {}) if is_last else None,
                    digest=self.chain,
                )
            )
        self.next_step = committed
        return records


def _by_worker(
    members: tuple[int, ...], seconds: NDArray[np.float64], others: Mapping[int, Sequence[float]]
) -> dict[int, dict[str, float]]:
    rows = {**dict(zip(members, seconds.tolist(), strict=True)), **others}
    return {w: dict(zip(PHASES, row, strict=True)) for w, row in rows.items()}
