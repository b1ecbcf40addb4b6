"""A recommender whose tables have gradients of rows, against the same with dense gradients, here and in PyTorch.

    python benchmarks/tables.py [--workers 2] [--rounds 5] [--rows 10000] [--quick] [--keep]

The model is `dlrm` of 26 tables, the data `clicks`, the rule Adagrad, for which rows and dense gradients give the same
parameters. PyTorch trains it under DistributedDataParallel on gloo, with ``Embedding(sparse=True)`` and without; the 26
tables are one Embedding, as they are in dtrain, which is faster than 26. What is measured, and how, is as in `step.py`:
all start from the same weights and take the same batches, and the losses of the first steps must agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from common import Ranks, describe_machine, median, microseconds, publish, table
from step import COMPARED_STEPS, LOSS_TOLERANCE, SEED, DtrainRun, Segment

from dtrain.comm.threads import one_blas_thread
from dtrain.data import make_source
from dtrain.data.sampler import permutation, steps_per_epoch
from dtrain.graph.tree import map_leaves
from dtrain.nn import make_model, supervise
from dtrain.nn.models import DLRM
from dtrain.optim import make_rule, make_schedule
from dtrain.train.program import Program

BATCH, LR, FEATURES = 128, 0.02, 13
EPS = 1e-10


@dataclass(frozen=True)
class Job:
    """The sizes of a comparison; a segment is what is timed in a round."""

    rows: int
    samples: int
    segment: int

    @property
    def model(self) -> DLRM:
        model = make_model("dlrm", rows=self.rows)
        assert isinstance(model, DLRM)
        return model

    def data(self) -> dict[str, Any]:
        return make_source("clicks", rows=self.rows, samples=self.samples, held_out=0).train

    def program(self, is_dense: bool, shards: int, segments: int) -> Program:
        functions = supervise(self.model, None, FEATURES, 2)
        data = self.data()
        return Program(
            init=lambda rng: map_leaves(np.array, functions.init(rng)) if is_dense else functions.init(rng),
            loss=functions.loss,
            metrics=None,
            train=data,
            eval={name: array[:1] for name, array in data.items()},
            rule=make_rule("adagrad", eps=EPS),
            schedule=make_schedule("constant", lr=LR),
            seed=SEED,
            batch=BATCH,
            shards=shards,
            steps=self.segment * segments,
            eval_every=self.segment,
        )


@dataclass(frozen=True)
class Request:
    """Run ``steps`` more steps of the job with sparse or dense gradients; the first request makes the model."""

    job: Job
    is_sparse: bool
    steps: int


class TorchRank:
    """One rank of the PyTorch side."""

    def __init__(self) -> None:
        self._models: dict[bool, TorchModel] = {}

    def __call__(self, request: Request) -> Segment:
        if request.is_sparse not in self._models:
            self._models[request.is_sparse] = TorchModel(request.job, request.is_sparse)
        return self._models[request.is_sparse].run(request.steps)


class TorchModel:
    """The model under DistributedDataParallel with its optimizer and its place in the data."""

    def __init__(self, job: Job, is_sparse: bool) -> None:
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        initial, options = job.program(False, 1, 1).initial_parameters(), job.model

        class Recommender(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                rows = torch.from_numpy(np.array(initial["tables"]))
                self.rows = torch.nn.Embedding.from_pretrained(rows, freeze=False, sparse=is_sparse)
                self.bottom, self.top = perceptron(initial["bottom"], True), perceptron(initial["top"], False)
                self.starts = torch.arange(options.tables) * options.rows
                self.first, self.second = torch.tril_indices(options.tables + 1, options.tables + 1, -1)

            def forward(self, x: Any, ids: Any) -> Any:
                x = self.bottom(x)
                vectors = torch.cat([x[:, None], self.rows(ids + self.starts)], dim=1)
                products = torch.bmm(vectors, vectors.transpose(1, 2))
                return self.top(torch.cat([x, products[:, self.first, self.second]], dim=1))[:, 0]

        def perceptron(layers: list[Any], ends_with_relu: bool) -> Any:
            made: list[Any] = []
            for layer in layers:
                linear = torch.nn.Linear(*layer["w"].shape)
                with torch.no_grad():
                    linear.weight.copy_(torch.from_numpy(layer["w"].T.copy()))
                    linear.bias.copy_(torch.from_numpy(layer["b"]))
                made += [linear, torch.nn.ReLU()]
            return torch.nn.Sequential(*(made if ends_with_relu else made[:-1]))

        self._torch, self._dist, self._job = torch, dist, job
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        model = Recommender()
        self._model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._optimizer = torch.optim.Adagrad(model.parameters(), lr=LR, eps=EPS)
        self._loss = torch.nn.functional.binary_cross_entropy_with_logits
        self._data = {name: torch.from_numpy(np.array(array)) for name, array in job.data().items()}
        self._data["y"] = self._data["y"].float()
        self._step = 0

    def run(self, steps: int) -> Segment:
        batches = [self._indices(step) for step in range(self._step, self._step + steps)]
        losses = []
        self._dist.barrier()
        start = perf_counter()
        for indices in batches:
            x, ids, y = (self._data[name].index_select(0, indices) for name in ("x", "ids", "y"))
            loss = self._loss(self._model(x, ids), y)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach())
        seconds = perf_counter() - start
        self._step += steps
        return Segment(steps, seconds, losses=self._torch.stack(losses).tolist())

    def _indices(self, step: int) -> Any:
        """This rank's samples of the global batch of ``step``, those that dtrain takes too."""
        epoch, index = divmod(step, steps_per_epoch(self._job.samples, BATCH))
        share = BATCH // self._world_size
        start = index * BATCH + self._rank * share
        return self._torch.from_numpy(permutation(SEED, epoch, self._job.samples)[start : start + share].copy())


def compare(ranks: Ranks, job: Job, workers: int, rounds: int) -> dict[str, list[Segment]]:
    """The segments of each contestant by round."""

    def torch_run(is_sparse: bool) -> Callable[[], Segment]:
        def segment() -> Segment:
            answers: list[Segment] = ranks.ask(Request(job, is_sparse, job.segment))
            losses = np.mean([a.losses for a in answers], axis=0).tolist()
            return Segment(job.segment, max(a.seconds for a in answers), losses=losses)

        return segment

    programs = (
        job.program(False, 8, rounds + 1),
        job.program(False, workers, rounds + 1),
        job.program(True, 8, rounds + 1),
    )
    runs = {name: DtrainRun(program, workers) for name, program in zip(NAMES, programs, strict=False)}
    contestants = {**{n: r.segment for n, r in runs.items()}, NAMES[3]: torch_run(True), NAMES[4]: torch_run(False)}
    segments: dict[str, list[Segment]] = {name: [] for name in NAMES}
    try:
        for turn in range(rounds + 1):
            for name in NAMES[turn % len(NAMES) :] + NAMES[: turn % len(NAMES)]:
                segments[name].append(contestants[name]())
    finally:
        for run in runs.values():
            run.close()
    expected = np.array(segments[NAMES[-1]][0].losses[:COMPARED_STEPS])
    for name in NAMES:
        found = np.array(segments[name][0].losses[:COMPARED_STEPS])
        if not np.max(np.abs(found / expected - 1.0)) <= LOSS_TOLERANCE:
            raise SystemExit(f"the losses of {name} and {NAMES[-1]} differ:\n{found}\n{expected}")
    return {name: of[1:] for name, of in segments.items()}


NAMES = ("dtrain, rows", "dtrain, rows, V=W", "dtrain, dense", "PyTorch, sparse=True", "PyTorch, dense")


def report(segments: dict[str, list[Segment]], job: Job, workers: int, rounds: int) -> str:
    ours = segments[NAMES[0]]
    rows = []
    for name, of in segments.items():
        ratio = median(a.step_seconds / b.step_seconds for a, b in zip(ours, of, strict=True))
        rows.append([name, microseconds(median(s.step_seconds for s in of)), f"{ratio:.2f}"])
    return "\n".join(
        [
            f"# A step of a recommender, {workers} processes on one host, Adagrad, float32",
            "",
            f"{describe_machine()}. 26 tables of {job.rows:,} rows of 16, batch {BATCH}, V=8 unless told. Median of "
            f"{rounds} interleaved rounds; a ratio below 1 means that dtrain with gradients of rows is faster.",
            "",
            table(["", "step, µs", f"{NAMES[0]} / this"], rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A recommender with gradients of rows and with dense ones.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="few steps and rounds: does it run, are the losses right?")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/results")
    arguments = parser.parse_args()
    job, rounds = Job(arguments.rows, 32 * BATCH, 50), arguments.rounds
    if arguments.quick:
        job, rounds = replace(job, rows=200, segment=20), 1
    with one_blas_thread(), Ranks(arguments.workers, TorchRank()) as ranks:
        segments = compare(ranks, job, arguments.workers, rounds)
    publish("tables", report(segments, job, arguments.workers, rounds), arguments.keep)


if __name__ == "__main__":
    main()
