"""One BLAS thread per worker: two threads cut a matrix product in another way and change its bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def set_one_thread() -> None:
    """Set the environment for this process and its children; only of use before NumPy is imported."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit the BLAS of this process to one thread for a while, also where NumPy is loaded already (a notebook)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield
