"""What `dtrain replay` does: brings a run back to a step, and runs shards of that step again, every edge in sight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.threads import one_blas_thread
from dtrain.errors import CheckpointError, DtrainError, InputError
from dtrain.graph import Graph, Tensor, flatten, unflatten
from dtrain.graph.regions import Structural, part, reachable
from dtrain.graph.uses import gradients_by_use
from dtrain.jobs.build import build
from dtrain.jobs.in_process import InProcessLauncher
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import JobSpec
from dtrain.monitor.records import StepRecord, read_records
from dtrain.train.checkpoint import Checkpoint, CheckpointStore
from dtrain.train.introspection import shard_graph
from dtrain.train.manifest import step_name
from dtrain.train.numerics import numerics_class
from dtrain.train.observer import Observer
from dtrain.train.program import Program
from dtrain.train.service import RunSettings, Service


@dataclass(frozen=True, eq=False)
class Moment:
    """A run after ``step`` steps: its parameters, as the user's tree. ``source`` says where the replay began."""

    spec: JobSpec
    program: Program
    step: int
    parameters: Any
    source: str

    def shards(self) -> list[int]:
        """The shards of the next step that have samples."""
        size = self.program.sampler().batch_size(self.step)
        return list(range(min(size, self.program.shards)))


@dataclass(frozen=True, eq=False)
class Edge:
    """A value of a shard's graph and its gradient, that of the sum of the shard's losses; None where it has none."""

    number: int
    name: str
    line: str
    value: NDArray[Any]
    gradient: NDArray[Any] | None


class _Digests(Observer):
    """Keeps the digests of the steps that are run again."""

    def __init__(self) -> None:
        self.of_step: dict[int, str] = {}

    def steps(self, records: Sequence[StepRecord]) -> None:
        self.of_step |= {record.step: record.digest for record in records}


def moment(run: RunDirectory, step: int) -> Moment:
    """Bring a run back to where it had committed ``step`` steps, from its last checkpoint before that or its beginning.

    The steps in between are run again in this process and compared with the digests in metrics.jsonl. Raises
    InputError for a step that the run has not reached, and DtrainError where a step comes out otherwise than it did.
    """
    spec = run.read_job()
    program = build(spec)
    told = {r.step: r.digest for r, _ in read_records(run.metrics_file) if isinstance(r, StepRecord)}
    if step < 0 or (step and step - 1 not in told) or step >= program.steps:
        reached = max(told, default=-1) + 1
        raise InputError(
            f"--step {step}: the run has committed {reached} of {program.steps} steps; give one from 0 to "
            f"{min(reached, program.steps - 1)}"
        )
    start = _checkpoint(run, spec, step)
    begin = 0 if start is None else start.step
    source = "the beginning" if start is None else start.path.name
    with one_blas_thread():
        if begin == step and start is None:
            return Moment(spec, program, step, program.initial_parameters(), source)
        if start is not None and begin == step:
            return Moment(spec, program, step, _tree(program, start), source)
        digests = _Digests()
        shorter = replace(program, steps=step, eval_every=0)
        settings = RunSettings(workers=0, checkpoint_seconds=0.0, timeout_seconds=spec.timeout_seconds)
        outcome = Service(
            shorter, settings, InProcessLauncher(shorter), numerics_class(), restore=start, observer=digests
        ).run()
    if outcome.error is not None:
        raise outcome.error
    for done in range(begin, step):
        if told.get(done) != digests.of_step.get(done):
            raise DtrainError(
                f"replay: step {done} has come out otherwise than in the run, from {source} on; this machine may "
                "compute in another numerics class, or the data or the model have changed"
            )
    return Moment(spec, program, step, outcome.parameters, source)


def _tree(program: Program, checkpoint: Checkpoint) -> Any:
    """The parameters of a checkpoint as the user's tree."""
    initial = program.initial_parameters()
    stored = checkpoint.tensors["parameters"]
    return unflatten(flatten(initial)[1], [stored[name] for name in program.layout(initial).names])


def _checkpoint(run: RunDirectory, spec: JobSpec, step: int) -> Checkpoint | None:
    """The last valid checkpoint of at most ``step`` steps."""
    store = CheckpointStore(run.checkpoints, read_only=True)
    for kept in reversed([s for s in store.steps() if s <= step]):
        try:
            return store.load(run.checkpoints / step_name(kept), {"job": spec.digest()})
        except CheckpointError:
            continue
    return None


def replayed(moment: Moment, shard: int) -> Graph:
    """Record the loss of a shard at the moment, with its values."""
    if shard not in moment.shards():
        raise InputError(f"--shard {shard}: step {moment.step} has the shards 0 to {moment.shards()[-1]}")
    with np.errstate(all="ignore"):
        return shard_graph(moment.program, moment.parameters, moment.step, shard)


def edges(graph: Graph) -> list[Edge]:
    """The values of a graph in their order, constants left out, and their gradients."""
    nodes = [n for n in reachable(graph.outputs, (), lambda n: n.inputs) if not n.is_constant]
    parts: dict[int, dict[int, NDArray[Any]]] = {}  # of each node, by use: gradients add where it is used
    for output in graph.outputs:
        parts[output.index] = {-1: np.ones(output.shape, output.dtype)}
    with np.errstate(all="ignore"):
        uses, gradients = gradients_by_use(graph)
        for node in nodes:
            for place, source in enumerate(node.inputs):
                use = uses.get((node.index, place))
                if use is not None and use.index in gradients:
                    parts.setdefault(source.index, {})[use.index] = np.asarray(gradients[use.index].value)
    shown = [n for n in nodes if not isinstance(n.op, Structural) or n.op is part]
    found = []
    for number, node in enumerate(shown):
        terms = list(parts.get(node.index, {}).values())
        line = node.location if node.op else ""
        total = sum(terms[1:], terms[0]) if terms else None
        found.append(Edge(number, _name(node), line, np.asarray(node.value), total))
    return found


def _name(node: Tensor) -> str:
    return node.name if node.op is None else node.op.name


def table(found: Sequence[Edge]) -> str:
    """The edges, a line each: shape, L2 norm of the value and of the gradient, and the user's line."""
    lines = [f"{'edge':>4}  {'':<22} {'shape':<16} {'|value|':>11} {'|gradient|':>11}  line"]
    for each in found:
        shape = "×".join(map(str, each.value.shape)) or "scalar"
        norms = f"{_norm(each.value):>11} {_norm(each.gradient):>11}"
        lines.append(f"{each.number:>4}  {each.name[:22]:<22} {shape:<16} {norms}  {each.line}".rstrip())
    return "\n".join(lines)


def shown(found: Sequence[Edge], number: int) -> str:
    """The value and the gradient of one edge."""
    if not 0 <= number < len(found):
        raise InputError(f"--edge {number}: the shard has the edges 0 to {len(found) - 1}")
    edge = found[number]
    made = f", made at {edge.line}" if edge.line else ""
    gradient = "none" if edge.gradient is None else str(edge.gradient)
    return f"edge {number}: {edge.name}{made}\nvalue\n{edge.value}\ngradient\n{gradient}"


def _norm(array: NDArray[Any] | None) -> str:
    if array is None or array.dtype.kind not in "fc":
        return "" if array is None else str(array.dtype)
    return f"{float(np.linalg.norm(array.astype(complex if array.dtype.kind == 'c' else float).ravel())):.5g}"


def save(found: Mapping[int, Sequence[Edge]], path: Path) -> None:
    """Write all edges of the shards into an .npz: value.SHARD.EDGE and gradient.SHARD.EDGE."""
    arrays = {}
    for shard, each in found.items():
        for edge in each:
            arrays[f"value.{shard}.{edge.number}"] = edge.value
            if edge.gradient is not None:
                arrays[f"gradient.{shard}.{edge.number}"] = edge.gradient
    try:
        with open(path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"--save: {path} cannot be written: {error.strerror}") from None
