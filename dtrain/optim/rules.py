"""The table of update rules by the name that a job spec gives them."""

from __future__ import annotations

from typing import Any

from dtrain.optim.adadelta import Adadelta
from dtrain.optim.adagrad import Adagrad
from dtrain.optim.adam import Adam, AdamW
from dtrain.optim.rmsprop import RMSProp
from dtrain.optim.rule import Rule
from dtrain.optim.sgd import SGD
from dtrain.options import build, unknown_name

RULES: dict[str, tuple[type[Rule], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (Adagrad, {}),
    "adadelta": (Adadelta, {}),
    "rmsprop": (RMSProp, {}),
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
}
"""Name → (class, those of its defaults that the name changes)."""


def make_rule(name: str, **options: Any) -> Rule:
    """The rule of that name; ``InputError`` for a name, an option or a value that does not exist or fit."""
    if name not in RULES:
        raise unknown_name("optimizer.name", "optimizer", name, RULES)
    cls, defaults = RULES[name]
    return build(cls, name, defaults | options)
