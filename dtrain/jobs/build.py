"""From a job spec to the program: everything that the spec names is made, and every mistake in it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dtrain.data import make_source
from dtrain.data.source import Source
from dtrain.errors import InputError
from dtrain.jobs.spec import JobSpec, OptimizerSpec
from dtrain.jobs.user_code import load_file, load_module
from dtrain.nn import Model, SequenceTask, make_model, supervise
from dtrain.optim import make_rule, make_schedule
from dtrain.optim.rule import Rule
from dtrain.optim.schedules import Schedule
from dtrain.train.program import Program


def build(spec: JobSpec, check: bool = True) -> Program:
    """Make the program of a spec. Raises InputError, one line a mistake.

    Without ``check`` the content of data files is taken as it is: the coordinator has looked already.
    """
    options = {"dtype": spec.dtype, "check": True, **spec.data.options}
    if "base_dir" in options:
        raise InputError("data.base_dir: paths start at the folder of the job file; remove the key")
    if not check:
        options["check"] = False
    source = make_source(spec.data.name, base_dir=Path(spec.base_dir), **options)
    steps_per_epoch = -(-source.n // spec.batch)
    steps = spec.steps if spec.steps is not None else (spec.epochs or 0) * steps_per_epoch
    rule, schedule = optimizer_of(spec.optimizer, steps)
    init, loss, metrics = _model(spec, source, check)
    every = spec.eval.every
    return Program(
        init=init,
        loss=loss,
        metrics=metrics,
        train=source.train,
        eval=source.eval,
        rule=rule,
        schedule=schedule,
        seed=spec.seed,
        batch=spec.batch,
        shards=spec.shards,
        steps=steps,
        dtype=np.dtype(spec.dtype),
        eval_every=0 if not source.eval else (every.in_steps(steps_per_epoch) or steps) if every else steps,
        clip_norm=spec.optimizer.clip_norm,
        clip_value=spec.optimizer.clip_value,
        on_nonfinite=spec.on_nonfinite,
        overlap=spec.overlap,
    )


def optimizer_of(spec: OptimizerSpec, steps: int) -> tuple[Rule, Schedule]:
    """Make the update rule and the schedule of a job of so many steps."""
    options = spec.options
    if spec.weight_decay is not None:
        options["weight_decay"] = spec.weight_decay
    schedule = make_schedule(
        spec.schedule.name,
        lr=spec.lr,
        warmup_steps=spec.schedule.warmup_steps,
        total_steps=steps,
        **spec.schedule.options,
    )
    return make_rule(spec.name, **options), schedule


def _model(spec: JobSpec, source: Source, check: bool) -> tuple[Any, Any, Any]:
    """Return init, loss and metrics (or None) of the spec's model."""
    entry = spec.entry()
    if entry is None:
        assert spec.model.name is not None
        model = make_model(spec.model.name, **spec.model.options)
        wanted = (*model.arrays, "y")
        for key in wanted:
            if key not in source.train:
                names = f"{', '.join(wanted[:-1])} and y"
                raise InputError(
                    f"model.name: {spec.model.name} expects arrays {names}, the data has {', '.join(source.train)}; "
                    f"name them {names}, or write your own model file"
                )
        if check:
            for part, arrays in (("train", source.train), ("eval", source.eval)):
                if arrays:
                    model.check(part, arrays)
        if model.reads_vectors:
            return _sequence_task(spec, model, source)
        outputs = source.classes
        if outputs is None and model.reads_integers:
            outputs = source.count_tokens()
        if outputs is None and source.train["y"].dtype.kind == "f":  # numbers to be approximated, not labels
            outputs = 1 if source.train["y"].ndim == 1 else source.train["y"].shape[1]
        if source.features is None or outputs is None:
            raise InputError(
                f"model.name: {spec.model.name} expects x of shape (n, features) and y of labels (n,) or numbers "
                f"(n, k), got x {source.train['x'].shape} and y {source.train['y'].shape}"
            )
        functions = supervise(model, spec.loss, source.features, outputs)
        return functions.init, functions.loss, functions.metrics
    where = spec.model.entry
    if spec.loss is not None:
        raise InputError(f"loss: {where} brings its own loss; remove the key loss")
    if entry.file is not None:
        module = load_file(entry.file, "model.entry")
    else:
        module = load_module(entry.module or "", spec.base_dir, "model.entry")
    found: Any = module
    if entry.attribute is not None:
        found = getattr(module, entry.attribute, None)
        if found is None:
            raise InputError(f"model.entry: {where}: there is no {entry.attribute} in it")
        if callable(found):
            try:
                found = found(**spec.model.options)
            except TypeError as error:
                raise InputError(f"model.entry: {where}: {error}") from error
    elif spec.model.options:
        keys = ", ".join(spec.model.options)
        raise InputError(f"model: {where} takes no options, got {keys}; name a class or function as {where}:name")
    for name in ("init", "loss"):
        if not callable(getattr(found, name, None)):
            raise InputError(
                f"model.entry: {where} has no function {name}; a model is init(rng) and loss(params, batch)"
            )
    return found.init, found.loss, getattr(found, "metrics", None)


def _sequence_task(spec: JobSpec, model: Model, source: Source) -> tuple[Any, Any, Any]:
    x, y = source.train["x"], source.train["y"]
    if x.ndim != 3 or y.ndim != 3 or x.shape[:2] != y.shape[:2]:
        raise InputError(
            f"model.name: {spec.model.name} expects x (n, time, inputs) and y (n, time, outputs), such as those of the "
            f"data source copy, got x {x.shape} and y {y.shape}"
        )
    if spec.loss not in (None, model.default_loss):
        raise InputError(f"loss: {spec.model.name} is trained with {model.default_loss}; remove the key loss")
    task = SequenceTask(model, x.shape[2], y.shape[2])
    return task.init, task.loss, task.metrics
