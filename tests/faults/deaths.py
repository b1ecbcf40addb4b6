"""A bomb that travels with the program into the workers and kills or stops one of them within a phase, once."""

from __future__ import annotations

import os
import signal
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.comm.threads import one_blas_thread
from dtrain.jobs.build import build
from dtrain.jobs.local import LocalLauncher
from dtrain.jobs.payload import program_payload
from dtrain.train.numerics import numerics_class
from dtrain.train.observer import Observer
from dtrain.train.service import RunSettings, Service, max_workers

STEP = 5


@dataclass(frozen=True)
class Bomb:
    """Stands where the metrics of a program are; being unpickled in a worker plants it there."""

    phase: str
    rank: int
    fuse: str  # this file is made by the one worker that dies
    metrics: Any

    def __call__(self, params, batch):
        return self.metrics(params, batch)

    def __reduce__(self):
        return plant, (self.phase, self.rank, self.fuse, self.metrics)


def plant(phase: str, rank: int, fuse: str, metrics: Any) -> Bomb:
    """Put a death into this process: at step STEP, on this rank, in the middle of this phase."""
    from dtrain.comm.reduce import SliceSum
    from dtrain.comm.rows import RowSum
    from dtrain.comm.shard_sums import ShardSums
    from dtrain.train import update as train_update
    from dtrain.train.row_update import RowChunks
    from dtrain.train.shard import ShardRunner
    from dtrain.train.together import Together
    from dtrain.train.update import SliceUpdate, fold
    from dtrain.train.worker import Member

    here: dict[str, int] = {}

    def die() -> None:
        if (here["step"], here["rank"]) == (STEP, rank):
            try:
                os.close(os.open(fuse, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGSTOP if phase.endswith("stop") else signal.SIGKILL)

    run, gather, add, update = Member.run, ShardRunner.gather, SliceSum.run, SliceUpdate._update
    add_rows, put_back = RowSum.run, RowChunks.put_back

    def noted_run(self, step, shards, *held):
        here.update(step=step, rank=self.rank, shards=0, last=-1, done=0)
        return run(self, step, shards, *held)

    def deadly_gather(self, step, shard):
        here["shards"] += 1
        if phase == "gradients" and here["shards"] == 3:  # two shards are done, and are kept
            die()
        return gather(self, step, shard)

    hand_in, stretch = ShardSums.hand_in, Together._run

    def deadly_hand_in(self, number, shard, value):
        place = {"forward": 1, "forward stop": 1, "backward": len(self.values) - 1}.get(phase)
        if number == place and here["last"] != number:
            here["last"] = number  # the rank's first shard; its second one does not come to hand in anything
        elif number == place:
            die()
        return hand_in(self, number, shard, value)

    def deadly_stretch(self, stretches, number):
        seconds = stretch(self, stretches, number)
        if phase == "done" and number == len(self._runner.sums.values):
            here["done"] += 1
            if here["done"] == 3:  # two of its four shards are done, and are kept
                die()
        return seconds

    def deadly_sum(self, present, squares):
        if phase == "sum" and (here["step"], here["rank"]) == (STEP, rank):
            self._total[: self._total.size // 2] = np.nan  # a sum that is half done
            die()
        return add(self, present, squares)

    def deadly_update(self, start, step, decision):
        if phase == "update" and (here["step"], here["rank"]) == (STEP, rank):
            rule = self._settings.rule

            class HalfDone(type(rule)):
                def update(self, parameter, gradient, state, coefficients, scratch):
                    rule.update(parameter, gradient, state, coefficients, scratch)
                    half = parameter.size // 2
                    parameter[half:] = np.nan
                    for block in state:
                        block[:half] = np.nan
                    die()
                    raise AssertionError("should be dead")

            self._settings = replace(self._settings, rule=HalfDone(**vars(rule)))
        if phase == "fold" and (here["step"], here["rank"]) == (STEP, rank):
            train_update.fold = half_done_fold
        return update(self, start, step, decision)

    def half_done_fold(running, total, samples, momentum, scratch):
        fold(running, total, samples, momentum, scratch)
        running[: running.size // 2] = np.nan
        die()
        raise AssertionError("should be dead")

    ShardSums.hand_in, Together._run = deadly_hand_in, deadly_stretch  # type: ignore[method-assign]

    def deadly_row_sum(self, present, squares):
        if phase == "row sum" and (here["step"], here["rank"]) == (STEP, rank):
            group = self._layout.groups[0]
            self._memory.total[group.lo : group.lo + 500] = np.nan
            squares[-3:] = np.nan
            die()
        return add_rows(self, present, squares)

    def deadly_put_back(self, chunk):
        if phase == "rows" and (here["step"], here["rank"]) == (STEP, rank):
            number, ids, *_ = self._chunks[chunk]
            for live in self._live[number]:
                live[ids[len(ids) // 2 :]] = np.nan
            die()
        return put_back(self, chunk)

    RowSum.run, RowChunks.put_back = deadly_row_sum, deadly_put_back  # type: ignore[method-assign]
    Member.run, ShardRunner.gather, SliceSum.run, SliceUpdate._update = (  # type: ignore[method-assign]
        noted_run,
        deadly_gather,
        deadly_sum,
        deadly_update,
    )
    return Bomb(phase, rank, fuse, metrics)


def run(spec, phase: str, rank: int, workers: int = 2, observer: Observer | None = None, **settings: Any):
    """Train with the bomb planted; return the outcome and whether it went off."""
    with tempfile.TemporaryDirectory() as folder:
        fuse = str(Path(folder, "fuse"))
        program = build(spec)
        program = replace(program, metrics=Bomb(phase, rank, fuse, program.metrics))
        launcher = LocalLauncher(program_payload(program, max_workers(workers)))
        with one_blas_thread():
            settings = {"checkpoint_seconds": 0.0, **settings}
            service = Service(program, RunSettings(workers, **settings), launcher, numerics_class(), observer=observer)
            outcome = service.run()
        return outcome, os.path.exists(fuse)
