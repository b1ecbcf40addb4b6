"""What travels with a job to another machine: the spec, the user's model, and data files that are small.

Invariant: a staged folder is a job of its own: its ``job.yaml`` names nothing outside of it but modules and files that
the user put on the cluster. Nothing is sent from here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from dtrain.data.catalog import SOURCES
from dtrain.errors import InputError
from dtrain.jobs.document import dump_yaml
from dtrain.jobs.run_directory import copy_with_siblings
from dtrain.jobs.spec import JobSpec, load_spec

LIMIT_BYTES = 100_000_000
"""The most that is sent with a job, all files together."""


def stage(spec: JobSpec, folder: Path) -> JobSpec:
    """Fill an empty folder with a job and what it needs; return the job as it will be read there.

    A data file that is named by an absolute path and is not here, or is too large to be sent, is expected at that path
    on the cluster. Raises InputError naming the file for one that is too large and named by a relative path.
    """
    values = spec.model_dump(mode="json")
    values["base_dir"] = "."
    values["model"] |= _stage_model(spec, folder)
    values["data"] |= _stage_data(spec, folder)
    file = folder / "job.yaml"
    file.write_text(dump_yaml(values))
    return load_spec(file)


def is_elsewhere(spec: JobSpec) -> bool:
    """Whether a data file is named by an absolute path that is not on this machine, so that it can't be checked."""
    return any(os.path.isabs(os.path.expanduser(given)) and not path.exists() for given, path in _data(spec).values())


def _stage_model(spec: JobSpec, folder: Path) -> dict[str, Any]:
    entry = spec.entry()
    if entry is None:
        return {}
    if entry.file is not None:
        copy_with_siblings(entry.file, folder)
        name = entry.file.name
        return {"entry": f"{name}:{entry.attribute}" if entry.attribute else name}
    assert entry.module is not None
    top = entry.module.partition(".")[0]
    package, module = Path(spec.base_dir, top), Path(spec.base_dir, f"{top}.py")
    if module.is_file():
        copy_with_siblings(module, folder)
    elif package.is_dir():
        shutil.copytree(package, folder / top, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return {}  # otherwise it is installed, here as on the cluster


def _stage_data(spec: JobSpec, folder: Path) -> dict[str, Any]:
    room = LIMIT_BYTES
    staged: dict[str, Any] = {}
    for option, (given, path) in _data(spec).items():
        is_absolute = os.path.isabs(os.path.expanduser(given))
        try:
            size = path.stat().st_size
        except OSError as error:
            if is_absolute:
                continue
            raise InputError(f"data.{option}: {path} cannot be read: {error.strerror}") from None
        if size > room:
            if is_absolute:
                continue
            raise InputError(
                f"data.{option}: {path} has {size / 1e6:,.0f} MB, and at most {LIMIT_BYTES // 10**6} MB are sent with "
                "a job: put it on storage that all nodes share, and name it by its absolute path there"
            )
        room -= size
        target = folder / "data" / f"{option}{path.suffix}"
        target.parent.mkdir(exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            raise InputError(f"data.{option}: {path} cannot be read: {error.strerror}") from None
        staged[option] = f"data/{target.name}"
    return staged


def _data(spec: JobSpec) -> dict[str, tuple[str, Path]]:
    """The data files of a job by option: the path as it is given, and where that is on this machine."""
    source = SOURCES.get(spec.data.name)
    options = spec.data.options
    given = {option: options[option] for option in (source.paths if source else ()) if options.get(option)}
    return {option: (str(path), spec.resolve(str(path))) for option, path in given.items()}
