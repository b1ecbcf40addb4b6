"""Everything that is wrong with a job, found without running it; and what the job needs.

The program is made, and its loss is recorded and differentiated for every size that a shard has in an epoch, on the
job's own first samples, as a worker does it. Nothing is trained and nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtrain.jobs.backend import worker_count
from dtrain.jobs.build import build
from dtrain.jobs.spec import JobSpec
from dtrain.train.program import Program
from dtrain.train.service import max_workers
from dtrain.train.shard import ShardRunner
from dtrain.train.state import RunState


@dataclass(frozen=True)
class Validation:
    """What a job is made of. ``shared_bytes`` the workers of a host have together, ``worker_bytes`` each for itself.

    ``shard_samples`` are the sizes of a shard, the greatest first; data that is memory-mapped counts in ``data_bytes``.
    """

    name: str
    parameters: int
    arrays: int
    dtype: str
    train_samples: int
    eval_samples: int
    steps: int
    steps_per_epoch: int
    batch: int
    shards: int
    shard_samples: tuple[int, ...]
    workers: int
    shared_bytes: int
    worker_bytes: int
    data_bytes: int

    def text(self) -> str:
        """Return the facts, one a line."""
        sizes = ", ".join(map(str, self.shard_samples))
        held_out = f"{self.eval_samples:,} held out" if self.eval_samples else "none held out"
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return "\n".join(
            [
                f"{self.name} is valid",
                f"parameters  {self.parameters:,} {self.dtype} in {self.arrays} arrays",
                f"data        {self.train_samples:,} samples, {held_out}, {_megabytes(self.data_bytes)}",
                f"steps       {self.steps:,}, {self.steps_per_epoch:,} an epoch, of {self.batch:,} samples",
                f"shards      {self.shards}; samples in one: {sizes}",
                f"memory      {_megabytes(self.shared_bytes)} shared, "
                f"and {_megabytes(self.worker_bytes)} for each of {workers}",
            ]
        )


def validate(spec: JobSpec) -> Validation:
    """Check a job as far as that is possible without running it. Raises InputError for every mistake found."""
    program = build(spec)
    workers = max(1, worker_count(spec.workers))
    state = RunState(program, max_workers(workers), None)
    try:
        runner = ShardRunner(program, state.memory)
        sizes = _shard_sizes(program)
        scratch = 0
        with np.errstate(all="ignore"):  # what is not finite is found, and named, by the run
            for step, shard in sizes.values():
                signature = runner.gather(step, shard)
                scratch += signature._arena.size + sum(a.nbytes for a in signature.batch.arrays.values())
            if program.eval:
                runner.evaluate(0)
            meets = runner.meets(0, [0])
        layout, memory = runner.layout, state.memory
        shared = memory.resident_bytes - memory.values.nbytes - memory.value_steps.nbytes
        if meets:  # the shards of a worker are under way side by side
            shared += program.shards * runner.sums.nbytes
            scratch *= -(-program.shards // workers)
        return Validation(
            name=spec.name,
            parameters=sum(view.size for view in runner.parameters),
            arrays=len(layout.names),
            dtype=layout.dtype.name,
            train_samples=len(next(iter(program.train.values()))),
            eval_samples=len(next(iter(program.eval.values()))) if program.eval else 0,
            steps=program.steps,
            steps_per_epoch=runner.sampler.steps_per_epoch,
            batch=program.batch,
            shards=program.shards,
            shard_samples=tuple(sorted(sizes, reverse=True)),
            workers=workers,
            shared_bytes=shared,
            worker_bytes=scratch,
            data_bytes=sum(a.nbytes for part in (program.train, program.eval) for a in part.values()),
        )
    finally:
        state.memory.close()


def _shard_sizes(program: Program) -> dict[int, tuple[int, int]]:
    """The numbers of samples that a shard has, each with a (step, shard) that has it: the first step and the last of
    an epoch hold them all."""
    sampler = program.sampler()
    last = min(program.steps, sampler.steps_per_epoch) - 1
    sizes: dict[int, tuple[int, int]] = {}
    for step in (0, last):
        for shard in range(min(sampler.batch_size(step), program.shards)):
            sizes.setdefault(len(sampler.indices(step, shard)), (step, shard))
    return sizes


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
