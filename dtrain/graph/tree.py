"""Argument trees: nested dicts, lists, tuples, named tuples and dataclasses, taken apart into leaves and put together
again.

The invariant: the order of leaves depends on the structure alone (dict keys sorted, fields in order of declaration),
so every process sees the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

LEAF = ("leaf",)


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Return the leaves in order and the structure (hashable) that `unflatten` needs."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _parts(tree: Any) -> tuple[Any, list[tuple[str, Any]]] | None:
    """Return (kind, [(name, child)]) of an inner node, or None for a leaf."""
    if isinstance(tree, dict):
        try:
            keys = sorted(tree)
        except TypeError:
            keys = sorted(tree, key=lambda key: (type(key).__name__, str(key)))
        return ("dict", tuple(keys)), [(str(key), tree[key]) for key in keys]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return ("namedtuple", type(tree)), list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return (kind, None), [(str(i), child) for i, child in enumerate(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return ("dataclass", type(tree)), [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree)]
    return None


def _flatten(tree: Any, leaves: list[Any]) -> Any:
    parts = _parts(tree)
    if parts is None:
        leaves.append(tree)
        return LEAF
    kind, children = parts
    return (*kind, tuple([_flatten(child, leaves) for _, child in children]))


def unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    """Rebuild the tree of `structure` around these leaves."""
    iterator = iter(leaves)
    tree = _unflatten(structure, iterator)
    if next(iterator, LEAF) is not LEAF:
        raise ValueError("more leaves than the structure holds")
    return tree


def _unflatten(structure: Any, leaves: Any) -> Any:
    if structure is LEAF or structure == LEAF:
        return next(leaves)
    kind, detail, children = structure
    built = [_unflatten(child, leaves) for child in children]
    if kind == "dict":
        return dict(zip(detail, built, strict=True))
    if kind == "list":
        return built
    if kind == "tuple":
        return tuple(built)
    if kind == "namedtuple":
        return detail(*built)
    values = {f.name: value for f, value in zip(dataclasses.fields(detail), built, strict=True)}
    tree = detail(**{f.name: values[f.name] for f in dataclasses.fields(detail) if f.init})
    for f in dataclasses.fields(detail):
        if not f.init:
            object.__setattr__(tree, f.name, values[f.name])
    return tree


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the tree with `function` applied to each leaf."""
    leaves, structure = flatten(tree)
    return unflatten(structure, [function(leaf) for leaf in leaves])


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return (name, leaf) pairs in the order of `flatten`, with names such as "layers.0.w"."""
    found: list[tuple[str, Any]] = []

    def walk(prefix: str, part: Any) -> None:
        parts = _parts(part)
        if parts is None:
            found.append((prefix, part))
            return
        for name, child in parts[1]:
            walk(f"{prefix}.{name}" if prefix else name, child)

    walk("", tree)
    return found
