"""What `dtrain draw` draws: the loss of a job on its first shard, or a function on the defaults of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dtrain.errors import InputError
from dtrain.graph import Tensor, trace
from dtrain.graph.drawing import draw
from dtrain.graph.tree import flatten, named_leaves
from dtrain.jobs.build import build
from dtrain.jobs.document import parse_yaml
from dtrain.jobs.spec import load_spec
from dtrain.jobs.user_code import load_function
from dtrain.train.introspection import shard_graph
from dtrain.train.shard import told

_SPECS = (".yaml", ".yml", ".json", ".toml")


def draw_target(target: str, arguments: Iterable[str], overrides: Iterable[str], max_nodes: int) -> str:
    """Return the SVG of a job file, of module:function or of file.py:function. Raises InputError, one line."""
    if target.endswith(_SPECS):
        spec = load_spec(target, overrides)
        program = build(spec)
        graph = shard_graph(program, program.initial_parameters())
        return draw(graph, title=f"{spec.name}: loss of the first shard", max_nodes=max_nodes)
    function = load_function(target, "draw", "a job file (.yaml, .toml), module:function or file.py:function")
    values = _arguments(function, target, arguments)
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    positional = sum(kind is not inspect.Parameter.KEYWORD_ONLY for kind in kinds)

    def recorded(*given: Any) -> Any:
        named = dict(zip(list(values)[positional:], given[positional:], strict=True))
        result = function(*given[:positional], **named)
        for leaf in flatten(result)[0]:
            if not isinstance(leaf, Tensor) and np.asarray(leaf).dtype.kind not in "biufc":
                raise InputError(f"it returns a {type(leaf).__name__}; return numbers computed with NumPy")
        return result

    try:
        graph = trace(recorded, *values.values())
    except (Exception, SystemExit) as error:
        raise InputError(f"draw: {target}: {told(error)}") from error
    for node, name in zip(graph.inputs, _names(values), strict=True):
        node.name = name
    return draw(graph, title=target, max_nodes=max_nodes)


def _names(values: Mapping[str, Any]) -> list[str]:
    """The names of the inputs that the arguments become: theirs, with the path in a tree behind it."""
    leaves = [(f"{n}.{path}" if path else n, leaf) for n, value in values.items() for path, leaf in named_leaves(value)]
    return [name for name, leaf in leaves if isinstance(leaf, float | np.ndarray | np.generic)]


def _arguments(function: Any, target: str, given: Iterable[str]) -> dict[str, Any]:
    """The arguments by name: what --arg says, else the default; numbers and lists of them become float arrays."""
    values: dict[str, Any] = {}
    for text in given:
        name, equals, said = text.partition("=")
        if not equals:
            raise InputError(f"--arg {text}: expected NAME=VALUE, for example x=-2 or w=[1, 2]")
        values[name] = parse_yaml(said, f"--arg {name}")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise InputError(f"draw: {target}: its arguments are not known; write a function that calls it") from None
    unknown = [name for name in values if name not in parameters]
    if unknown:
        raise InputError(f"--arg {unknown[0]}: {target} has the arguments {', '.join(parameters) or 'none'}")
    result: dict[str, Any] = {}
    for name, parameter in parameters.items():
        value = values.get(name, parameter.default)
        if value is parameter.empty:
            raise InputError(f"draw: {target}: {name} has no value; give it a default, or --arg {name}=VALUE")
        if name in values:
            try:
                value = float(value) if np.ndim(value) == 0 else np.array(value, np.float64)
            except (TypeError, ValueError):
                raise InputError(f"--arg {name}: expected a number or a list of numbers, got {value!r}") from None
        elif isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        result[name] = value
    return result
