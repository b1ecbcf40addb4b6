"""Import the user's Python, a file by its path or a module by its name; a mistake in it is one line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from dtrain.errors import InputError


def load_file(path: Path, key: str) -> ModuleType:
    """Import a file, with its folder importable as for a script. ``key`` begins the message of an InputError."""
    _make_importable(str(path.absolute().parent))
    name = f"dtrain_model_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    loader = specification.loader
    assert loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    _run(path.name, key, lambda: loader.exec_module(module))
    return module


def load_module(name: str, folder: str, key: str) -> ModuleType:
    """Import a module, with ``folder`` importable. ``key`` begins the message of an InputError."""
    _make_importable(folder)
    _run(name, key, lambda: importlib.import_module(name))
    return sys.modules[name]


def load_function(target: str, key: str, wanted: str = "module:function or file.py:function") -> Callable[..., Any]:
    """Import the function that module:function or file.py:function names; ``wanted`` says what was expected."""
    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"{key}: {target}: expected {wanted}")
    if not place.endswith(".py"):
        module = load_module(place, ".", key)
    elif Path(place).is_file():
        module = load_file(Path(place), key)
    else:
        raise InputError(f"{key}: {place}: no such file")
    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f"{key}: {place}: there is no function {name} in it")
    return cast(Callable[..., Any], found)


def _make_importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _run(name: str, key: str, load: Callable[[], object]) -> None:
    """Run the user's code; an error in it is theirs, told in one line with the innermost line of their file."""
    try:
        load()
    except (Exception, SystemExit) as error:
        line = ""
        trace = error.__traceback__
        while trace is not None:
            if name.removesuffix(".py").rsplit(".", 1)[-1] in trace.tb_frame.f_code.co_filename:
                line = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{key}: {name} cannot be imported: {said}{line}") from error
