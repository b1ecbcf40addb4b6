"""The options of things that a job spec names: update rules, schedules, models.

Such a thing is a frozen dataclass that derives from ``Options``; its fields are the keys of the spec. Invariant: an
instance that exists is valid, whether it came from a spec or from Python, because every field is converted and
checked when it is made. This module knows fields, types and ranges; it does not read files and knows nothing about
what the options mean.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from dtrain.errors import InputError

O = TypeVar("O", bound="Options")  # noqa: E741


def number(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a numeric field with its range; in a list field the range holds for every item."""
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    metadata = {"bounds": {word: bound for word, bound in bounds.items() if bound is not None}}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of the dataclasses that a spec fills. ``section`` is the key of the spec that holds them."""

    section: ClassVar[str] = "options"

    def __post_init__(self) -> None:
        """Convert and check every field; raise ``InputError`` naming the key."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            key = f"{self.section}.{field.name}"
            value = checked(key, hints[field.name], getattr(self, field.name), field.metadata.get("bounds", {}))
            object.__setattr__(self, field.name, value)


def checked(key: str, hint: Any, value: Any, bounds: Mapping[str, float]) -> Any:
    """The value of one key, converted to its annotation and within bounds; ``InputError`` naming the key otherwise."""
    value = _converted(key, hint, value)
    for item in value if isinstance(value, tuple) else (value,):
        if item is not None:
            _check_bounds(key, item, bounds)
    return value


def build(cls: type[O], name: str, options: Mapping[str, Any], **given: Any) -> O:
    """Make ``cls(**options, **given)``; ``InputError`` for an option that it does not have, or that is missing.

    ``given`` are fields that come from elsewhere in the spec, so they are no options.
    """
    kind = cls.section.rpartition(".")[2]
    fields = [field for field in dataclasses.fields(cls) if field.name not in given]
    known = [field.name for field in fields]
    for option in options:
        if option not in known:
            raise InputError(
                f"{cls.section}.{option}: {kind} {name!r} has no option {option!r}; {_suggest(option, known)}"
            )
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in options:
            raise InputError(f"{cls.section}.{field.name}: {kind} {name!r} needs it; add the key")
    return cls(**options, **given)


def unknown_name(key: str, kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a table of such a ``kind``, to be raised by the owner of the table."""
    return InputError(f"{key}: there is no {kind} {name!r}; {_suggest(str(name), list(known))}")


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}choose from {', '.join(sorted(known))}" if known else "it takes no options"


def _converted(key: str, hint: Any, value: Any) -> Any:
    """The value as the annotation wants it. Text that is a number is taken, for YAML 1.1 reads ``1e-3`` as text."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in arguments:
        if value is None:
            return None
        return _converted(key, next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_converted(f"{key}[{i}]", arguments[0], item) for i, item in enumerate(value))
        raise InputError(f"{key}: expected a list, got {value!r}; write it in brackets, such as [128, 64]")
    if origin is typing.Literal:
        if value in arguments:
            return value
        if str(value) in arguments and not isinstance(value, bool):  # YAML reads a name such as 2012 as a number
            return str(value)
        known = [str(a).lower() if isinstance(a, bool) else str(a) for a in arguments]  # as in a spec
        raise InputError(f"{key}: got {value!r}; {_suggest(str(value), known)}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise InputError(f"{key}: expected true or false, got {value!r}; correct the key")
    return _as_number(key, hint, value)


def _as_number(key: str, hint: type, value: Any) -> Any:
    kind = "a whole number" if hint is int else "a number"
    try:
        if isinstance(value, bool):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{key}: expected {kind}, got {value!r}; correct the key") from None
    if not math.isfinite(result) or (hint is int and result != int(result)):
        raise InputError(f"{key}: expected {kind}, got {value!r}; correct the key")
    return int(result) if hint is int else result


def _check_bounds(key: str, value: Any, bounds: Mapping[str, float]) -> None:
    holds = {
        "at least": lambda bound: value >= bound,
        "above": lambda bound: value > bound,
        "at most": lambda bound: value <= bound,
        "below": lambda bound: value < bound,
    }
    if not all(holds[word](bound) for word, bound in bounds.items()):
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items())
        raise InputError(f"{key}: expected a number {wanted}, got {value!r}; correct the key")
