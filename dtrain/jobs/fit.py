"""``dtrain.fit``: train a loss function from Python, in a script or a notebook, with the machinery of `dtrain run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dtrain.comm.threads import one_blas_thread
from dtrain.data.source import from_arrays
from dtrain.graph.tree import map_leaves
from dtrain.jobs.backend import make_launcher, worker_count
from dtrain.jobs.build import optimizer_of
from dtrain.jobs.payload import program_payload
from dtrain.jobs.run import stop_on_signals
from dtrain.jobs.spec import parse_spec
from dtrain.jobs.watcher import Watcher
from dtrain.nn.running import Running
from dtrain.nn.table import Table
from dtrain.train.numerics import numerics_class
from dtrain.train.program import Program
from dtrain.train.service import RunSettings, Service


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` returns. ``params`` has the structure of what was given, with fresh arrays."""

    params: Any
    loss: float | None
    eval: dict[str, float]
    fingerprint: str
    steps: int
    seconds: float
    status: str


@dataclass(frozen=True)
class _Given:
    """Initial parameters that are values already."""

    params: Any

    def __call__(self, rng: np.random.Generator) -> Any:
        return self.params


def _copied(leaf: Any) -> Any:
    """A copy that a mark of ``dtrain.nn.running`` or ``dtrain.nn.table`` survives."""
    return leaf.copy() if isinstance(leaf, Running | Table) else np.array(leaf, copy=True)


def fit(
    loss: Callable[[Any, Any], Any],
    params: Any,
    data: Mapping[str, ArrayLike],
    *,
    optimizer: str | Mapping[str, Any] = "adam",
    lr: float | None = None,
    batch: int = 128,
    shards: int = 8,
    epochs: int | None = None,
    steps: int | None = None,
    workers: int | str = "auto",
    seed: int = 0,
    eval_data: Mapping[str, ArrayLike] | None = None,
    metrics: Callable[[Any, Any], Any] | None = None,
    dtype: str = "float32",
    on_nonfinite: str = "stop",
    timeout_seconds: float = 5.0,
    progress: bool = True,
) -> FitResult:
    """Train ``params`` to minimise the mean of ``loss`` over ``data``, data-parallel on the cores of this machine.

    ``loss(params, batch)`` is plain NumPy and returns a loss per sample (n,), or a scalar: the mean over the shard.
    ``params`` is a tree of float arrays, running values and tables marked with ``dtrain.nn.running`` and
    ``dtrain.nn.table``, or a function ``init(rng)`` that makes one. ``data`` and ``eval_data`` are dicts of arrays with
    a common leading sample axis; ``batch`` is the global mini-batch. ``optimizer`` is a name, or a mapping with the
    keys of a job spec ({"name": "adam", "lr": 1e-3, "clip_norm": 1.0}). The length is ``epochs`` (1 if neither is
    given) or ``steps``. ``workers``: processes, "auto" is one per core, 0 is none; the result does not depend on it.

    Functions defined in the script or notebook are sent to the workers; a script needs no ``__main__`` guard. Raises
    DtrainError: InputError for arguments that do not fit, NonFiniteError when a value is not finite. Ctrl-C ends the
    training at the end of a step and returns what was reached, with status "stopped".
    """
    given: dict[str, Any] = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    if lr is not None:
        given["lr"] = lr
    spec = parse_spec(  # the same checks, and the same words, as for a job file
        {
            "model": {"entry": "fit:loss"},
            "data": {"name": "arrays"},
            "optimizer": {"lr": 1e-3, **given},
            "batch": batch,
            "shards": shards,
            "epochs": 1 if epochs is None and steps is None else epochs,
            "steps": steps,
            "workers": workers,
            "seed": seed,
            "dtype": dtype,
            "on_nonfinite": on_nonfinite,
            "timeout_seconds": timeout_seconds,
        },
        source="fit",
    )
    source = from_arrays(data, eval_data)
    steps_per_epoch = -(-source.n // batch)
    total = steps if steps is not None else (spec.epochs or 1) * steps_per_epoch
    rule, schedule = optimizer_of(spec.optimizer, total)
    kind = np.dtype(dtype)
    init = params if callable(params) else _Given(map_leaves(_copied, params))
    program = Program(
        init=init,
        loss=loss,
        metrics=metrics,
        train=source.train,
        eval=source.eval,
        rule=rule,
        schedule=schedule,
        seed=seed,
        batch=batch,
        shards=shards,
        steps=total,
        dtype=kind,
        eval_every=steps_per_epoch if source.eval else 0,
        clip_norm=spec.optimizer.clip_norm,
        clip_value=spec.optimizer.clip_value,
        on_nonfinite=spec.on_nonfinite,
    )
    count = worker_count(workers)
    watcher = Watcher(None, is_quiet=not progress)
    try:
        with one_blas_thread():
            service = Service(
                program,
                RunSettings(workers=count, checkpoint_seconds=0.0, timeout_seconds=timeout_seconds),
                make_launcher(program, count, None, lambda m: program_payload(program, m)),
                numerics_class(),
                observer=watcher,
            )
            with stop_on_signals(service):
                outcome = service.run()
    finally:
        watcher.close()
    if outcome.error is not None:
        raise outcome.error
    return FitResult(
        params=outcome.parameters,
        loss=outcome.train_loss,
        eval=outcome.eval,
        fingerprint=outcome.fingerprint,
        steps=outcome.step,
        seconds=outcome.seconds,
        status=outcome.status,
    )
