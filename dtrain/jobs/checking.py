"""What `dtrain check` does: the gradient of a job's loss by every parameter, against differences, and the sum of the
workers' gradients against that of the whole batch in one piece; all in float64."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.rows import dense_tables
from dtrain.comm.threads import one_blas_thread
from dtrain.graph import (
    CheckReport,
    Graph,
    Tensor,
    backward,
    check_grads,
    flatten,
    named_leaves,
    step_context,
    unflatten,
)
from dtrain.graph.check import ArgumentCheck
from dtrain.graph.ops.shards import sum_over_shards_
from dtrain.graph.regions import replay
from dtrain.graph.tensor import recording
from dtrain.jobs.backend import make_launcher
from dtrain.jobs.build import build
from dtrain.jobs.payload import spec_payload
from dtrain.jobs.spec import JobSpec, OptimizerSpec
from dtrain.train.numerics import numerics_class
from dtrain.train.program import Program
from dtrain.train.service import RunSettings, Service
from dtrain.train.shard import Batch, called, summed

ENTRIES = 3
"""Entries of each parameter that are checked alone."""
_DIFFERENCES, _SUMS = 1e-4, 1e-7  # the largest relative errors that pass


@dataclass(frozen=True)
class SumCheck:
    """The sum of the workers' gradients against the gradient of the whole batch: the worst parameter."""

    workers: int
    shards: int
    samples: int
    parameter: str
    relative_error: float
    reference: str

    @property
    def band(self) -> str:
        """The reading of the relative error, in words."""
        return "right" if self.relative_error <= _SUMS else "wrong"


@dataclass(frozen=True)
class JobCheck:
    """Both parts of the check."""

    gradients: CheckReport
    sums: SumCheck

    @property
    def is_right(self) -> bool:
        """Whether nothing is off; where a kink lies between two points, their difference proves nothing."""
        return self.gradients.relative_error <= _DIFFERENCES and self.sums.relative_error <= _SUMS

    def plain(self) -> dict[str, Any]:
        """All figures as plain values."""
        rows = [{**asdict(c), "name": _name(c), "band": c.band} for c in self.gradients.arguments]
        return {"right": self.is_right, "gradients": rows, "all_reduce": {**asdict(self.sums), "band": self.sums.band}}

    def table(self) -> str:
        """The report as lines: parameter, relative error, method, its reading, and the kinks crossed."""
        rows = []
        for found in self.gradients.arguments:
            kinks = f"; kinks crossed: {', '.join(found.kinks)}" if found.kinks else ""
            rows.append((_name(found), f"{found.relative_error:.1e}", found.method, found.band + kinks))
        s = self.sums
        worst = (
            ""
            if s.band == "right"
            else f" in {s.parameter}: the sum, or a loss of a sample that others of its shard change"
        )
        sizes = f"; {s.samples} samples in {s.shards} shards"
        rows.append((f"sum of {s.workers} workers", f"{s.relative_error:.1e}", s.reference, s.band + worst + sizes))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


def check_job(spec: JobSpec, workers: int = 2) -> JobCheck:
    """Check the loss of a job at its initial parameters. Finding an error raises nothing.

    For each parameter of the first shard: the derivative along a random direction, which depends on all elements, and
    a few elements alone. Then one step by so many local processes, on a batch that the shards do not divide.
    """
    spec = _in_float64(spec)
    program = build(spec)
    indices = program.sampler().indices(0, 0)
    model = _Model(program)

    def loss(learnt: Any) -> Any:
        return np.sum(model.loss(learnt, model.batch(indices), 0))

    gradients = check_grads(loss, [model.learnt], tolerance=np.inf, entries=ENTRIES)
    return JobCheck(gradients, _check_sums(spec, program, model, workers))


def _in_float64(spec: JobSpec) -> JobSpec:
    """The job as one step in float64 that changes nothing, on a batch that its shards do not divide."""
    samples = min(spec.batch, len(next(iter(build(spec).train.values()))))
    shards = max(2, spec.shards)
    changed = {
        "dtype": "float64",
        "shards": shards,
        "batch": samples - (samples > 1 and samples % shards == 0),
        "epochs": None,
        "steps": 1,
        "optimizer": OptimizerSpec(name="sgd", lr=0.0),
    }
    return spec.model_copy(update=changed)


class _Model:
    """The loss of a program as a function of the parameters that are learnt, by name."""

    def __init__(self, program: Program) -> None:
        self._program = program
        parameters = program.initial_parameters()
        self._leaves, self._structure = flatten(parameters)
        self._names = [name for name, _ in named_leaves(parameters)]
        self.running = program.layout(parameters).momenta
        pairs = enumerate(zip(self._names, self._leaves, strict=True))
        self.learnt = {n: np.asarray(a, np.float64) for i, (n, a) in pairs if i not in self.running}

    def batch(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """These samples, in float64."""
        batch = Batch(self._program.train, len(indices), self._program.dtype)
        batch.fill(indices)
        return batch.arrays

    def loss(self, learnt: dict[str, Any], batch: dict[str, Any], shard: int) -> Any:
        """What the user's loss returns, with the same dropout at every call."""
        leaves = [learnt.get(n, a) for n, a in zip(self._names, self._leaves, strict=True)]
        with step_context(self._program.seed, 0, shard, training=True):
            return called("loss", self._program.loss, unflatten(self._structure, leaves), batch)

    def gradient(self, indices: NDArray[np.int64], shard: int) -> tuple[list[NDArray[Any]], Graph]:
        """The gradient of the sum of the losses of these samples, and what was recorded for it."""
        graph, batch = Graph(), self.batch(indices)
        inputs = {n: graph.input(a, n) for n, a in self.learnt.items()}
        samples = {k: graph.input(a, f"batch.{k}") for k, a in batch.items()}
        with recording(graph):
            loss = summed(self.loss(inputs, samples, shard), len(indices))
            found = backward([loss], None, list(inputs.values()))
        return [np.asarray(g.value) for g in found], graph

    def gradient_together(self, shards: list[NDArray[np.int64]]) -> list[NDArray[Any]]:
        """The gradient of the sum of the losses of all shards, in one graph in which the sums over shards are sums."""
        graph = Graph()
        inputs = {n: graph.input(a, n) for n, a in self.learnt.items()}
        with recording(graph):
            recorded = []
            for shard, indices in enumerate(shards):
                graph.key, graph.random_places = None, 0  # each shard draws its own numbers
                samples = {k: graph.input(a, f"batch.{k}") for k, a in self.batch(indices).items()}
                start = len(graph.nodes)
                loss = summed(self.loss(inputs, samples, shard), len(indices))
                recorded.append((graph.nodes[start : loss.index + 1], loss))
            made: list[dict[int, Tensor]] = [{} for _ in shards]
            ends = [[i for i, n in enumerate(nodes) if n.op is sum_over_shards_] for nodes, _ in recorded]
            begun = [0] * len(shards)
            for number in range(len(ends[0])):
                terms, places = [], []
                for shard, (nodes, _) in enumerate(recorded):
                    place = nodes[ends[shard][number]]
                    _record_again(nodes[begun[shard] : ends[shard][number]], made[shard], graph)
                    begun[shard] = ends[shard][number] + 1
                    terms.append(made[shard].get(place.inputs[0].index, place.inputs[0]))
                    places.append(place)
                total = sum(terms[1:], terms[0])
                for again, place in zip(made, places, strict=True):
                    again[place.index] = total
            losses = []
            for shard, (nodes, loss) in enumerate(recorded):
                _record_again(nodes[begun[shard] :], made[shard], graph)
                losses.append(made[shard][loss.index])
            found = backward(losses, None, list(inputs.values()))
        return [np.asarray(g.value) for g in found]


def _record_again(nodes: list[Tensor], made: dict[int, Tensor], graph: Graph) -> None:
    """Record nodes once more with what is ``made`` in the place of what it stands for, and add them to it."""
    again = replay(nodes, made, graph)
    made.update({node.index: new for node, new in zip(nodes, again, strict=True)})


def _check_sums(spec: JobSpec, program: Program, model: _Model, workers: int) -> SumCheck:
    """Compare what the workers sum up with the gradient of the whole batch. A loss with dropout or batch norm is not
    the same in one piece: there the shards are added one after the other, or recorded beside each other if they sum
    something in the middle."""
    launcher = make_launcher(program, workers, None, lambda rows: spec_payload(spec, rows))
    with one_blas_thread():
        service = Service(
            program, RunSettings(workers=workers, checkpoint_seconds=0.0), launcher, numerics_class(), observer=None
        )
        total = service.memory.total
        outcome = service.run()
    if outcome.error is not None:
        raise outcome.error
    layout, sampler = service.memory.dimensions.layout, program.sampler()
    shards = [indices for s in range(program.shards) if len(indices := sampler.indices(0, s))]
    tables = dense_tables(service.memory, total, range(len(shards)))
    found = [tables.get(i, view) for i, view in enumerate(layout.views(total)) if i not in layout.momenta]
    expected, graph = model.gradient(np.concatenate(shards), 0)
    reference = "batch in one piece"
    is_of_shards = graph.key is not None or bool(model.running)
    if is_of_shards and any(node.op is sum_over_shards_ for node in graph.nodes):
        expected, reference = model.gradient_together(shards), "shards in one graph"
    elif is_of_shards:
        parts = [model.gradient(indices, s)[0] for s, indices in enumerate(shards)]
        expected, reference = [sum(p[1:], p[0]) for p in zip(*parts, strict=True)], "shards one by one"
    whole = np.sqrt(sum(float(np.sum(g * g)) for g in expected))
    errors = {}
    for name, a, b in zip(model.learnt, found, expected, strict=True):
        scale = max(float(np.linalg.norm(b)), 1e-3 * float(whole), 1e-30)
        errors[name] = float(np.linalg.norm(a - b)) / scale
    worst = max(errors, key=errors.__getitem__)
    samples = sum(map(len, shards))
    return SumCheck(workers, program.shards, samples, worst, errors[worst], reference)


def _name(found: ArgumentCheck) -> str:
    """The parameter, with the entry if it is one: ``argument 0 (w)[1, 2]`` is w[1, 2]."""
    name, _, entry = found.name.partition("(")[2].rpartition(")")
    return name + entry
