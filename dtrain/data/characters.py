"""Text as windows of characters, for models that predict the next one."""

from __future__ import annotations

import codecs
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dtrain.data.source import Source
from dtrain.errors import InputError
from dtrain.options import Options, number


@dataclass(frozen=True)
class Characters(Options):
    """Windows of ``window`` characters, one every ``stride``, and for each character the one after it.

    ``x`` and ``y`` are int64 (n, window): the place of each character among the ``classes`` different ones of the text,
    in the order of their code points. The last ``held_out`` of the text is for evaluation. The text is the Zen of
    Python, 856 characters, unless a file is given. ``dtype`` changes nothing: there are no floats.
    """

    section = "data"
    window: int = number(32, at_least=1)
    stride: int = number(1, at_least=1)
    held_out: float = number(0.1, at_least=0, below=1)
    dtype: Literal["float32", "float64"] = "float32"

    def load(self, file: Path | None = None) -> Source:
        """Raises ``InputError`` for a file that is no UTF-8 text, and for a text that is too short for a window."""
        text = zen_of_python() if file is None else _read(file)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        alphabet, ids = np.unique(points, return_inverse=True)
        held_out = int(self.held_out * len(ids))
        train = self._windows(ids[: len(ids) - held_out], "train")
        evaluation = self._windows(ids[len(ids) - held_out :], "held out") if held_out else {}
        return Source(train, evaluation, classes=len(alphabet))

    def _windows(self, ids: np.ndarray, part: str) -> dict[str, np.ndarray]:
        if len(ids) <= self.window:
            raise InputError(
                f"data.window: expected fewer than the {len(ids)} characters that are {part}, got {self.window}; "
                "give a smaller window, a longer text or another held_out"
            )
        views = np.lib.stride_tricks.sliding_window_view(ids.astype(np.int64), self.window + 1)[:: self.stride]
        return {"x": views[:, :-1], "y": views[:, 1:]}


def zen_of_python() -> str:
    """Tim Peters' Zen of Python (PEP 20, public domain), from the module ``this``, which prints it when imported."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"data.file: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"data.file: {file} is not text in UTF-8 ({error}); convert it") from None
