"""The manifest of a checkpoint: what its files must be, and the comparison of what they are with that.

Invariant: no file is read before its kind and size are as declared, and none counts as verified before its SHA-256 is.
A file's name comes from the manifest only if it is a plain name; tensors' names are never names of files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError

MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
FORMAT, VERSION = "dtrain-checkpoint", 1
STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}", re.ASCII)

_MANIFEST_BYTES = 1 << 26  # more than a million tensors; a larger manifest is not ours
_CHUNK_BYTES = 1 << 20
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says. ``files``: name → {"bytes", "sha256", "tensors": name → {"dtype", "shape"}}."""

    step: int
    parent: str | None
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def digest(self) -> str:
        """SHA-256 of the content, 64 hex digits."""
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_bytes(self) -> bytes:
        text = json.dumps({**self._content(), "digest": self.digest}, sort_keys=True, indent=1)
        return text.encode("ascii") + b"\n"

    def _content(self) -> dict[str, Any]:
        content = {"format": FORMAT, "version": VERSION, "step": self.step, "parent": self.parent}
        return {**content, "meta": self.meta, "files": self.files}


class DamagedError(CheckpointError):
    """A checkpoint that must not be used, while an older one may be."""


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint ``path``; ``DamagedError`` if it is not as it was written."""
    where = f"checkpoint {path.name}: {MANIFEST}"
    size = _size(path, MANIFEST)
    if size > _MANIFEST_BYTES:
        raise DamagedError(f"{where} has {size} bytes, more than a manifest can have ({_MANIFEST_BYTES})")
    data = _read(path, MANIFEST)
    try:
        document = json.loads(data)
        content = {key: value for key, value in document.items() if key != "digest"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest, stated = hashlib.sha256(text.encode()).hexdigest(), document["digest"]
    except (ValueError, AttributeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{where} cannot be read ({type(error).__name__})") from None
    if digest != stated:
        raise DamagedError(f"{where} has digest {short(digest)}, it says {short(str(stated))}")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise CheckpointError(
            f"{where} is of format {content.get('format')} {content.get('version')}, this dtrain reads {FORMAT} "
            f"{VERSION}; use the dtrain that wrote it"
        )
    try:
        manifest = Manifest(content["step"], content["parent"], content["meta"], content["files"])
        is_valid = _is_valid(manifest) and manifest.to_bytes() == data
    except (AttributeError, KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise DamagedError(f"{where} is not as dtrain writes it")
    if path.name != step_name(manifest.step):
        raise DamagedError(f"{where} is that of step {manifest.step}")
    return manifest


def _is_valid(manifest: Manifest) -> bool:
    """Whether all that is used of a manifest has the right type. A hash keeps off accidents, not malice."""
    return (
        type(manifest.step) is int
        and manifest.step >= 0
        and (manifest.parent is None or isinstance(manifest.parent, str))
        and isinstance(manifest.meta, dict)
        and all(
            file.endswith(SUFFIX)
            and STEM.fullmatch(file) is not None
            and type(entry["bytes"]) is int
            and isinstance(entry["sha256"], str)
            and all(isinstance(t["dtype"], str) and isinstance(t["shape"], list) for t in entry["tensors"].values())
            for file, entry in manifest.files.items()
        )
    )


def is_whole(path: Path) -> bool:
    """Whether the manifest and the sizes are right, without reading the tensors."""
    try:
        return all(_size(path, file) == entry["bytes"] for file, entry in read_manifest(path).files.items())
    except CheckpointError:
        return False


def _size(path: Path, file: str) -> int:
    """The size of a file of a checkpoint; it must be a plain file in a plain directory, not a link or a pipe."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise DamagedError(f"checkpoint {path.name}: is not a directory")
        status = os.lstat(path / file)
    except OSError as error:
        raise _unreadable(path, file, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"checkpoint {path.name}: {file} is not a plain file")
    return status.st_size


def _read(path: Path, file: str) -> bytes:
    try:
        return (path / file).read_bytes()
    except OSError as error:
        raise _unreadable(path, file, error) from None


def file_digest(path: Path, file: str, expected_bytes: int) -> str:
    """SHA-256 of a file of ``expected_bytes``, which is compared before anything is read."""
    size = _size(path, file)
    if size != expected_bytes:
        raise DamagedError(f"checkpoint {path.name}: {file} has {size} bytes, its manifest says {expected_bytes}")
    digest = hashlib.sha256()
    try:
        with open(path / file, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise _unreadable(path, file, error) from None
    return digest.hexdigest()


def _unreadable(path: Path, file: str, error: OSError) -> CheckpointError:
    if error.errno == errno.ENOENT:
        return DamagedError(f"checkpoint {path.name}: {file} is missing")
    # What may come right by itself, such as missing permission, is no damage: going back would lose steps for nothing.
    kind = DamagedError if error.errno in _DAMAGE else CheckpointError
    return kind(f"checkpoint {path.name}: {file} cannot be read: {reason(error)}")


def step_name(step: int) -> str:
    """The name of a checkpoint's directory."""
    return f"step-{step:08d}"


def short(text: str) -> str:
    """A digest for a message: its first digits."""
    return text if len(text) <= 24 else f"{text[:8]}…"


def reason(error: OSError) -> str:
    """Why the operating system refused, without the path."""
    return error.strerror or " ".join(str(error).split())
