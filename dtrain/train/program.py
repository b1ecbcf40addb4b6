"""What is trained: the functions, the data and every setting that decides the result. Nothing here knows a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dtrain.comm.layout import Layout
from dtrain.comm.memory import Dimensions
from dtrain.data.sampler import Sampler
from dtrain.graph.tree import named_leaves
from dtrain.nn.running import Running
from dtrain.nn.table import Table
from dtrain.optim.rule import Rule
from dtrain.optim.schedules import Schedule

Arrays = Mapping[str, NDArray[Any]]

INIT_STREAM = int.from_bytes(b"init", "big")
"""The Philox stream of parameter initialisation; the sampler has its own, and dropout the small numbers."""


@dataclass(frozen=True)
class Program:
    """A job after everything named in its spec was made.

    ``init(rng)`` returns a tree of float arrays; ``loss(params, batch)`` a loss per sample (n,) or the mean over the
    shard; ``metrics(params, batch)`` a dict of (n,) arrays. ``steps`` is the total number of steps, ``eval_every`` the
    steps between evaluations (0: none). ``dtype`` is that of the parameters. ``overlap`` does not decide the
    result: whether gradients travel between hosts while backward runs (None: if they are large).
    """

    init: Callable[[np.random.Generator], Any]
    loss: Callable[[Any, Any], Any]
    metrics: Callable[[Any, Any], Any] | None
    train: Arrays
    eval: Arrays
    rule: Rule
    schedule: Schedule
    seed: int
    batch: int
    shards: int
    steps: int
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    eval_every: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    shuffle: bool = True
    overlap: bool | None = None

    def sampler(self) -> Sampler:
        return Sampler(len(next(iter(self.train.values()))), self.batch, self.shards, self.seed, shuffle=self.shuffle)

    def initial_parameters(self) -> Any:
        """Run ``init`` with the job's own counter-based generator; the result is a function of the seed alone."""
        return self.init(np.random.Generator(np.random.Philox(key=np.array([self.seed, INIT_STREAM], np.uint64))))

    def layout(self, parameters: Any) -> Layout:
        """The layout of the tree that ``init`` returns; ``dtrain.nn.running`` and ``dtrain.nn.table`` mark leaves."""
        leaves = named_leaves(parameters)
        running = [(i, leaf.momentum) for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Running)]
        tables = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Table)]
        return Layout.of([(n, np.asarray(a)) for n, a in leaves], self.dtype, running, tables)


def dimensions(program: Program, layout: Layout, max_workers: int) -> Dimensions:
    """The sizes of the run's memory."""
    return Dimensions(layout, program.rule.state_names, program.shards, max_workers)
