"""A whole training step of dtrain against PyTorch DistributedDataParallel on gloo, interleaved.

    python benchmarks/step.py [--workloads softmax svm ...] [--optimizer momentum|adam] [--workers 2] [--rounds 5]
                              [--quick] [--keep]

What is measured: gather of the batch from data in memory, forward, backward, all-reduce, update, and for dtrain the
global gradient norm and the records of every step (metrics.jsonl and the figures behind the Prometheus endpoint) as in
any run; float32, one thread per process, the same number of processes. dtrain's time is wall time at the coordinator,
from the release of a segment until its last step is recorded, so that it holds the coordinator's own work. PyTorch's is
taken around the loop in its slowest rank. PyTorch gets its batches by ``index_select`` from indices made beforehand, no
gradient norm and no log, gradients as views of the buckets, and the fastest of its optimizers (the plain one, foreach,
fused), which a trial before the first round chooses.

A run of each contestant goes on in segments, and a round times one segment of each, in turning order; the first is
not counted. Both start from the same weights and take the same batches: the losses of the first steps must agree and
the loss must have fallen in the end, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
from common import Ranks, describe_machine, median, microseconds, publish, table
from numpy.typing import NDArray

from dtrain.comm.memory import PHASES
from dtrain.comm.threads import one_blas_thread
from dtrain.data.sampler import permutation, steps_per_epoch
from dtrain.graph.tree import named_leaves
from dtrain.jobs.local import LocalLauncher
from dtrain.jobs.payload import program_payload
from dtrain.monitor.records import EvalRecord, MetricsLog, StepRecord
from dtrain.monitor.run_metrics import RunMetrics
from dtrain.nn import make_model, supervise
from dtrain.optim import make_rule, make_schedule
from dtrain.train.numerics import numerics_class
from dtrain.train.observer import Observer
from dtrain.train.program import Program
from dtrain.train.service import RunSettings, Service, max_workers

SEED = 0
CLASSES = 10
COMPARED_STEPS = 20
LOSS_TOLERANCE = 5e-4
"""Largest relative difference of a loss: float32 sums in another order, over twenty updates."""

QUICK = ("softmax", "mlp")
OPTIMIZERS = ("momentum", "adam")
VARIANTS = {"plain": {"foreach": False, "fused": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@dataclass(frozen=True)
class Workload:
    """Shapes of NUMBERS: a linear model if ``hidden`` is empty. ``segment`` and ``torch_segment`` are steps a round."""

    name: str
    features: int
    hidden: tuple[int, ...]
    loss: str
    batch: int
    lr: dict[str, float]
    segment: int
    torch_segment: int
    samples: int = 4096


WORKLOADS = {
    w.name: w
    for w in (
        Workload("softmax", 784, (), "softmax_cross_entropy", 128, {"momentum": 0.01, "adam": 1e-3}, 800, 150),
        Workload("svm", 3072, (), "hinge", 256, {"momentum": 1e-5, "adam": 1e-4}, 300, 100),
        Workload("mlp", 784, (256, 128), "softmax_cross_entropy", 128, {"momentum": 0.01, "adam": 1e-3}, 250, 100),
        Workload(
            "mlp-wide", 784, (1024, 1024, 1024), "softmax_cross_entropy", 256, {"momentum": 0.01, "adam": 1e-4}, 10, 10
        ),
    )
}


def make_data(workload: Workload) -> dict[str, NDArray[Any]]:
    """Normal samples, labelled by a random linear teacher so that there is something to learn."""
    random = np.random.Generator(np.random.Philox(key=[SEED, 77]))
    x = random.standard_normal((workload.samples, workload.features), dtype=np.float32)
    teacher = random.standard_normal((workload.features, CLASSES), dtype=np.float32)
    return {"x": x, "y": np.argmax(x @ teacher, axis=1).astype(np.int64)}


def make_program(workload: Workload, optimizer: str, shards: int, steps: int) -> Program:
    data = make_data(workload)
    if workload.hidden:
        model = make_model("mlp", hidden=workload.hidden, activation="relu")
    else:
        model = make_model("svm" if workload.loss == "hinge" else "softmax")
    functions = supervise(model, workload.loss, workload.features, CLASSES)
    return Program(
        init=functions.init,
        loss=functions.loss,
        metrics=None,
        train=data,
        eval={name: array[:1] for name, array in data.items()},
        rule=make_rule(optimizer),
        schedule=make_schedule("constant", lr=workload.lr[optimizer]),
        seed=SEED,
        batch=workload.batch,
        shards=shards,
        steps=steps,
        eval_every=workload.segment,
    )


@dataclass
class Segment:
    """One timed run of ``steps`` steps. ``phases`` are seconds per worker over the segment, in the order of PHASES.

    ``coordinator_seconds`` is the processor time of dtrain's coordinator.
    """

    steps: int
    seconds: float = 0.0
    coordinator_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    phases: NDArray[np.float64] | None = None

    @property
    def step_seconds(self) -> float:
        return self.seconds / self.steps


# --- dtrain -----------------------------------------------------------------------------------------------------------


class DtrainRun(Observer):
    """A run of dtrain that stands still between segments: it waits in the evaluation that ends each of them.

    While it waits its workers sleep. The evaluation, of one sample, lies outside of the segments.
    """

    def __init__(self, program: Program, workers: int, **settings: Any) -> None:
        """``program`` evaluates after each segment."""
        self._segment_steps = program.eval_every
        self._folder = tempfile.TemporaryDirectory()
        self._metrics = RunMetrics()
        self._log = MetricsLog(Path(self._folder.name, "metrics.jsonl"))
        self._go: queue.Queue[bool] = queue.Queue()
        self._done: queue.Queue[Segment | BaseException] = queue.Queue()
        self._current = Segment(self._segment_steps)
        self._phases = np.zeros((workers, len(PHASES)))
        self._start = self._start_cpu = 0.0
        self._evaluated_step = 0
        self._is_closing = False
        launcher = LocalLauncher(program_payload(program, max_workers(workers)))
        chosen = RunSettings(workers=workers, timeout_seconds=60.0, **settings)
        self._service = Service(program, chosen, launcher, numerics_class(), observer=self)
        self._thread = threading.Thread(target=self._run, name="dtrain", daemon=True)

    def segment(self) -> Segment:
        """Run the next segment."""
        if not self._thread.is_alive():
            self._thread.start()
        self._go.put(True)
        result = self._done.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """End the run, also in the middle."""
        self._service.request_stop()
        self._is_closing = True
        self._go.put(False)
        self._thread.join()
        self._log.close()
        self._folder.cleanup()

    def _run(self) -> None:
        try:
            self._wait()
            outcome = self._service.run()
            if outcome.error is not None:
                raise outcome.error
            self._done.put(RuntimeError("the run is over"))
        except BaseException as error:
            self._done.put(error)

    def _wait(self) -> None:
        if self._is_closing:  # a short segment may be over before the stop is seen
            return
        self._go.get()
        self._current, self._phases[:] = Segment(self._segment_steps), 0.0
        self._start, self._start_cpu = perf_counter(), thread_time()

    def generation(self, generation: int, members: tuple[int, ...], restarts: int) -> None:
        self._metrics.generation(generation, members, restarts)

    def steps(self, records: Sequence[StepRecord]) -> None:
        self._metrics.steps(records)
        for record in records:
            self._log.append(record)
        self.count(records)

    def count(self, records: Sequence[StepRecord]) -> None:
        """Take what the segment needs."""
        for record in records:
            self._current.losses.append(record.loss)
            for rank, phases in enumerate((record.phases or {}).values()):
                self._phases[rank] += [phases[name] for name in PHASES]
        if len(self._current.losses) == self._segment_steps:
            self._current.seconds = perf_counter() - self._start
            self._current.coordinator_seconds = thread_time() - self._start_cpu

    def evaluation(self, record: EvalRecord) -> None:
        if record.step == self._evaluated_step:
            return  # told again, by a worker that had no part in it
        self._evaluated_step = record.step
        if len(self._current.losses) != self._segment_steps:
            raise RuntimeError(f"{len(self._current.losses)} steps in a segment of {self._segment_steps}")
        self._current.phases = self._phases.copy()
        self._done.put(self._current)
        self._wait()

    def flush(self) -> None:
        self._log.flush()


# --- PyTorch ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begin:
    """Build the model of a workload once for each kind of optimizer."""

    workload: Workload
    optimizer: str


@dataclass(frozen=True)
class Run:
    """Go on with the model of ``variant`` for ``steps`` steps."""

    variant: str
    steps: int


class TorchRank:
    """One rank of the PyTorch side."""

    def __init__(self) -> None:
        self._models: dict[str, TorchModel] = {}

    def __call__(self, request: Begin | Run) -> Segment | None:
        if isinstance(request, Run):
            return self._models[request.variant].run(request.steps)
        data = make_data(request.workload)
        self._models = {name: TorchModel(request, name, data) for name in VARIANTS}
        return None


class TorchModel:
    """A model under DistributedDataParallel with its optimizer and its place in the data."""

    def __init__(self, request: Begin, variant: str, data: dict[str, NDArray[Any]]) -> None:
        import torch
        import torch.distributed as dist
        from torch.nn.functional import cross_entropy, multi_margin_loss
        from torch.nn.parallel import DistributedDataParallel

        self._torch, self._dist = torch, dist
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._workload = workload = request.workload
        sizes = (workload.features, *workload.hidden, CLASSES)
        layers: list[Any] = []
        for i in range(len(sizes) - 1):
            layers += [torch.nn.Linear(sizes[i], sizes[i + 1]), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        initial = dict(named_leaves(make_program(workload, request.optimizer, 1, 1).initial_parameters()))
        with torch.no_grad():
            for i, layer in enumerate(m for m in model if isinstance(m, torch.nn.Linear)):
                prefix = f"layers.{i}." if workload.hidden else ""
                layer.weight.copy_(torch.from_numpy(initial[f"{prefix}w"].T.copy()))
                layer.bias.copy_(torch.from_numpy(initial[f"{prefix}b"]))
        self._model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        options: dict[str, Any] = {"lr": workload.lr[request.optimizer], **VARIANTS[variant]}
        if request.optimizer == "momentum":
            self._optimizer: Any = torch.optim.SGD(model.parameters(), momentum=0.9, **options)
        else:
            self._optimizer = torch.optim.Adam(model.parameters(), **options)
        # PyTorch's margin loss is a mean over the classes, the lecture's a sum.
        self._loss: Callable[..., Any] = (
            cross_entropy if workload.loss != "hinge" else lambda s, y: multi_margin_loss(s, y) * CLASSES
        )
        self._x, self._y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
        self._step = 0

    def run(self, steps: int) -> Segment:
        torch, model, optimizer, loss_of, x, y = (
            self._torch, self._model, self._optimizer, self._loss, self._x, self._y,
        )  # fmt: skip
        batches = [self._indices(step) for step in range(self._step, self._step + steps)]
        losses = []
        self._dist.barrier()
        start = perf_counter()
        for indices in batches:
            loss = loss_of(model(x.index_select(0, indices)), y.index_select(0, indices))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        seconds = perf_counter() - start
        self._step += steps
        return Segment(steps, seconds, losses=torch.stack(losses).tolist())

    def _indices(self, step: int) -> Any:
        """This rank's samples of the global batch of ``step``, those that dtrain takes too."""
        workload = self._workload
        epoch, index = divmod(step, steps_per_epoch(workload.samples, workload.batch))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, permutation(SEED, epoch, workload.samples)
        share = workload.batch // self._world_size
        start = index * workload.batch + self._rank * share
        return self._torch.from_numpy(self._order[start : start + share].copy())


class TorchRun:
    """The PyTorch contestant: the kind of optimizer that is fastest in a trial, seen from the parent."""

    def __init__(self, ranks: Ranks, workload: Workload, optimizer: str) -> None:
        self._ranks, self._steps = ranks, workload.torch_segment
        ranks.ask(Begin(workload, optimizer))
        trial = max(2, self._steps // 4)
        trials: dict[str, list[float]] = {name: [] for name in VARIANTS}
        losses: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(3):
            for name in VARIANTS:
                segment = self._run(name, trial)
                trials[name].append(segment.step_seconds)
                losses[name] += segment.losses
        self.variant = min(VARIANTS, key=lambda name: median(trials[name][1:]))
        self.first_losses = losses[self.variant]

    def segment(self) -> Segment:
        return self._run(self.variant, self._steps)

    def _run(self, variant: str, steps: int) -> Segment:
        answers: list[Segment] = self._ranks.ask(Run(variant, steps))
        losses = np.mean([a.losses for a in answers], axis=0).tolist()
        return Segment(steps, max(a.seconds for a in answers), losses=losses)


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """The segments of each contestant by round; ``disagreement`` is the largest relative difference of the losses."""

    workload: Workload
    variant: str
    segments: dict[str, list[Segment]]
    disagreement: float

    def microseconds(self, name: str) -> str:
        return microseconds(median(s.step_seconds for s in self.segments[name]))

    def ratio(self, name: str) -> str:
        pairs = zip(self.segments[name], self.segments["torch"], strict=True)
        return f"{median(ours.step_seconds / theirs.step_seconds for ours, theirs in pairs):.2f}"

    def phases(self, name: str) -> list[str]:
        """µs per step of each phase, mean over the workers, what lies outside of them, and the coordinator's work."""
        rows = []
        for segment in self.segments[name]:
            assert segment.phases is not None
            means = segment.phases.mean(axis=0) / segment.steps
            outside = segment.step_seconds - means.sum()
            rows.append([*means, outside, segment.coordinator_seconds / segment.steps])
        return [microseconds(value) for value in np.median(rows, axis=0)]


def compare(ranks: Ranks, workload: Workload, optimizer: str, workers: int, rounds: int) -> Comparison:
    if workload.batch % workers:
        raise SystemExit(f"{workload.name}: a batch of {workload.batch} is not a multiple of {workers} workers")
    torch_run = TorchRun(ranks, workload, optimizer)
    steps = workload.segment * (rounds + 1)
    runs = {
        f"V={shards}": DtrainRun(make_program(workload, optimizer, shards, steps), workers) for shards in {8, workers}
    }
    contestants: dict[str, Callable[[], Segment]] = {n: r.segment for n, r in runs.items()}
    contestants["torch"] = torch_run.segment
    names = list(contestants)
    segments: dict[str, list[Segment]] = {name: [] for name in names}
    first: dict[str, list[float]] = {"torch": torch_run.first_losses}
    try:
        for turn in range(rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                segment = contestants[name]()
                if turn:
                    segments[name].append(segment)
                else:
                    first.setdefault(name, segment.losses)
    finally:
        for run in runs.values():
            run.close()
    count = min(COMPARED_STEPS, *(len(losses) for losses in first.values()))
    expected = np.array(first["torch"][:count])
    disagreement = 0.0
    for name in runs:
        difference = float(np.max(np.abs(np.array(first[name][:count]) / expected - 1.0)))
        disagreement = max(disagreement, difference)
        if not difference <= LOSS_TOLERANCE:
            raise SystemExit(
                f"{workload.name}: the losses of dtrain ({name}) and PyTorch differ by {difference:.1e}\n"
                f"dtrain  {first[name][:count]}\nPyTorch {first['torch'][:count]}"
            )
    for name in names:
        before, after = float(np.mean(first[name][:3])), float(np.mean(segments[name][-1].losses))
        if not after < before:
            raise SystemExit(f"{workload.name}: the loss of {name} did not fall: {before:g}, then {after:g}")
    return Comparison(workload, torch_run.variant, segments, disagreement)


def report(comparisons: list[Comparison], optimizer: str, workers: int, rounds: int) -> str:
    configurations = [n for n in comparisons[0].segments if n != "torch"]
    configurations.sort(key=lambda n: -int(n[2:]))
    times = table(
        ["workload", *[f"dtrain {n}, µs" for n in configurations], "PyTorch, µs", "its optimizer",
         *[f"{n} / PyTorch" for n in configurations], "losses differ by"],
        [
            [c.workload.name, *[c.microseconds(n) for n in configurations], c.microseconds("torch"), c.variant,
             *[c.ratio(n) for n in configurations], f"{c.disagreement:.0e}"]
            for c in comparisons
        ],
    )  # fmt: skip
    phases = table(
        ["workload", *PHASES, "outside", "coordinator"],
        [[f"{c.workload.name} {n}", *c.phases(n)] for c in comparisons for n in configurations],
    )
    return "\n".join(
        [
            f"# A training step, {workers} processes on one host, {optimizer}, float32",
            "",
            f"{describe_machine()}. Median of {rounds} interleaved rounds; V is the number of shards; a ratio below 1 "
            "means that dtrain is faster.",
            "",
            times,
            "",
            "Where dtrain's step goes, µs, mean over the workers. `outside` is the wall time that no worker accounts "
            "for, `coordinator` the processor time of the coordinator, beside the workers and not on a step's path.",
            "",
            phases,
        ]
    )


def quick(workload: Workload) -> Workload:
    """The same shapes, just enough steps to see that it runs and learns."""
    return replace(workload, samples=4 * workload.batch, segment=8, torch_segment=8)


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole training step against PyTorch DDP on gloo.")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), help="all, or with --quick two")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="momentum")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few steps and rounds: does it run, are the losses right?")
    parser.add_argument("--keep", action="store_true", help="write the tables to benchmarks/results")
    arguments = parser.parse_args()
    names, rounds = arguments.workloads or (QUICK if arguments.quick else list(WORKLOADS)), arguments.rounds
    workloads = [WORKLOADS[name] for name in names]
    if arguments.quick:
        workloads, rounds = [quick(w) for w in workloads], 1
    with one_blas_thread(), Ranks(arguments.workers, TorchRank()) as ranks:
        comparisons = [compare(ranks, w, arguments.optimizer, arguments.workers, rounds) for w in workloads]
    publish(
        f"step_{arguments.optimizer}",
        report(comparisons, arguments.optimizer, arguments.workers, rounds),
        arguments.keep,
    )


if __name__ == "__main__":
    main()
