"""The record of a run's insides: introspection.jsonl, computed and written by a thread while the run goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError
from dtrain.monitor.lines import LineFile, encode
from dtrain.train.introspection import introspect
from dtrain.train.program import Program


class IntrospectionLog:
    """Writes one line at a time. ``failed`` is told what goes wrong, which costs the line and never the run."""

    def __init__(self, path: Path, program: Program, first_step: int) -> None:
        """Open the file; what it says of steps that come again is cut off."""
        self._program, self._file = program, LineFile(path)
        self._file.cut(lambda line: line.get("step", 0) >= first_step)
        self._thread: threading.Thread | None = None
        self.failure: str | None = None
        self._graph: Any = None  # the last one that was written

    def start(self, step: int, tensors: Any) -> None:
        """Begin to describe this state, which is this object's now; waits for the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, tensors), name="introspection")
        self._thread.start()

    def wait(self) -> None:
        """Wait until what was begun is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.wait()
        self._file.close()

    def _write(self, step: int, tensors: Any) -> None:
        try:
            found = introspect(self._program, tensors, step)
            if found["graph"] == self._graph:
                del found["graph"]
            else:
                self._graph = found["graph"]
            self._file.append([encode(found)])
        except DtrainError as error:
            self.failure = str(error)
