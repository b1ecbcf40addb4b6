"""Trees of arguments come apart in one order and go together again."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest

from dtrain.graph.tree import flatten, map_leaves, named_leaves, unflatten

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Layer:
    w: object
    b: object


TREE = {"layers": [{"w": 1, "b": 2}, (3, None)], "head": Layer(Pair(4, 5), []), "empty": {}}


def test_names_and_order():
    assert named_leaves(TREE) == [
        ("head.w.left", 4),
        ("head.w.right", 5),
        ("layers.0.b", 2),
        ("layers.0.w", 1),
        ("layers.1.0", 3),
        ("layers.1.1", None),
    ]
    assert flatten(TREE)[0] == [leaf for _, leaf in named_leaves(TREE)]
    assert named_leaves(7) == [("", 7)]


def test_there_and_back():
    leaves, structure = flatten(TREE)
    assert unflatten(structure, leaves) == TREE
    assert hash(structure) == hash(flatten(TREE)[1])
    assert map_leaves(lambda x: (x or 0) + 1, {"a": [1, 2]}) == {"a": [2, 3]}


def test_order_does_not_depend_on_insertion():
    assert flatten({"b": 1, "a": 2}) == flatten({"a": 2, "b": 1})


def test_structures_differ():
    assert flatten([1])[1] != flatten((1,))[1]
    assert flatten({"a": 1})[1] != flatten({"b": 1})[1]
    with pytest.raises(ValueError, match="more leaves"):
        unflatten(flatten([1])[1], [1, 2])
