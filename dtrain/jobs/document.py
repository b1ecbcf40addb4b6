"""Plain documents: YAML, JSON and TOML read into plain values, and plain values written as YAML.

Owns how text becomes values and what goes wrong on the way: every mistake is an InputError of one line that names the
file and, where the format tells, the line. Invariant: what ``dump_yaml`` writes, ``read_document`` reads back equal. It
knows nothing about job specs.

Scalars follow YAML 1.2 where PyYAML's 1.1 surprises: ``1e-3`` is a number, ``010`` is ten, ``1:30`` and ``2026-11-23``
are text; a key given twice is refused instead of silently taking the last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from dtrain.errors import InputError

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("int", r"^[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    ("merge", r"^<<$", "<"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - filled below instead of inherited

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be text; quote it", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the loader's, so that exactly the needed text is quoted

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    prefix = text.lstrip("+-")[:2].lower()
    return int(text, {"0x": 16, "0o": 8, "0b": 2}.get(prefix, 10))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML leaves Unicode's line ends unquoted, and they read back as a space.
    style = '"' if re.search("[\x7f-\xa0\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), [*_first, ""])
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Dumper.add_representer(str, _represent_text)


def parse_yaml(text: str, source: str) -> Value:
    """Read one YAML document. ``source`` starts the error message, followed by the line for a text of several lines."""
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None and "\n" in text else ""
        problem = error.problem or error.context or "broken"
        raise InputError(f"{source}{line}: not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML: {_first_line(error)}") from None
    return to_plain(document, source)


def parse_toml(text: str, source: str) -> Value:
    """Read a TOML document; its dates are refused, since no value of a job is one."""
    import tomllib  # costs 10 ms, and most jobs are YAML

    try:
        return to_plain(tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as error:
        problem = _first_line(error)
        found = re.search(r" \(at line (\d+), column \d+\)$", problem)
        line = f":{found[1]}" if found else ""
        raise InputError(f"{source}{line}: not valid TOML: {problem[: found.start()] if found else problem}") from None


_PARSERS = {".yaml": parse_yaml, ".yml": parse_yaml, ".json": parse_yaml, ".toml": parse_toml}


def read_document(path: str | os.PathLike[str]) -> Value:
    """Read a file by its suffix: .yaml, .yml, .json (a subset of YAML) or .toml.

    Raises InputError naming the file if it is missing, a directory, unreadable, not UTF-8, empty or broken.
    """
    source = str(path)
    parse = _PARSERS.get(Path(path).suffix.lower())
    if parse is None:
        raise InputError(f"{source}: expected a file that ends in {', '.join(_PARSERS)}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    document = parse(text, source)
    if document is None or document == {}:
        raise InputError(f"{source}: empty; a job needs at least model, data, optimizer, batch, and epochs or steps")
    return document


def to_plain(value: object, source: str, where: str = "") -> Value:
    """Return ``value`` as None, bool, int, float, str, list and dict, through and through; the result shares nothing.

    Tuples become lists and NumPy scalars Python numbers. Raises InputError naming the place for anything else, for a
    key that is not text, for inf or nan, and for a value that contains itself.
    """
    return _to_plain(value, source, where, ())


def _to_plain(value: object, source: str, where: str, parents: tuple[int, ...]) -> Value:
    at = f"{source}: {where}" if where else source
    match value:
        case None | bool() | str():
            return value if value is None or isinstance(value, bool) else str(value)
        case Integral():
            return int(value)
        case Real():
            number = float(value)
            if number - number != 0:
                raise InputError(f"{at}: expected a finite number, got {number}")
            return number
        case list() | tuple() | dict():
            if id(value) in parents:
                raise InputError(f"{at}: contains itself; write the value out")
            parents = (*parents, id(value))
        case _:
            raise InputError(f"{at}: expected text, a number, true, false, null, a list or a mapping, got {value!r}")
    if not isinstance(value, dict):
        return [_to_plain(item, source, f"{where}[{i}]", parents) for i, item in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{at}: a key must be text, got {key!r}")
    return {k: _to_plain(v, source, f"{where}.{k}" if where else k, parents) for k, v in value.items()}


def dump_yaml(value: Value) -> str:
    """Return ``value`` as YAML: mappings in their own order, the innermost lists and mappings on one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def apply_overrides(document: dict[str, Value], overrides: Iterable[str]) -> dict[str, str]:
    """Set ``a.b=value`` in ``document``, in place and in order; values are YAML. Return {dotted key: the override}.

    Missing mappings on the way are made. Raises InputError naming the override if it has no key, no ``=``, a value that
    is not YAML, or a way that leads through something other than a mapping.
    """
    origins = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        parts = key.split(".")
        source = f"--set {override}"
        if not equals or not all(parts):
            raise InputError(f"{source}: expected KEY=VALUE, for example --set optimizer.lr=0.01")
        target = document
        for depth, part in enumerate(parts[:-1], 1):
            if target.get(part) is None:
                target[part] = {}
            inner = target[part]
            if not isinstance(inner, dict):
                raise InputError(f"{source}: {'.'.join(parts[:depth])} is {show(inner)}, not a mapping; set it whole")
            target = inner
        target[parts[-1]] = parse_yaml(text, source)
        origins[key] = override
    return origins


def show(value: object) -> str:
    """Return a value as a message shows it: text in double quotes, at most about 60 characters."""
    import json

    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
