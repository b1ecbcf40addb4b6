"""The numerics class: everything about a process that decides the bits of its arithmetic.

Two processes of one class compute the same bits from the same shard. A worker of another one is refused
when it joins.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from functools import cache

import numpy as np


def canary() -> str:
    """Return the digest of a small gradient's bits: matrix products, exponentials, reductions and a square root."""
    words = np.random.Philox(key=[2024, 0]).random_raw(96 * 64).reshape(96, 64)
    x = ((words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23)) - np.float32(1)
    w = np.ascontiguousarray(x[:64, :48])
    h = np.tanh(x @ w)
    e = np.exp(h - h.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    g = x.T @ (p * (1 - h * h))
    norm = np.dot(g.astype(np.float64).ravel(), g.astype(np.float64).ravel())
    update = g / (np.sqrt(g * g) + np.float32(1e-3))
    digest = hashlib.sha256()
    for part in (h, p, g, np.log(p), np.sin(x), np.float64(norm), update):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


@cache
def _simd() -> str:
    configuration = np.show_config(mode="dicts")
    found = configuration.get("SIMD Extensions", {}) if isinstance(configuration, dict) else {}
    return " ".join([*found.get("baseline", []), *found.get("found", [])])


def numerics_class() -> dict[str, str]:
    """Return the numerics class of this process: a name and a value per field."""
    from threadpoolctl import threadpool_info

    from dtrain import __version__

    blas = [i for i in threadpool_info() if i.get("user_api") == "blas" and "numpy" in i.get("filepath", "")]
    blas = blas or [i for i in threadpool_info() if i.get("user_api") == "blas"]
    library = blas[0] if blas else {}
    tiny = np.array([1e-40], np.float32)
    return {
        "dtrain": __version__,
        "numpy": np.__version__,
        "blas": f"{library.get('internal_api', 'none')} {library.get('version', '')}".strip(),
        "blas_kernels": str(library.get("architecture", "unknown")),
        "blas_threads": str(library.get("num_threads", 1)),
        "simd": _simd(),
        "machine": f"{platform.machine()} {sys.byteorder}-endian",
        "denormals": "kept" if (tiny * np.float32(1.0))[0] > 0 else "flushed",
        "canary": canary(),
    }


def describe(numerics: dict[str, str]) -> str:
    """One line for the terminal and result.json."""
    return (
        f"NumPy {numerics['numpy']}, {numerics['blas']} {numerics['blas_kernels']}, {numerics['machine']}, "
        f"canary {numerics['canary']}"
    )
