"""What `dtrain diff` does: finds the first step at which two runs part, and there the first thing that differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.errors import DtrainError
from dtrain.graph.tree import named_leaves
from dtrain.jobs.replaying import Edge, Moment, edges, moment, replayed
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import JobSpec
from dtrain.monitor.records import StepRecord, read_records


@dataclass(frozen=True)
class Difference:
    """How two runs compare. ``step`` is the first that differs, None if all ``common`` steps are the same.

    ``job`` are the keys of the jobs that differ, with both values; ``figures`` those of the step in both runs;
    ``cause`` says what differs first at that step, in a line, and ``where`` the tensor, shard and edge as values.
    """

    common: int
    step: int | None
    job: dict[str, tuple[Any, Any]]
    figures: dict[str, tuple[float, float]]
    cause: str
    where: dict[str, Any]

    def text(self) -> str:
        """All of it in lines."""
        lines = [f"job: {key} is {a!r} and {b!r}" for key, (a, b) in self.job.items()]
        if self.step is None:
            return "\n".join([*lines, f"the same in all {self.common} steps that both have"])
        lines.append(f"the runs part at step {self.step}; the {self.step} before it are the same")
        lines += [f"  {name}: {a!r} and {b!r}" for name, (a, b) in self.figures.items() if a != b]
        return "\n".join([*lines, self.cause])


def compare(one: RunDirectory, other: RunDirectory, deep: bool = True) -> Difference:
    """Compare two runs by the digests of their steps; with ``deep`` run the first that differs again in both."""
    flat = [_keys(run.read_job()) for run in (one, other)]
    ignored = ("name", "base_dir", "workers", "monitor", "checkpoint", "timeout", "startup")
    job = {
        key: (flat[0].get(key), flat[1].get(key))
        for key in sorted({*flat[0], *flat[1]})
        if flat[0].get(key) != flat[1].get(key) and not key.startswith(ignored)
    }
    logs = [{r.step: r for r, _ in read_records(run.metrics_file) if isinstance(r, StepRecord)} for run in (one, other)]
    common = sorted(logs[0].keys() & logs[1].keys())
    parted = next((step for step in common if logs[0][step].digest != logs[1][step].digest), None)
    if parted is None:
        return Difference(len(common), None, job, {}, "", {})
    a, b = logs[0][parted], logs[1][parted]
    names = ("loss", "gradient_norm", "clip_scale", "learning_rate", "samples")
    figures = {name: (getattr(a, name), getattr(b, name)) for name in names}
    cause = ""
    where: dict[str, Any] = {}
    if deep:
        try:
            cause, where = _first(moment(one, parted), moment(other, parted))
        except DtrainError as error:
            cause = f"what differs there cannot be told: {error}"
    return Difference(len(common), parted, job, figures, cause, where)


def _keys(spec: JobSpec) -> dict[str, Any]:
    """The keys of a job by their path; a model file counts by its content, not by where the copy is."""
    keys = dict(_flat(spec.model_dump(mode="json")))
    entry = spec.entry()
    if entry is not None and entry.file is not None:
        content = hashlib.sha256(entry.file.read_bytes()).hexdigest()
        keys["model.entry"] = f"{entry.file.name} with SHA-256 {content[:12]}…"
    return keys


def _flat(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, values


def _first(one: Moment, other: Moment) -> tuple[str, dict[str, Any]]:
    """The first thing that differs before or within a step, in a line and as values."""
    leaves = [dict(named_leaves(each.parameters)) for each in (one, other)]
    for name in leaves[0].keys() | leaves[1].keys():
        if name not in leaves[0] or name not in leaves[1]:
            return f"parameter {name} is in one of them only", {"parameter": name}
    for name, array in leaves[0].items():
        if how := _differs(np.asarray(array), np.asarray(leaves[1][name])):
            return f"parameter {name} differs before the step: {how}", {"parameter": name}
    if one.shards() != other.shards():
        return f"the step has {len(one.shards())} shards in one run and {len(other.shards())} in the other", {}
    for shard in one.shards():
        found = [edges(replayed(each, shard)) for each in (one, other)]
        if told := _first_edge(*found):
            edge, what = told
            line = f", made at {edge.line}" if edge.line else ""
            where = {"shard": shard, "edge": edge.number, "name": edge.name, "line": edge.line}
            return f"in shard {shard}, edge {edge.number} ({edge.name}{line}): {what}", where
    return "parameters, samples and gradients of the step are the same: it is the update that differs", {}


def _first_edge(one: list[Edge], other: list[Edge]) -> tuple[Edge, str] | None:
    for a, b in zip(one, other, strict=False):
        if a.name != b.name or a.value.shape != b.value.shape:
            return a, f"the graphs differ, the other one has {b.name} {list(b.value.shape)} there"
        if how := _differs(a.value, b.value):
            return a, f"the value differs: {how}"
    if len(one) != len(other):
        longer = max(one, other, key=len)[min(len(one), len(other))]
        return longer, "one of the graphs ends before it"
    for a, b in zip(reversed(one), reversed(other), strict=True):
        if a.gradient is not None and b.gradient is not None and (how := _differs(a.gradient, b.gradient)):
            return a, f"the gradient differs: {how}"
    return None


def _differs(a: NDArray[Any], b: NDArray[Any]) -> str:
    """How two arrays differ in their bits, in words; empty if they do not."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}"
    same = (a == b) | ((a != a) & (b != b))
    if same.all():
        return ""
    first = np.unravel_index(int(np.argmin(same)), a.shape)
    place = f" at {[int(i) for i in first]}" if a.shape else ""
    return f"{int((~same).sum())} of {a.size} elements, first {a[first]!r} and {b[first]!r}{place}"
