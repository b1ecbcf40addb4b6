"""One shard of one step: gather its samples, run the model forward and backward, leave loss and gradient in place.

A shard is the atom of arithmetic: what happens here depends on (seed, step, shard) and on the parameters, never on a
rank. The graph is traced once per number of samples; its plan is bound once per shard, to that shard's gradient buffer.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import Layout
from dtrain.comm.memory import RunMemory
from dtrain.comm.reduce import ShardSquare
from dtrain.comm.rows import square_of
from dtrain.comm.shard_sums import ShardSums, Value
from dtrain.data.sampler import take_into
from dtrain.errors import DtrainError, InputError, ShapeError
from dtrain.graph import Arena, Bound, Graph, Plan, Tensor, backward, flatten, step_context, step_key, unflatten
from dtrain.graph.ops.shards import sum_over_shards_
from dtrain.graph.tensor import recording
from dtrain.train.program import Program
from dtrain.train.reports import reported
from dtrain.train.tables import ShardRows, uses_of_tables, with_rows

_LINE = re.compile(r"\S:\d+")  # where an error says itself which line it is about
_DTRAIN, _NUMPY = Path(__file__).parents[1], Path(np.__file__).parent
_LOSS = -1  # what a run in parts reports when the loss is there
EVAL_CHUNK = 256
"""Samples of an evaluation chunk: fixed, so that the figures do not depend on the number of workers."""


class Batch:
    """Buffers for ``size`` samples of every array of a data set; floats are held in the job's dtype."""

    def __init__(self, sources: Mapping[str, NDArray[Any]], size: int, dtype: np.dtype[Any]) -> None:
        raw = {k: np.empty((size, *a.shape[1:]), a.dtype) for k, a in sources.items()}
        self.arrays = {k: a.astype(dtype if a.dtype.kind == "f" else a.dtype, copy=False) for k, a in raw.items()}
        self._takes = [take_into(sources[k], a) for k, a in raw.items()]
        self._casts = [(raw[k], a) for k, a in self.arrays.items() if a is not raw[k]]

    def fill(self, indices: NDArray[np.int64]) -> None:
        """Gather these samples, which exist, into the buffers; nothing is allocated."""
        for take in self._takes:
            take(indices)
        for raw, converted in self._casts:
            np.copyto(converted, raw, casting="same_kind")


class _Signature:
    """The traced graph of a shard with a given number of samples, and its plan bound to each shard's memory.

    ``values`` are those that it hands in to sums over shards. With them, each shard has a signature of its own, since
    several are under way at a time; they share the plan.
    """

    def __init__(self, runner: ShardRunner, size: int, step: int, shard: int) -> None:
        program = runner.program
        self._runner = runner
        self._size = size
        self.batch = Batch(program.train, size, program.dtype)
        self.batch.fill(runner.sampler.indices(step, shard))
        graph = Graph()
        parameters = [graph.input(v, n) for n, v in zip(runner.layout.names, runner.parameters, strict=True)]
        layout = runner.layout
        learnt = [p for i, p in enumerate(parameters) if i not in layout.momenta]
        dense = [p for i, p in enumerate(parameters) if i not in layout.momenta and i not in layout.tables]
        samples = {k: graph.input(a, f"batch.{k}") for k, a in self.batch.arrays.items()}
        with step_context(program.seed, step, shard, training=True) as context, recording(graph):
            context.reports, context.samples = [], runner.sampler.batch_size(step)
            state = np.random.get_state(legacy=False)
            per_sample = called("loss", program.loss, unflatten(runner.structure, parameters), samples)
            if not _is_same(state, np.random.get_state(legacy=False)):
                raise InputError(
                    "loss: it draws from np.random, which is another number on every worker; use dtrain.nn.dropout, or "
                    "dtrain.graph.random_words for other random numbers"
                )
            self._loss = summed(per_sample, size)
            uses = uses_of_tables(layout, parameters, self._loss)
            gradients = iter(backward([self._loss], None, [*dense, *(u.rows for u in uses)]))
            if not _depends(self._loss, learnt):
                raise InputError("loss: its value does not depend on params; there is nothing to learn")
            running = reported(layout, parameters, context.reports, size)
            self._results = [i for i in range(len(parameters)) if i not in layout.tables]
            results = [running[i] if i in running else next(gradients) for i in self._results]
            results = [r if r.dtype == program.dtype else r.astype(program.dtype) for r in (*results, *gradients)]
            results += [u.ids.astype(np.int64) for u in uses]
        key = [] if graph.key is None else [graph.key]
        self._plan = Plan([*parameters, *samples.values(), *key], [self._loss, *results])
        self.forward_calls = self._plan.finished_at[0]
        graph.forget_values()
        self._uses = uses
        self._sums_at = [i for i, s in enumerate(self._plan.steps) if s.op is sum_over_shards_]
        nodes = [self._plan.steps[i].node for i in self._sums_at]
        self.values = tuple(Value(n.shape, n.dtype, n.location) for n in nodes)
        self._of_shard: dict[int, _Signature] = {}
        self._has_key = graph.key is not None
        self._take_memory()

    def _take_memory(self) -> None:
        program = self._runner.program
        self.key = step_key(program.seed, 0, 0)
        inputs = [*self._runner.parameters, *self.batch.arrays.values()]
        self._inputs = [*inputs, self.key] if self._has_key else inputs
        self._rows = ShardRows(self._runner.memory, self._uses)
        self._arena = Arena(self._plan.arena_bytes)
        self.loss = np.empty((), self._loss.dtype)
        self._bound: dict[int, Bound] = {}

    def of_shard(self, shard: int) -> _Signature:
        """The same with memory for this shard alone."""
        found = self._of_shard.get(shard)
        if found is None:
            found = self if not self._of_shard else copy(self)
            if found is not self:
                program = self._runner.program
                found.batch = Batch(program.train, self._size, program.dtype)
                found._take_memory()
            self._of_shard[shard] = found
        return found

    def run(
        self, shard: int, parts: Sequence[tuple[int, int]] = (), report: Callable[[int], None] = lambda word: None
    ) -> float:
        """Run forward and backward, in parts as in `Bound.run_in_parts`; return when the loss was there."""
        lost_at = 0.0

        def arrived(word: int) -> None:
            nonlocal lost_at
            if word == _LOSS:
                lost_at = perf_counter()
            else:
                report(word)

        self.bind(shard).run_in_parts(sorted([*parts, (self.forward_calls, _LOSS)]), arrived)
        return lost_at

    @property
    def finished_at(self) -> tuple[int, ...]:
        """For each parameter, after how many calls its gradient is there; 0 for tables."""
        found = dict(zip(self._results, self._plan.finished_at[1:], strict=False))
        return tuple(found.get(i, 0) for i in range(len(self._runner.layout.names)))

    def bind(self, shard: int) -> Bound:
        """Return the calls that run this shard: into its own gradient buffer, and the sum of its losses into `loss`."""
        bound = self._bound.get(shard)
        if bound is None:
            runner = self._runner
            views = runner.layout.views(runner.memory.gradients[shard])
            outputs = [self.loss, *(views[i] for i in self._results), *self._rows.gradients, *self._rows.ids]
            bound = self._plan.bind(self._inputs, outputs, self._arena)
            for number, (_, value, out) in enumerate(self.places(bound)):
                bound.calls[self._sums_at[number]] = partial(runner.sums.meet, number, shard, value, out)
            if runner.layout.tables:
                bound = with_rows(bound, self._rows, shard)
            self._bound[shard] = bound
        return bound

    def places(self, bound: Bound) -> list[tuple[int, NDArray[Any], NDArray[Any]]]:
        """For each sum over shards: which call makes it, the value that is handed in, and where the sum goes."""
        steps = [(i, self._plan.steps[i]) for i in self._sums_at]
        return [(i, bound.arrays[s.inputs[0].position], bound.arrays[s.out.position]) for i, s in steps]


def _listed(signature: _Signature) -> str:
    """The sums over shards of a loss, in words."""
    return ", ".join(f"{v.dtype}{list(v.shape)} at {v.line}" for v in signature.values) or "none"


def called(name: str, function: Callable[[Any, Any], Any], parameters: Any, samples: Any) -> Any:
    """Call a function of the user's; what goes wrong in it is theirs, told with the innermost line of their code."""
    try:
        return function(parameters, samples)
    except DtrainError as error:
        if _LINE.search(str(error)):
            raise
        raise type(error)(told(error)) from error
    except Exception as error:
        raise InputError(f"{name}: {told(error)}") from error


def told(error: BaseException) -> str:
    """What an error in the user's code says, in one line that ends with theirs."""
    said = " ".join(str(error).split())
    if not isinstance(error, DtrainError):
        return f"{type(error).__name__}: {said}{_place(error)}"
    return said if _LINE.search(said) else f"{said}{_place(error)}"


def _place(error: BaseException) -> str:
    """The innermost line outside of dtrain and NumPy; empty if there is none."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not Path(frame.filename).is_relative_to(_DTRAIN) and not Path(frame.filename).is_relative_to(_NUMPY):
            place = f"; made at {Path(frame.filename).name}:{frame.lineno}"
    return place


def _is_same(before: Any, after: Any) -> bool:
    return before["state"]["pos"] == after["state"]["pos"] and bool(
        np.array_equal(before["state"]["key"], after["state"]["key"])
    )


def _depends(result: Tensor, on: list[Tensor]) -> bool:
    """Whether a value was computed from any of these inputs."""
    wanted, seen, stack = {t.index for t in on}, set(), [result]
    while stack:
        node = stack.pop()
        if node.index not in seen:
            seen.add(node.index)
            stack.extend(node.inputs)
    return bool(wanted & seen)


def summed(loss: Any, size: int) -> Tensor:
    """The sum over the shard's samples of what the user's loss returned: (n,), or a scalar that is the mean."""
    if not isinstance(loss, Tensor):
        raise InputError(
            f"loss: expected a value computed from params with NumPy, got {type(loss).__name__} that does not "
            "depend on params"
        )
    if loss.dtype.kind != "f":
        raise InputError(f"loss: expected float values, got {loss.dtype}")
    if loss.shape == (size,):
        return cast(Tensor, loss.sum())
    if loss.shape == ():
        return cast(Tensor, loss * loss.dtype.type(size))
    raise ShapeError(f"loss: expected a value per sample ({size},) or a scalar, got shape {loss.shape}")


class ShardRunner:
    """Runs the shards of one worker. Everything it allocates, it allocates the first time it meets a shape."""

    def __init__(self, program: Program, memory: RunMemory) -> None:
        self.program, self.memory = program, memory
        _, self.structure = flatten(program.initial_parameters())
        self.layout: Layout = memory.dimensions.layout
        self.sampler = program.sampler()
        self.parameters = self.layout.views(memory.parameters)
        self._signatures: dict[int, _Signature] = {}
        self._squares: dict[int, ShardSquare] = {}
        self._sums: ShardSums | None = None
        self._eval_batches: dict[int, Batch] = {}

    def gather(self, step: int, shard: int) -> _Signature:
        """Fill the batch buffers with the samples of (step, shard); at least one sample."""
        if self.layout.running and not self._signatures:
            self._record_every_size()
        indices = self.sampler.indices(step, shard)
        signature = self._signature(step, shard, len(indices))
        if self._sums is not None:
            signature = signature.of_shard(shard)
            self._sums.begin(step, tuple(range(min(self.sampler.batch_size(step), self.program.shards))))
        signature.batch.fill(indices)
        signature.key[1], signature.key[2] = step, shard
        return signature

    def square(self, shard: int) -> float:
        """The squared norm of a shard's gradient, which is there."""
        if shard not in self._squares:
            self._squares[shard] = ShardSquare(self.layout, self.memory.gradients[shard])
        return self._squares[shard]() + square_of(self.memory, shard)

    def _signature(self, step: int, shard: int, size: int) -> _Signature:
        signature = self._signatures.get(size)
        if signature is None:
            signature = self._signatures[size] = _Signature(self, size, step, shard)
            known, first = next(iter(self._signatures.items()))
            if signature.values != first.values:
                raise InputError(
                    "loss: all shards must come to the same sums over shards, whatever their size; with "
                    f"{known} samples they are {_listed(first)}, with {size} {_listed(signature)}"
                )
            if signature is first and signature.values:
                self._sums = ShardSums(self.memory, signature.values)
                self._record_every_size()
        return signature

    @property
    def sums(self) -> ShardSums:
        """The sums over shards of a loss that makes some."""
        assert self._sums is not None
        return self._sums

    def meets(self, step: int, shards: Sequence[int]) -> bool:
        """Whether the shards of a step sum something in the middle of it; records the loss of the first of these."""
        if not self._signatures and shards:
            self.gather(step, shards[0])
        return self._sums is not None

    def _record_every_size(self) -> None:
        """Record the loss for each size that a shard has, so that a shard too small for a statistic is told at once and
        not at the end of an epoch."""
        last = min(self.sampler.steps_per_epoch, self.program.steps) - 1
        for step in (0, last):
            for shard in (0, min(self.sampler.batch_size(step), self.program.shards) - 1):  # the largest, the smallest
                self._signature(step, shard, len(self.sampler.indices(step, shard)))

    def evaluate(self, chunk: int) -> dict[str, float]:
        """Evaluate one chunk of the held-out data with plain NumPy: sums over its samples, and their number."""
        program = self.program
        total = len(next(iter(program.eval.values())))
        lo, hi = chunk * EVAL_CHUNK, min((chunk + 1) * EVAL_CHUNK, total)
        batch = self._eval_batches.get(hi - lo)
        if batch is None:
            batch = self._eval_batches[hi - lo] = Batch(program.eval, hi - lo, program.dtype)
        batch.fill(np.arange(lo, hi))
        parameters = unflatten(self.structure, self.parameters)
        with step_context(program.seed, 0, chunk, training=False), np.errstate(all="ignore"):
            loss = np.asarray(called("loss", program.loss, parameters, batch.arrays))
            values = {}
            if program.metrics is not None:
                values = dict(called("metrics", program.metrics, parameters, batch.arrays))
        sums = {"samples": float(hi - lo), "loss": _per_sample_sum("loss", loss, hi - lo)}
        for name, value in values.items():
            sums[name] = _per_sample_sum(f"metrics[{name!r}]", np.asarray(value), hi - lo)
        return sums


def _per_sample_sum(name: str, values: NDArray[Any], size: int) -> float:
    if values.shape == ():
        return float(values) * size
    if values.shape != (size,):
        raise ShapeError(f"{name}: expected a value per sample ({size},), got shape {values.shape}")
    return float(np.sum(values, dtype=np.float64))


def eval_chunks(program: Program) -> int:
    """How many chunks an evaluation has."""
    return -(-len(next(iter(program.eval.values()))) // EVAL_CHUNK) if program.eval else 0
