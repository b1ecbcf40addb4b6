"""Every exception that a user can meet.

Each carries one line that says what is wrong, where, and what to do; the command line prints that line and leaves with
``exit_code``. A traceback is for our own mistakes, never for a user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DtrainError(Exception):
    """The base of all errors that dtrain raises on purpose. ``exit_code`` is what a command returns."""

    exit_code = 3


class InputError(DtrainError):
    """The job cannot start as it is described: an unknown key, a missing file, a wrong type or shape."""

    exit_code = 2


class TraceError(InputError, TypeError):
    """A function cannot be recorded as a graph, for example because Python branches on a traced value.

    A TypeError too, as Python and NumPy raise for what a type does not do.
    """


class UnsupportedFunctionError(TraceError):
    """A NumPy function that has no gradient rule here was called on a traced array."""


class ShapeError(InputError):
    """Shapes that do not fit; the message names the operation, both shapes and the line of the user's model."""


class CheckpointError(DtrainError):
    """A checkpoint is damaged, incomplete or belongs to another job."""


class NonFiniteError(DtrainError):
    """A loss or gradient became nan or infinite; the message names step, shard and tensor.

    ``place`` has the same as plain values, as the event ``nonfinite`` does; it is empty where no step is known.
    """

    def __init__(self, message: str, place: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.place = dict(place or {})


class WorkerError(DtrainError):
    """A worker could not start, or workers died faster than they could be replaced."""


class DeadlineError(DtrainError):
    """Something did not arrive in time; the message names it, the setting and its value in seconds."""


class NumericsError(DtrainError):
    """A worker computes in another numerics class, so its bits would differ; the message names the field."""

    exit_code = 4
