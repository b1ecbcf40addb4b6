"""Options of a job spec: conversion, ranges and the one-line errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from dtrain.errors import InputError
from dtrain.options import Options, build, number


@dataclass(frozen=True)
class Oven(Options):
    section: ClassVar[str] = "oven"

    heat: float = number(above=0, at_most=300)
    trays: tuple[int, ...] = number((1,), at_least=1)
    mode: Literal["air", "grill", "1970"] = "air"
    timer: int | None = number(None, at_least=1)
    light: bool = False


def test_values_are_converted_to_their_annotation() -> None:
    oven = build(Oven, "oven", {"heat": "1.5e2", "trays": [2, 3.0], "timer": 5.0, "mode": 1970})
    assert oven == Oven(heat=150.0, trays=(2, 3), timer=5, mode="1970")
    assert isinstance(oven.heat, float)
    assert isinstance(oven.timer, int)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heat": 20, "tray": 1}, "oven.tray: oven 'oven' has no option 'tray'; did you mean 'trays'?"),
        ({}, "oven.heat: oven 'oven' needs it"),
        ({"heat": 0}, "oven.heat: expected a number above 0 and at most 300, got 0.0"),
        ({"heat": "hot"}, "oven.heat: expected a number, got 'hot'"),
        ({"heat": True}, "oven.heat: expected a number, got True"),
        ({"heat": float("nan")}, "oven.heat: expected a number, got nan"),
        ({"heat": 20, "trays": [1, 0]}, "oven.trays: expected a number at least 1, got 0"),
        ({"heat": 20, "trays": [1, 2.5]}, r"oven.trays\[1\]: expected a whole number, got 2.5"),
        ({"heat": 20, "trays": 3}, "oven.trays: expected a list, got 3"),
        ({"heat": 20, "mode": "gril"}, "oven.mode: got 'gril'; did you mean 'grill'?"),
        ({"heat": 20, "light": "yes"}, "oven.light: expected true or false, got 'yes'"),
        ({"heat": 20, "timer": 0}, "oven.timer: expected a number at least 1, got 0"),
    ],
)
def test_errors_are_one_line_and_name_the_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(Oven, "oven", options)
    assert "\n" not in str(caught.value)


def test_a_given_field_is_not_an_option() -> None:
    assert build(Oven, "oven", {"light": True}, heat=10).heat == 10.0
    with pytest.raises(InputError, match="no option 'heat'"):
        build(Oven, "oven", {"heat": 10}, heat=10)
