"""From the ring of figures in the run's memory to records: what the coordinator tells about committed steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtrain.comm.memory import PHASES, RING, SAMPLED
from dtrain.data.sampler import shard_bounds
from dtrain.monitor.records import StepRecord
from dtrain.train.fingerprint import extend_chain
from dtrain.train.norms import NoiseScale
from dtrain.train.state import RunState

_OWN_WORK = PHASES.index("backward") + 1  # the phases before the first barrier

PhaseSums = tuple[Sequence[float], int]
"""Seconds per phase of one worker, summed over so many steps."""


class Recorder:
    """Reads each committed step once, in order. ``chain`` and ``last_loss`` stand after step ``next_step`` - 1."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._noise = NoiseScale()
        self.next_step, self.chain = state.first_step, state.chain
        self.last_loss: float | None = None

    def read(
        self,
        committed: int,
        members: tuple[int, ...],
        others: Mapping[int, PhaseSums] | None = None,
        resident: Mapping[str, int] | None = None,
    ) -> list[StepRecord]:
        """Return the records of the steps below ``committed`` that were not yet read; ``members`` ran them.

        ``others`` are the phases that the members on other hosts have told since the last time, ``resident`` the
        resident memory of the processes.
        """
        if committed <= self.next_step:
            return []
        state, memory, program = self._state, self._state.memory, self._state.program
        steps = range(self.next_step, committed)
        slots = [step % RING for step in steps]
        phases = memory.phases[slots, : len(members)]
        seconds = phases.sum(axis=2).max(axis=1).tolist()
        decisions, losses = memory.decisions[slots].tolist(), memory.losses[slots].tolist()
        sampled = memory.coefficients[slots, SAMPLED].tolist()
        sums = dict(zip(members, ((row, len(steps)) for row in phases.sum(axis=0).tolist()), strict=True))
        sums |= others or {}
        slowest, skew = _skew(sums)
        records = []
        for i, step in enumerate(steps):
            samples, present = state.sampler.batch_size(step), state.present(step)
            is_skipped, norm, clip = decisions[i]
            self.last_loss = sum(losses[i][:present]) / samples
            self.chain = extend_chain(self.chain, step, self.last_loss, norm)
            is_last = step == committed - 1  # what costs more is told once for all steps that are read together
            is_sampled = sampled[i] and not is_skipped
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
                    parameter_norms=state.parameter_norms(step) if is_last or is_sampled else None,
                    phases={w: dict(zip(PHASES, s, strict=True)) for w, (s, _) in sums.items()} if is_last else None,
                    digest=self.chain,
                    weight_norms=state.weight_norms(step) if is_sampled else None,
                    update_norms=state.update_norms(step) if is_sampled else None,
                    noise=self._noise_of(step, norm, present) if is_sampled else None,
                    summed_bytes=present * state.layout.dense_nbytes,
                    barrier_skew=skew if is_last else None,
                    slowest_worker=slowest if is_last else None,
                    resident_bytes=resident if is_last else None,
                )
            )
        self.next_step = committed
        return records

    def _noise_of(self, step: int, norm: float, present: int) -> dict[str, float] | None:
        state = self._state
        sizes = [hi - lo for lo, hi in shard_bounds(state.sampler.batch_size(step), state.program.shards)[:present]]
        return self._noise.add(norm, state.memory.shard_squares[step % RING, :present].tolist(), sizes)


def _skew(sums: Mapping[int, PhaseSums]) -> tuple[int | None, float]:
    """Who takes longest until its gradients are there, and by how many seconds a step longer than the fastest."""
    work = {w: sum(seconds[:_OWN_WORK]) / steps for w, (seconds, steps) in sums.items() if steps}
    if not work:
        return None, 0.0
    slowest = max(work, key=work.__getitem__)
    return slowest, work[slowest] - min(work.values())
