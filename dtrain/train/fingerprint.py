"""The fingerprint: one SHA-256 over the final parameters, the optimizer state and the position in the data."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fingerprint(tensors: Mapping[str, Mapping[str, NDArray[Any]]], position: Mapping[str, int]) -> str:
    """Return the digest of named tensors by group ("parameters", a state's name) and of the position, as 64 hex digits.

    Names, dtypes, shapes and bytes count, in sorted order of the names; padding and memory order do not.
    """
    digest = hashlib.sha256()
    header = [
        [group, name, np.asarray(a).dtype.str, list(np.shape(a))]
        for group in sorted(tensors)
        for name, a in sorted(tensors[group].items())
    ]
    digest.update(json.dumps([dict(sorted(position.items())), header], separators=(",", ":")).encode())
    for group in sorted(tensors):
        for _, array in sorted(tensors[group].items()):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def extend_chain(chain: str, step: int, loss: float, norm: float) -> str:
    """Return the next link of the chain of digests over the losses and gradient norms of all steps."""
    return hashlib.sha256(bytes.fromhex(chain) + struct.pack("<qdd", step, loss, norm)).hexdigest()


CHAIN_START = hashlib.sha256(b"dtrain").hexdigest()
