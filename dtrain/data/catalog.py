"""The table of data sources by the name that a job spec gives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dtrain.data.characters import Characters
from dtrain.data.clicks import Clicks
from dtrain.data.files import FileOptions, load_npy, load_npz
from dtrain.data.generated import Blobs, Digits, Spiral, Synthetic
from dtrain.data.source import Source, check_finite
from dtrain.data.tasks import AssociativeRecall, Copy, NGrams, PrioritySort, RepeatCopy
from dtrain.errors import InputError
from dtrain.options import Options, build, unknown_name


@dataclass(frozen=True)
class Entry:
    """How a source is made: ``load(options, **paths)``; ``paths`` says of each path option whether it is required."""

    options: type[Options]
    load: Callable[..., Source]
    paths: Mapping[str, bool] = field(default_factory=dict)


SOURCES: dict[str, Entry] = {
    "digits": Entry(Digits, Digits.load),
    "spiral": Entry(Spiral, Spiral.load),
    "blobs": Entry(Blobs, Blobs.load),
    "synthetic": Entry(Synthetic, Synthetic.load),
    "clicks": Entry(Clicks, Clicks.load),
    "characters": Entry(Characters, Characters.load, {"file": False}),
    "copy": Entry(Copy, Copy.load),
    "repeat-copy": Entry(RepeatCopy, RepeatCopy.load),
    "associative-recall": Entry(AssociativeRecall, AssociativeRecall.load),
    "n-grams": Entry(NGrams, NGrams.load),
    "priority-sort": Entry(PrioritySort, PrioritySort.load),
    "npz": Entry(FileOptions, load_npz, {"train": True, "eval": False}),
    "npy": Entry(FileOptions, load_npy, {"x": True, "y": False, "eval_x": False, "eval_y": False}),
}


def make_source(name: str, base_dir: str | os.PathLike[str] = ".", check: bool = True, **options: Any) -> Source:
    """The source of that name; relative paths in its options start from ``base_dir``, the directory of the job's file.

    With ``check`` every float is read once to find nan and infinity; ``check: false`` in a spec omits it, for files
    so large that this takes long, and so should the workers of a job. Raises ``InputError`` for a name, an option, a
    value or a file that does not exist or fit.
    """
    if name not in SOURCES:
        raise unknown_name("data.name", "data source", name, SOURCES)
    if not isinstance(check, bool):
        raise InputError(f"data.check: expected true or false, got {check!r}; correct the key")
    entry = SOURCES[name]
    known = [*entry.paths, *(f.name for f in fields(entry.options))]
    for option in options:
        if option not in known:
            raise InputError(
                f"data.{option}: data source {name!r} has no option {option!r}; choose from {', '.join(sorted(known))}"
            )
    paths = {}
    for option, required in entry.paths.items():
        value = options.pop(option, None)
        if value is None and not required:
            continue
        wanted = "a text file" if option == "file" else f"an .{name} file"
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise InputError(f"data.{option}: expected a path, got {value!r}; give the path of {wanted}")
        paths[option] = Path(base_dir, os.path.expanduser(value))
    source = entry.load(build(entry.options, name, options), **paths)
    if check:
        check_finite(source)
    return source
