"""A look into a run: what `dtrain.inspect` says of the loss of one shard, and how far an update moves each parameter.

It works on a copy of the state and changes nothing of the run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtrain.comm.layout import Layout
from dtrain.errors import InputError
from dtrain.graph import Graph, Tensor, backward, flatten, step_context, unflatten
from dtrain.graph.drawing.figures import described
from dtrain.graph.inspection import inspect_graph, norm, summary
from dtrain.graph.tensor import recording
from dtrain.optim.clipping import scale
from dtrain.train.program import Program
from dtrain.train.shard import Batch, called, summed
from dtrain.train.state import Tensors
from dtrain.train.tables import rows_taken

_MOST_BYTES = 1 << 28  # of gradients of shards


def shard_graph(program: Program, parameters: Any, step: int = 0, shard: int = 0, *, mean: bool = False) -> Graph:
    """Record the loss of a shard of a step as the user's function returns it, or its mean; with its values."""
    indices = program.sampler().indices(step, shard)
    batch = Batch(program.train, len(indices), program.dtype)
    batch.fill(indices)
    leaves, structure = flatten(parameters)
    names = program.layout(program.initial_parameters()).names
    graph = Graph()
    inputs = [graph.input(np.asarray(a, program.dtype), n) for n, a in zip(names, leaves, strict=True)]
    samples = {k: graph.input(a, f"batch.{k}") for k, a in batch.arrays.items()}
    with step_context(program.seed, step, shard, training=True) as context, recording(graph):
        context.reports = []
        loss = called("loss", program.loss, unflatten(structure, inputs), samples)
        if not isinstance(loss, Tensor):
            raise InputError("loss: expected a value computed from params with NumPy")
        graph.outputs = [summed(loss, len(indices)) * program.dtype.type(1 / len(indices)) if mean else loss]
    return graph


def picture_of_loss(program: Program, parameters: Any, step: int) -> dict[str, Any]:
    """Describe the graph of the mean loss of the first shard of a step, as `described` does, with the `step`."""
    with np.errstate(all="ignore"):
        return {"step": step, **described(shard_graph(program, parameters, step, mean=True))}


def introspect(program: Program, tensors: Tensors, step: int) -> dict[str, Any]:
    """Describe the step that would come next if the first shard were the whole batch: plain values.

    ``tensors`` is the state after ``step`` steps, as `RunState.tensors` returns it.
    """
    initial = program.initial_parameters()
    layout = program.layout(initial)
    values = list(tensors["parameters"].values())
    with np.errstate(all="ignore"):
        graph = shard_graph(program, unflatten(flatten(initial)[1], values), step, mean=True)
        inputs = graph.inputs[: len(values)]
        layers = inspect_graph(graph)
        picture = described(graph)
        with recording(graph):
            gradients = [np.asarray(g.value) for g in backward(graph.outputs, None, inputs)]
            taken = rows_taken(layout, graph)
        moved = _updates(program, layout, tensors, gradients, step, taken)
        shards = _shares(program, layout, unflatten(flatten(initial)[1], values), step)
    parameters = []
    for index, (name, value) in enumerate(tensors["parameters"].items()):
        if index not in layout.momenta:
            size, move = norm(value), moved[name]
            parameters.append(
                {
                    "name": name,
                    "shape": list(value.shape),
                    "value": summary(value),
                    "gradient": summary(gradients[index]),
                    "update_to_weight": move / size if size else None,
                }
            )
    names = set(layout.names)
    return {
        "step": step,
        "loss": float(np.asarray(graph.outputs[0].value)),
        "parameters": parameters,
        "layers": [entry for entry in layers if entry["name"] not in names],
        "shards": shards,
        **picture,
    }


def _shares(program: Program, layout: Layout, parameters: Any, step: int) -> dict[str, list[float]]:
    """What each shard adds to the gradient of each parameter over the whole batch: the part of it along that gradient,
    so that the shares of a parameter add up to 1. None for a gradient that is zero or not finite, nor where the
    gradients of all shards would take more than 256 MB."""
    learnt = [i for i in range(len(layout.names)) if i not in layout.momenta]
    if program.shards * layout.size * program.dtype.itemsize > _MOST_BYTES:
        return {}
    sampler = program.sampler()
    by_shard: list[list[np.ndarray]] = []
    for shard in range(program.shards):
        samples = len(sampler.indices(step, shard))
        if samples == 0:
            continue
        graph = shard_graph(program, parameters, step, shard)
        with recording(graph):
            loss = summed(graph.outputs[0], samples)
            by_shard.append([np.asarray(g.value) for g in backward([loss], None, [graph.inputs[i] for i in learnt])])
    shares = {}
    for place, i in enumerate(learnt):
        parts = [found[place] for found in by_shard]
        total = sum(parts[1:], parts[0].astype(np.float64))
        length = float(np.vdot(total, total))
        if math.isfinite(length) and length > 0:
            found = [float(np.vdot(part.astype(np.float64), total)) / length for part in parts]
            shares[layout.names[i]] = found + [0.0] * (program.shards - len(parts))
    return shares


def _updates(
    program: Program,
    layout: Layout,
    tensors: Tensors,
    gradients: list[np.ndarray],
    step: int,
    taken: dict[int, np.ndarray],
) -> dict[str, float]:
    """The L2 norm of the update that the rule would make with these gradients, by parameter.

    ``taken`` are the rows of tables that are updated, by index of the parameter.
    """
    rule = program.rule
    learnt = [i for i in range(len(layout.names)) if i not in layout.momenta]
    length = math.sqrt(sum(float(np.sum(np.square(gradients[i], dtype=np.float64))) for i in learnt))
    clip = 1.0 if program.clip_norm is None or not math.isfinite(length) else scale(length, program.clip_norm)
    coefficients = rule.coefficients(step, program.schedule.lr(step))
    result = {}
    for i in learnt:
        name = layout.names[i]
        rows = taken.get(i, ...)
        before = np.ravel(tensors["parameters"][name][rows])
        after, gradient = before.copy(), np.ravel(gradients[i][rows] * program.dtype.type(clip)).astype(program.dtype)
        if program.clip_value is not None:
            np.clip(gradient, -program.clip_value, program.clip_value, out=gradient)
        state = tuple(np.ravel(tensors[f"optimizer.{s}"][name][rows]).copy() for s in rule.state_names)
        rule.update(after, gradient, state, coefficients, (np.empty_like(after), np.empty_like(after)))
        result[name] = norm(after - before)
    return result
