"""The job spec: what a job file may say, checked before anything starts.

Owns the keys, their types, defaults and meaning. Invariant: a JobSpec is valid, frozen, and survives ``to_yaml`` and
back. Options of models, data sources, schedules and update rules travel through as plain values and are checked where
these are made.

Imports pydantic and PyYAML only, so that a mistake is told at once.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from dtrain.errors import InputError
from dtrain.jobs.document import apply_overrides, dump_yaml, read_document, show, to_plain
from dtrain.jobs.mistakes import MISSPELT, blame, describe

Unit = Literal["steps", "epochs", "seconds"]
_UNITS: dict[str, tuple[Unit, int]] = {
    **dict.fromkeys(("step", "steps"), ("steps", 1)),
    **dict.fromkeys(("epoch", "epochs"), ("epochs", 1)),
    **dict.fromkeys(("s", "second", "seconds"), ("seconds", 1)),
    **dict.fromkeys(("m", "min", "minute", "minutes"), ("seconds", 60)),
    **dict.fromkeys(("h", "hour", "hours"), ("seconds", 3600)),
}
_RESULT = {"seed", "model", "data", "loss", "optimizer", "batch", "shards", "epochs", "steps", "dtype", "on_nonfinite"}
"""The keys that determine the result; all others change how it is reached or watched."""
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_URL_PATTERN = r"^https?://[^\s/]+(/\S*)?$"
_TEXTFILE_PATTERN = r"^.*\.prom$"
_ENTRY_PATTERN = r"^(?:.*\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?::[A-Za-z_]\w*)?$"


@dataclass(frozen=True, slots=True)
class Every:
    """An interval: so many steps, epochs or seconds of wall time.

    Written ``500 steps`` or just ``500``, ``1 epoch``, ``30s`` or ``5m``.
    """

    count: int
    unit: Unit

    @classmethod
    def parse(cls, text: str | int) -> Every:
        """Read an interval; a bare number counts steps. Raises ValueError for anything else and for less than 1."""
        found = re.fullmatch(r"\s*(\d+)\s*([a-z]*)\s*", str(text))
        word = found[2] or "steps" if found else ""
        if isinstance(text, bool) or found is None or word not in _UNITS:
            raise ValueError(f"expected an interval like 500 steps, 1 epoch or 30s, got {show(text)}")
        unit, factor = _UNITS[word]
        count = int(found[1]) * factor
        if count < 1:
            raise ValueError(f"expected an interval of at least 1, got {show(text)}; null turns it off")
        return cls(count, unit)

    def __str__(self) -> str:
        return (
            f"{self.count}s"
            if self.unit == "seconds"
            else f"{self.count} {self.unit if self.count > 1 else self.unit[:-1]}"
        )

    def in_steps(self, steps_per_epoch: int) -> int | None:
        """Return the interval in steps, or None if it is one of time."""
        return {"steps": self.count, "epochs": self.count * steps_per_epoch}.get(self.unit)


def _parse_interval(value: object) -> Every | None:
    if value is None or isinstance(value, Every):
        return value
    if not isinstance(value, str | int):
        raise ValueError(f"expected an interval like 500 steps, 1 epoch or 30s, got {show(value)}")
    return Every.parse(value)


def _parse_interval_of_steps(value: object) -> Every | None:
    every = _parse_interval(value)
    if every is not None and every.unit == "seconds":
        raise ValueError(
            f"expected an interval in steps or epochs, got {show(value)}; the record must not depend on time"
        )
    return every


def _interval_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": pattern}, {"type": "null"}]}
    )


_as_text = PlainSerializer(lambda every: None if every is None else str(every), return_type=str | None)
Interval = Annotated[
    Every | None,
    PlainValidator(_parse_interval),
    _as_text,
    _interval_schema(r"^\s*\d+\s*(steps?|epochs?|s|seconds?|m|min|minutes?|h|hours?)?\s*$"),
]
IntervalOfSteps = Annotated[
    Every | None,
    PlainValidator(_parse_interval_of_steps),
    _as_text,
    _interval_schema(r"^\s*\d+\s*(steps?|epochs?)?\s*$"),
]


def _parse_workers(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected auto or an integer of at least 0, got {show(value)}")
    return value


Workers = Annotated[
    int | Literal["auto"],
    PlainValidator(_parse_workers),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0}], "default": "auto"}),
]
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class _OpenSection(_Section):
    """A section that carries the options of the thing it names."""

    model_config = ConfigDict(extra="allow")
    alternatives: ClassVar[tuple[str, ...]] = ()
    """Own keys of which only one is given."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not the section's own, as plain values; a fresh copy."""
        return copy.deepcopy(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _refuse_misspelt_key(cls, data: Any) -> Any:
        # An option may have any name, so only a near miss of an own key that is absent can be told from an option.
        if isinstance(data, dict):
            settled = set(data) | (set(cls.alternatives) if any(key in data for key in cls.alternatives) else set())
            absent = [key for key in cls.model_fields if key not in settled]
            for key in data:
                near = difflib.get_close_matches(key, absent, 1, 0.65) if key not in cls.model_fields else []
                if near:
                    raise ValueError(MISSPELT, key, near[0])
        return data


class ModelSpec(_OpenSection):
    """The model: one that ships by ``name``, or the user's own by ``entry``; all other keys are its options."""

    alternatives: ClassVar[tuple[str, ...]] = ("name", "entry")

    name: str | None = None
    """A model that ships with dtrain, for example mlp."""
    entry: str | None = Field(default=None, pattern=_ENTRY_PATTERN)
    """The user's model: a Python file (relative to this file) or package.module, either with :name behind it."""

    @model_validator(mode="after")
    def _refuse_both_or_none(self) -> ModelSpec:
        if (self.name is None) == (self.entry is None):
            raise ValueError("expected exactly one of name and entry, for example {name: mlp} or {entry: my_model.py}")
        return self


class DataSpec(_OpenSection):
    """The data: a source by name; all other keys are its options."""

    name: str
    """A data source, for example digits or npz."""


class ScheduleSpec(_OpenSection):
    """How the learning rate changes over the steps; all other keys are the schedule's options."""

    name: str = "constant"
    """A schedule, for example constant, step or cosine."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate first rises linearly to lr."""


class OptimizerSpec(_OpenSection):
    """The update rule with its learning rate; all other keys are the rule's options."""

    name: str
    """An update rule, for example sgd or adam."""
    lr: float = Field(ge=0)
    """Learning rate before the schedule."""
    schedule: ScheduleSpec = ScheduleSpec()
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest global L2 norm of the gradient; a longer one is scaled down to it."""
    clip_value: float | None = Field(default=None, gt=0)
    """Largest absolute value of an element of the gradient."""
    weight_decay: float | None = Field(default=None, ge=0)
    """L2 coefficient, applied as the rule applies it; null for the rule's own default."""


class EvalSpec(_Section):
    """When the model is evaluated on the held-out data; it is always evaluated after the last step."""

    every: IntervalOfSteps = Every(1, "epochs")
    """Steps or epochs between two evaluations; null for only the last."""


class CheckpointSpec(_Section):
    """When checkpoints are written; one is always written at the end and when the run is stopped."""

    every: Interval = Every(30, "seconds")
    """Seconds, steps or epochs between two checkpoints; null for only the last."""
    keep: Positive = 3
    """How many of the newest checkpoints are kept."""


class IntrospectSpec(_Section):
    """How often the run is looked into: activations, gradients and updates of one shard, in introspection.jsonl."""

    every: IntervalOfSteps = None
    """Steps or epochs between two looks, the first before step 0; null for none."""


class MonitorSpec(_Section):
    """How the run can be watched while it lasts."""

    metrics_port: int | None = Field(default=0, ge=0, le=65535)
    """Port of the Prometheus endpoint; 0 for any free one, null for none."""
    address: str = "127.0.0.1"
    """Address that the endpoint listens on, 0.0.0.0 for all of this host's; beyond loopback token_file is needed."""
    token_file: str | None = None
    """File that holds the endpoint's token, made if it is not there; null for a fresh token each time."""
    norms_every: Interval = Every(1, "seconds")
    """Seconds, steps or epochs between two steps whose norms (of weights, updates, noise) are taken; null for none."""
    sd_directory: str | None = None
    """Folder where the run tells Prometheus' file service discovery of itself while it lasts; null for none."""
    pushgateway: str | None = Field(default=None, pattern=_URL_PATTERN)
    """Pushgateway to which the last figures go at the end, http://HOST:PORT; null for none."""
    textfile: str | None = Field(default=None, pattern=_TEXTFILE_PATTERN)
    """File for node_exporter's textfile collector, NAME.prom, kept up to date and left at the end; null for none."""
    tensorboard: bool = False
    """Whether TensorBoard's event files are written into the run directory; needs dtrain[tensorboard]."""
    spike_factor: float | None = Field(default=10.0, gt=1)
    """A loss or gradient norm of more than so many times the median of the last 50 steps is an event; null for none."""

    @model_validator(mode="after")
    def _refuse_open_doors(self) -> MonitorSpec:
        if not (self.address.startswith("127.") or self.address in ("localhost", "::1")) and self.token_file is None:
            raise ValueError(
                f"address {self.address} can be reached by others, so token_file is needed: name a file for the token"
            )
        if self.sd_directory is not None and self.metrics_port is None:
            raise ValueError("sd_directory tells of an endpoint, and metrics_port is null; give a port, or 0")
        return self


_STEPS_OF_A_LOOK = 50  # at least between two looks that the job has not asked for: they cost some steps' time


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the user's model is: in ``file`` (absolute) or in ``module``; ``attribute`` is what follows the colon."""

    file: Path | None
    module: str | None
    attribute: str | None


def _mistake_of_length(epochs: object, steps: object) -> str | None:
    if epochs is not None and steps is not None:
        return "epochs and steps are both given; keep one and remove the other or set it to null"
    return "epochs: missing; say how long to train with epochs or steps" if epochs is None and steps is None else None


def _schema_of_length(schema: dict[str, Any]) -> None:
    schema["oneOf"] = [{"required": [key], "properties": {key: {"type": "integer"}}} for key in ("epochs", "steps")]


class JobSpec(_Section):
    """A job: everything that a run needs to be told, and nothing about the machine it runs on."""

    model_config = ConfigDict(title="dtrain job", json_schema_extra=_schema_of_length)

    name: str = Field(default="job", pattern=_NAME_PATTERN)
    """Name of the job and of the folder of its runs; the name of the file unless given."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Seed of everything random: initial parameters, order of the samples, dropout."""
    model: ModelSpec
    data: DataSpec
    loss: str | None = None
    """Name of the loss; null for the model's own."""
    optimizer: OptimizerSpec
    batch: Positive
    """Samples in the global mini-batch of a step, whatever the number of workers."""
    shards: Positive = 8
    """Pieces into which each mini-batch is cut; part of the result, as workers are not."""
    epochs: int | None = Field(default=None, ge=1)
    """Length of the run in passes over the data; exactly one of epochs and steps is given."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the run in steps."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of parameters, gradients and optimizer state."""
    workers: Workers = "auto"
    """Worker processes: auto is one per core, 0 is none (all work is done in this process)."""
    eval: EvalSpec = EvalSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    introspect: IntrospectSpec = IntrospectSpec()
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens at a step whose loss or gradient is not finite: the run stops, or the step leaves no trace."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """How long a silent worker is waited for, beyond the time of a step, before it is replaced."""
    startup_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long a worker may take to start and to finish its first step."""
    overlap: bool | None = None
    """Whether gradients travel between hosts while backward runs; null: from 4 MB on, if ranks have one shard each."""
    monitor: MonitorSpec = MonitorSpec()
    base_dir: str = "."
    """Folder where relative paths of this file start; the folder of this file unless given."""

    @model_validator(mode="after")
    def _refuse_both_or_no_length(self) -> JobSpec:
        mistake = _mistake_of_length(self.epochs, self.steps)
        if mistake:
            raise ValueError(mistake)
        return self

    def resolve(self, path: str | os.PathLike[str]) -> Path:
        """Return a path of the spec made absolute; relative ones start at ``base_dir``, ``~`` is the home folder."""
        return Path(self.base_dir, Path(path).expanduser()).absolute()

    def entry(self) -> Entry | None:
        """Return where the user's model is, or None for a model that ships."""
        if self.model.entry is None:
            return None
        place, _, attribute = self.model.entry.partition(":")
        if place.endswith(".py"):
            return Entry(self.resolve(place), None, attribute or None)
        return Entry(None, place, attribute or None)

    def to_yaml(self) -> str:
        """Return the whole spec as YAML, defaults written out, so that later defaults cannot change it."""
        return dump_yaml(self.model_dump(mode="json"))

    def looked_into(self, steps: int) -> JobSpec:
        """Return the job with looks into its run of so many steps, about ten, if it asks for none itself."""
        if self.introspect.every is not None:
            return self
        every = Every(max(_STEPS_OF_A_LOOK, -(-steps // 10)), "steps")
        return self.model_copy(update={"introspect": IntrospectSpec(every=every)})

    def digest(self) -> str:
        """Return the SHA-256, in hex, of the canonical JSON of what determines the result.

        Not in it: name, workers, time limits, monitor, checkpoint, evaluation, introspection and base_dir. The user's
        model counts by the content of its file, not by its path; a model in an installed module and data files count by
        name only.
        Raises InputError if the model's file cannot be read.
        """
        content = self.model_dump(mode="json", include=_RESULT, exclude_none=True)
        entry = self.entry()
        if entry is not None and entry.file is not None:
            try:
                code = entry.file.read_bytes()
            except OSError as error:
                raise InputError(f"{entry.file}: model.entry cannot be read: {error.strerror}") from None
            content["model"]["entry"] = {"sha256": hashlib.sha256(code).hexdigest(), "attribute": entry.attribute}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_spec(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> JobSpec:
    """Read a job file (YAML, JSON or TOML by suffix), with ``a.b=value`` overrides applied on top.

    ``base_dir`` becomes absolute: the file's folder, or what the file says, relative to that folder. ``name`` is the
    file's name unless given. Raises InputError with one line per mistake, each naming the file (or the override) and
    the key.
    """
    document = read_document(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, got {show(document)}")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip("-._")[:64]
    return parse_spec(
        document, source=str(path), base_dir=Path(path).absolute().parent, overrides=overrides, name=stem or "job"
    )


def parse_spec(
    document: Mapping[str, Any],
    *,
    source: str = "job",
    base_dir: str | os.PathLike[str] = ".",
    overrides: Iterable[str] = (),
    name: str = "job",
    check_files: bool = True,
) -> JobSpec:
    """Check a job given as plain values; ``source`` starts each line of an error. As ``load_spec`` otherwise.

    With ``check_files`` off, a model file that no longer exists is not an error.
    """
    values = to_plain(dict(document), source)
    assert isinstance(values, dict)
    origins = apply_overrides(values, overrides)
    values.setdefault("name", name)
    folder = values.get("base_dir", ".")
    if isinstance(folder, str):
        values["base_dir"] = os.path.abspath(Path(base_dir, Path(folder).expanduser()))
    try:
        spec = JobSpec.model_validate(values)
    except ValidationError as error:
        lines = [describe(detail, JobSpec, source, origins) for detail in error.errors(include_url=False)]
        mistake = _mistake_of_length(values.get("epochs"), values.get("steps"))
        if mistake:  # pydantic gets to it only when all else is right
            lines.append(f"{source}: {mistake}")
        raise InputError("\n".join(dict.fromkeys(lines))) from None
    entry = spec.entry()
    if check_files and entry is not None and entry.file is not None and not entry.file.is_file():
        raise InputError(f"{blame('model.entry', source, origins)}: no such file: {entry.file}")
    return spec


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, for editors and for ``dtrain schema``."""
    schema = JobSpec.model_json_schema()
    for section in schema["$defs"].values():
        for key in section["properties"].values():
            if isinstance(key.get("default"), dict) and set(key["default"]) == {"count", "unit"}:
                key["default"] = str(Every(**key["default"]))  # as it is written in a job file
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
