"""The errors of a job file in the project's words: place, key, what was expected, what was found, the remedy.

Owns the translation of pydantic's findings into one line each. Every message has a test that pins its text.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from dtrain.jobs.document import show

MISSPELT = "misspelt"
"""First argument of the ValueError a section raises for a near miss: (MISSPELT, the key found, the key meant)."""

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_PATTERNS = {
    "name": "letters, digits, '.', '_' and '-', at most 64 and none of the signs first",
    "monitor.pushgateway": "http://HOST:PORT or https://HOST:PORT",
    "monitor.textfile": "a path that ends in .prom, which is what node_exporter reads",
    "model.entry": "my_model.py, my_model.py:name, package.module or package.module:name",
}


def describe(detail: ErrorDetails, root: type[BaseModel], source: str, origins: Mapping[str, str]) -> str:
    """Return one line for one finding of pydantic about a document checked against ``root``.

    ``source`` is the file; ``origins`` maps dotted keys that an override has set to that override.
    """
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    match kind:
        case "value_error":
            said = str(context["error"])
            if context["error"].args[0] == MISSPELT:
                _, found, meant = context["error"].args
                key = f"{key}.{found}"
                said = f"unknown key; did you mean {meant}?"
        case "extra_forbidden":
            parent, _, last = key.rpartition(".")
            section = _section_at(root, parent)
            known = list(section.model_fields) if section else []
            near = difflib.get_close_matches(last, known, 1, 0.6)
            said = (
                f"unknown key; did you mean {near[0]}?" if near else f"unknown key; expected one of {', '.join(known)}"
            )
        case "missing":
            said = "missing; add it"
        case "literal_error":
            said = f"expected {context['expected'].replace(chr(39), '')}, got {show(value)}"
        case "string_pattern_mismatch":
            said = f"expected {_PATTERNS[key]}, got {show(value)}"
        case _ if kind in _BOUNDS:
            words, bound = _BOUNDS[kind]
            said = f"expected {words} {context[bound]:g}, got {show(value)}"
        case _:
            said = f"expected {_EXPECTED.get(kind) or detail['msg']}, got {show(value)}"
            section = _section_at(root, key)
            if kind == "model_type" and isinstance(value, str) and section and "name" in section.model_fields:
                said = f"{said}; write {{name: {value}}}"
    return f"{blame(key, source, origins)}: {said}"


def blame(key: str, source: str, origins: Mapping[str, str]) -> str:
    """Return the start of a message about ``key``: the override that set it or something around it, else the file."""
    for place, override in origins.items():
        if key == place:
            return f"--set {override}"
        if key.startswith((f"{place}.", f"{place}[")):
            return f"--set {override}: {key}"
    return f"{source}: {key}" if key else source


def _section_at(root: type[BaseModel], key: str) -> type[BaseModel] | None:
    section: type[BaseModel] | None = root
    for part in key.split(".") if key else ():
        field = section.model_fields.get(part) if section else None
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return section
