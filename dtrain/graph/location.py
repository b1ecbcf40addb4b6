"""Where in the user's code something was recorded: the nearest caller outside of the engine, layers and libraries."""

from __future__ import annotations

import os
import sys
from types import FrameType

import numpy as np

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LAYERS = os.path.join(os.path.dirname(os.path.dirname(_HERE)), "nn") + os.sep
_OF_SCIPY = os.path.join(os.path.dirname(os.path.dirname(_HERE)), "scipy") + os.sep
_MODELS = os.path.join(_LAYERS, "models") + os.sep
_NUMPY = os.path.dirname(os.path.abspath(np.__file__)) + os.sep
_SCIPY = os.path.join(os.path.dirname(_NUMPY.rstrip(os.sep)), "scipy") + os.sep
_SKIPPED: dict[str, bool] = {}


def _is_skipped(filename: str) -> bool:
    skip = filename.startswith((_HERE, _NUMPY, _SCIPY, _OF_SCIPY)) or (
        filename.startswith(_LAYERS) and not filename.startswith(_MODELS)
    )
    _SKIPPED[filename] = skip
    return skip


def user_line() -> tuple[str, int]:
    """Return (file, line) of the nearest caller that is neither this engine, nor a layer, nor NumPy."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        skip = _SKIPPED.get(filename)
        if skip is None:
            skip = _is_skipped(filename)
        if not skip:
            return filename, frame.f_lineno
        frame = frame.f_back
    return "?", 0


def format_line(line: tuple[str, int]) -> str:
    """Write (file, line) as "dir/file.py:14", relative to the current directory where the file is below it."""
    filename, number = line
    here = os.getcwd() + os.sep
    shown = filename[len(here) :] if filename.startswith(here) else os.path.basename(filename)
    return f"{shown}:{number}"


def scipy_caller() -> str | None:
    """Return the name of the function of SciPy that the user's code called, if this is inside of one; that of a method
    of a distribution with the name of the distribution."""
    frame: FrameType | None = sys._getframe(1)
    name: str | None = None
    while frame is not None and _is_skipped(frame.f_code.co_filename):
        name = _name_in_scipy(frame) or name
        frame = frame.f_back
    return name


def _name_in_scipy(frame: FrameType) -> str | None:
    module = frame.f_globals.get("__name__", "")
    called = frame.f_code.co_name
    if not module.startswith("scipy."):
        return None
    if module.startswith("scipy._lib"):
        wrapped = frame.f_locals.get("f")
        if called != "wrapper" or not callable(wrapped):
            return None
        module, called = wrapped.__module__, wrapped.__name__
    package = module.rsplit(".", 1)[0]
    if package == "scipy.stats":
        owner = frame.f_locals.get("self")
        kind = type(getattr(owner, "dist", getattr(owner, "_dist", owner))).__name__
        if kind.endswith("_gen"):
            package = f"{package}.{kind.removesuffix('_gen')}"
    return f"{package}.{called}"


def numpy_caller() -> str | None:
    """Return the name of the function of NumPy, written in Python, that the user's code called, if this is inside of
    one."""
    frame: FrameType | None = sys._getframe(1)
    name: str | None = None
    while frame is not None and _is_skipped(frame.f_code.co_filename):
        if frame.f_code.co_filename.startswith(_NUMPY):
            module = frame.f_globals.get("__name__", "")
            inner = next((part for part in ("linalg", "fft") if f".{part}" in module), "")
            called = frame.f_code.co_name
            name = "np.r_" if called == "__getitem__" else f"np.{inner}.{called}" if inner else f"np.{called}"
        frame = frame.f_back
    return name
