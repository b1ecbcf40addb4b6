"""The state of a run in its memory: how it begins, how it is copied and named.

The state is parameters (running values among them), optimizer state and the position in the data, which is a step: the
sampler and the schedule are functions of it. Nothing here talks to anybody.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import Layout
from dtrain.comm.memory import RING, UPDATE, VALUE, RunMemory
from dtrain.errors import CheckpointError
from dtrain.graph.tree import flatten, unflatten
from dtrain.nn.running import running
from dtrain.nn.table import table
from dtrain.train.checkpoint import Checkpoint
from dtrain.train.fingerprint import CHAIN_START, fingerprint
from dtrain.train.host import Host
from dtrain.train.program import Program, dimensions

Tensors = dict[str, dict[str, NDArray[Any]]]


class RunState:
    """Makes the memory of a run and fills it: from the seed, or from a checkpoint.

    ``first_step``, ``chain`` and ``last_eval`` are where the run begins. Raises CheckpointError for a checkpoint of
    another model or optimizer.
    """

    def __init__(self, program: Program, max_workers: int, restore: Checkpoint | None) -> None:
        self.program = program
        initial = program.initial_parameters()
        leaves, self._structure = flatten(initial)
        self.layout: Layout = program.layout(initial)
        self.sampler = program.sampler()
        self.memory = RunMemory(dimensions(program, self.layout, max_workers))
        self.first_step, self.chain = 0, CHAIN_START
        self.last_eval: dict[str, float] = {}
        self.host = Host(program, self.memory)
        self._groups = {"parameters": self.layout.views(self.memory.parameters)}
        for name, flat in zip(program.rule.state_names, self.memory.state, strict=True):
            self._groups[f"optimizer.{name}"] = self.layout.views(flat)
            for view in self._groups[f"optimizer.{name}"]:
                view[...] = program.rule.state_init(name)
        for parameter, leaf in zip(self._groups["parameters"], leaves, strict=True):
            np.copyto(parameter, leaf, casting="same_kind")
        if restore is not None:
            self._restore(restore)

    def _restore(self, checkpoint: Checkpoint) -> None:
        for group, views in self._groups.items():
            stored = checkpoint.tensors.get(group, {})
            for name, view in zip(self.layout.names, views, strict=True):
                if name not in stored or stored[name].shape != view.shape or stored[name].dtype != view.dtype:
                    raise CheckpointError(
                        f"{checkpoint.path}: {group} has no {view.dtype} tensor {name} of shape {view.shape}; "
                        "the checkpoint belongs to another model or optimizer"
                    )
                np.copyto(view, stored[name])
        self.first_step, self.chain = checkpoint.step, checkpoint.meta["chain"]
        self.last_eval = dict(checkpoint.meta.get("eval", {}))

    def epoch(self, step: int) -> int:
        return step // self.sampler.steps_per_epoch

    def present(self, step: int) -> int:
        """How many shards of a step have samples: all, but in a small last batch only the first."""
        return min(self.sampler.batch_size(step), self.program.shards)

    def position(self, step: int) -> dict[str, int]:
        """Where the run stands in the data after ``step`` steps."""
        return {"step": step, "seed": self.program.seed, "epoch": self.epoch(step)}

    def tensors(self) -> Tensors:
        """Copy parameters and optimizer state, by group and name. Every worker must be idle."""
        return {g: {n: v.copy() for n, v in zip(self.layout.names, vs, strict=True)} for g, vs in self._groups.items()}

    def fingerprint(self, tensors: Tensors, step: int) -> str:
        return fingerprint(tensors, self.position(step))

    def parameters(self, tensors: Tensors) -> Any:
        """The user's tree around these tensors; running values and tables keep their mark."""
        leaves: list[Any] = [tensors["parameters"][name] for name in self.layout.names]
        for index, momentum in self.layout.running:
            leaves[index] = running(leaves[index], momentum)
        for index in self.layout.tables:
            leaves[index] = table(leaves[index])
        return unflatten(self._structure, leaves)

    def parameter_norms(self, step: int) -> dict[str, float]:
        """The gradient's L2 norm by parameter, for a step that is still in the ring; running values have none."""
        samples = self.sampler.batch_size(step)
        return {n: norm / samples for n, norm in self._norms(self.memory.squares[step % RING]).items()}

    def weight_norms(self, step: int) -> dict[str, float]:
        """The L2 norm of each parameter after a sampled step still in the ring; of a table, of the rows it has used."""
        return self._norms(self.memory.moved[step % RING, VALUE])

    def update_norms(self, step: int) -> dict[str, float]:
        """The L2 norm of what a sampled step, still in the ring, has added to each parameter."""
        return self._norms(self.memory.moved[step % RING, UPDATE])

    def _norms(self, squares: NDArray[np.float64]) -> dict[str, float]:
        """From the squares of the segments to norms by parameter, running values left out."""
        names = self.layout.names
        sums = np.bincount(self.layout.square_parameters, weights=squares, minlength=len(names)).tolist()
        norms = {n: math.sqrt(s) for n, s in zip(names, sums, strict=True)}
        return {n: norms[n] for n in self.layout.parameter_names}
