"""Checkpoints: the state of a run after a step, on disk, as tensors without pickle and a manifest with their hashes.

Invariant: a directory named ``step-…`` was complete and on the disk before it got that name, and nothing in it is used
before its sizes and SHA-256 are compared with its manifest. So whatever interrupts a save, the checkpoints before it
stay valid. Knows nothing of workers: a checkpoint is the same for any number of them.

::

    checkpoints/step-00000418/parameters.safetensors    one file per group of tensors
                              manifest.json             step, meta, size and hash of each file, digest of itself
    checkpoints/.tmp-…                                  a save that was interrupted; removed on opening
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.errors import CheckpointError, InputError, NumericsError
from dtrain.train.manifest import (
    MANIFEST,
    STEM,
    SUFFIX,
    DamagedError,
    Manifest,
    file_digest,
    is_whole,
    read_manifest,
    reason,
    short,
    step_name,
)

Tensors = Mapping[str, Mapping[str, NDArray[Any]]]

_TEMPORARY, _REPLACED = ".tmp-", ".replaced-"
_STEP_NAME = re.compile(r"step-(\d{8,18})", re.ASCII)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A verified state. ``tensors`` are writable arrays by group and name, ``meta`` is what was saved with them.

    ``digest`` identifies the checkpoint; ``parent`` is the digest of the one that the run saved or loaded before it.
    If newer ones were damaged, ``message`` is a line that says which and why, and ``lost_steps`` how many steps must be
    run again; otherwise they are "" and 0.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, NDArray[Any]]]
    meta: dict[str, Any]
    digest: str
    parent: str | None
    message: str = ""
    lost_steps: int = 0


class CheckpointStore:
    """The checkpoints of one run. One process writes at a time; others open it with ``read_only``.

    Opening to write makes the directory and removes what interrupted saves left. ``keep`` is how many of the newest
    valid ones remain after a save.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 3, read_only: bool = False) -> None:
        if keep < 1:
            raise InputError(f"checkpoint.keep: expected at least 1, got {keep}; correct the key")
        self.directory = Path(directory)
        self.keep = keep
        self.read_only = read_only
        self._parent: str | None = None
        self._damaged: set[str] = set()
        if not read_only:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._clear()
            except OSError as error:
                raise CheckpointError(
                    f"checkpoints cannot be kept in {self.directory}: {reason(error)}; choose another run directory"
                ) from None

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, ascending, whether valid or not."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        steps = (int(match[1]) for name in names if (match := _STEP_NAME.fullmatch(name)))
        return sorted({step for step in steps if step_name(step) in names})

    def save(self, step: int, tensors: Tensors, meta: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove old ones; return its directory.

        ``tensors`` are arrays by group and name, not to be changed before this returns; a group becomes a file.
        ``meta`` is anything that JSON can hold. Takes the place of a checkpoint of the same step. Raises
        ``CheckpointError`` if it cannot be written; then nothing is left of it and the others are as they were.
        """
        name = step_name(step)
        if self.read_only:
            raise CheckpointError(f"checkpoint {name}: {self.directory} was opened to read; open it to write")
        temporary = self.directory / f"{_TEMPORARY}{name}-{os.getpid()}"
        try:
            manifest = _write(temporary, step, tensors, meta, self._parent)
            self._publish(temporary, self.directory / name)
        except OSError as error:
            last = max((s for s in self.steps() if s != step), default=None)
            before = "there is none before it" if last is None else f"{step_name(last)} and older ones are untouched"
            needed = sum(array.nbytes for group in tensors.values() for array in group.values())
            raise CheckpointError(
                f"checkpoint {name}: {self.directory} cannot be written to: {reason(error)}; it needs {needed} bytes: "
                f"make room or choose another run directory; {before}"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._parent = manifest.digest
        self._damaged.discard(name)
        self._prune(step)
        return self.directory / name

    def latest(self, expect: Mapping[str, Any] | None = None) -> Checkpoint | None:
        """The newest valid checkpoint; None if there are none at all.

        Damaged ones are passed over, and the result says so. Each key of ``expect`` must have the same value in the
        checkpoint's meta: otherwise it belongs to another job, which is an error and no reason to look further. Raises
        ``CheckpointError`` if all are damaged, ``NumericsError`` if it is ``numerics`` that differs.
        """
        steps = self.steps()
        damage: list[str] = []
        for step in reversed(steps):
            path = self.directory / step_name(step)
            try:
                checkpoint = self.load(path, expect)
            except DamagedError as error:
                damage.append(str(error))
                self._damaged.add(path.name)
                continue
            if damage:
                lost = steps[-1] - step
                again = "1 step is" if lost == 1 else f"{lost} steps are"
                message = f"{'; '.join(damage)}; using {path.name}, {again} run again"
                return replace(checkpoint, message=message, lost_steps=lost)
            return checkpoint
        if damage:
            raise CheckpointError(
                f"{'; '.join(damage)}; no valid checkpoint is left in {self.directory}: "
                "restore one from a backup or start the job anew in another run directory"
            )
        return None

    def load(self, path: str | os.PathLike[str], expect: Mapping[str, Any] | None = None) -> Checkpoint:
        """Verify and read one checkpoint; ``CheckpointError`` names what is wrong with it."""
        path = Path(path)
        manifest = self.verify(path)
        _check_expected(path.name, manifest.meta, expect or {})
        tensors = {
            file.removesuffix(SUFFIX): _read_tensors(path, file, entry["tensors"])
            for file, entry in manifest.files.items()
        }
        self._parent = manifest.digest
        return Checkpoint(path, manifest.step, tensors, manifest.meta, manifest.digest, manifest.parent)

    def verify(self, path: str | os.PathLike[str]) -> Manifest:
        """Compare every byte of a checkpoint with its manifest; ``CheckpointError`` names the file that differs."""
        path = Path(path)
        manifest = read_manifest(path)
        for file, entry in manifest.files.items():
            sha256 = file_digest(path, file, entry["bytes"])
            if sha256 != entry["sha256"]:
                raise DamagedError(
                    f"checkpoint {path.name}: {file} has sha256 {short(sha256)}, "
                    f"its manifest says {short(entry['sha256'])}"
                )
        return manifest

    def _publish(self, temporary: Path, final: Path) -> None:
        """Give a complete checkpoint its name. One of the same step steps aside, and comes back if this fails."""
        replaced = self.directory / f"{_REPLACED}{final.name}"
        is_there = os.path.lexists(final)
        if is_there:
            _remove(replaced)
            os.rename(final, replaced)
        try:
            os.rename(temporary, final)
        except OSError:
            if is_there:
                os.rename(replaced, final)
            raise
        _sync(self.directory)
        _remove(replaced)

    def _prune(self, saved: int) -> None:
        """Remove all but ``keep`` checkpoints: the one just saved and the newest others not known to be damaged."""
        kept = 1
        for step in reversed(self.steps()):
            path = self.directory / step_name(step)
            if step == saved:
                continue
            if kept < self.keep and path.name not in self._damaged and is_whole(path):
                kept += 1
                continue
            # Renamed first, so that a half removed one is never taken for a damaged one.
            doomed = self.directory / f"{_TEMPORARY}{path.name}-{os.getpid()}"
            try:
                os.rename(path, doomed)
                _remove(doomed)
            except OSError as error:
                # The new checkpoint is valid, so a run must not fail for this.
                logging.getLogger(__name__).warning("checkpoint %s cannot be removed: %s", path, reason(error))

    def _clear(self) -> None:
        for name in os.listdir(self.directory):
            path = self.directory / name
            if name.startswith(_REPLACED):
                final = self.directory / name.removeprefix(_REPLACED)
                if not os.path.lexists(final):
                    os.rename(path, final)
                    _sync(self.directory)
                    continue
                _remove(path)
            elif name.startswith(_TEMPORARY):
                _remove(path)


def _write(temporary: Path, step: int, tensors: Tensors, meta: Mapping[str, Any], parent: str | None) -> Manifest:
    """Write the files of a checkpoint and its manifest into a new directory; all of it is on the disk on return."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    name = step_name(step)
    files: dict[str, dict[str, Any]] = {}
    shutil.rmtree(temporary, ignore_errors=True)
    os.mkdir(temporary)
    mode = stat.S_IMODE(os.stat(temporary).st_mode) & 0o666
    for group, arrays in tensors.items():
        if not STEM.fullmatch(group):
            raise CheckpointError(f"checkpoint {name}: {group!r} cannot be a file's name; use letters, digits and _.-")
        # safetensors reads the memory from its start, whatever the strides say.
        plain = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        path = temporary / f"{group}{SUFFIX}"
        try:
            save_file(plain, path)
        except SafetensorError as error:
            if number := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
            raise CheckpointError(f"checkpoint {name}: {group} cannot be saved: {error}") from None
        os.chmod(path, mode)  # it comes with 0600, whatever the umask
        _sync(path)
        size = os.stat(path).st_size
        shapes = {key: {"dtype": array.dtype.name, "shape": list(array.shape)} for key, array in plain.items()}
        files[path.name] = {"bytes": size, "sha256": file_digest(temporary, path.name, size), "tensors": shapes}
    plain_meta = json.loads(json.dumps(meta, default=_plain))
    manifest = Manifest(step, parent, plain_meta, files)
    with open(temporary / MANIFEST, "xb") as file:
        file.write(manifest.to_bytes())
        file.flush()
        os.fsync(file.fileno())
    _sync(temporary)
    return manifest


def _read_tensors(path: Path, file: str, declared: Mapping[str, Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """The tensors of a file whose hash was compared. Their names are keys of a dict and nothing else."""
    from safetensors import SafetensorError, safe_open

    where = f"checkpoint {path.name}: {file}"
    try:
        with safe_open(path / file, framework="np") as tensors:
            arrays: dict[str, NDArray[Any]] = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{where} cannot be read ({' '.join(str(error).split())})") from None
    held = {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in arrays.items()}
    if held != declared:
        names = sorted(name for name in {*held, *declared} if held.get(name) != declared.get(name))
        raise DamagedError(f"{where} does not hold the tensors that its manifest lists; they differ in {names[0]!r}")
    return arrays


def _check_expected(name: str, meta: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    for key, value in expect.items():
        wanted, held = json.loads(json.dumps(value, default=_plain)), meta.get(key)
        where = key
        while wanted != held and isinstance(wanted, dict) and isinstance(held, dict):
            field = next(k for k in sorted({*wanted, *held}) if wanted.get(k) != held.get(k))
            where, wanted, held = f"{where}.{field}", wanted.get(field), held.get(field)
        if wanted != held:
            kind = NumericsError if key == "numerics" else CheckpointError
            raise kind(
                f"checkpoint {name}: its {where} is {short(str(held))}, this run's is {short(str(wanted))}; "
                + ("resume on a machine like the first" if key == "numerics" else "resume the job that wrote it")
                + " or start anew in another run directory"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"checkpoint meta: {type(value).__name__} cannot be written as JSON")


def _sync(path: Path) -> None:
    """Have a file or directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
