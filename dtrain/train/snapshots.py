"""Checkpoints off the critical path: the state is copied at once and written by a thread."""

from __future__ import annotations

import threading
import time
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.train.checkpoint import CheckpointStore
from dtrain.train.observer import Observer
from dtrain.train.state import Tensors


class Snapshots:
    """Writes one checkpoint at a time. ``error`` is why the newest one is not on disk, if it is not."""

    def __init__(self, store: CheckpointStore | None, observer: Observer) -> None:
        self._store, self._observer = store, observer
        self._writer: threading.Thread | None = None
        self.error: CheckpointError | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is a place for checkpoints."""
        return self._store is not None

    def write(self, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        """Start to write ``tensors``, which are this object's now; waits for the one before."""
        self.wait()
        self._writer = threading.Thread(target=self._write, args=(step, tensors, meta), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Wait until what was started is on disk or has failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        assert self._store is not None
        start = time.monotonic()
        try:
            path = self._store.save(step, tensors, meta)
        except CheckpointError as error:
            self.error = error
            self._observer.event("checkpoint_failed", str(error), step=step)
        else:
            self.error = None
            seconds = time.monotonic() - start
            self._observer.checkpoint(step, seconds, sum(f.stat().st_size for f in path.iterdir()))
