"""What `dtrain race` does: finds the course, lets the rules walk, says how they did, and draws."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.errors import InputError
from dtrain.jobs.user_code import load_function
from dtrain.optim.race import COURSES, RATES, RULES, Course, Walk, run
from dtrain.options import unknown_name


def race(
    target: str, start: str | None, steps: int | None, rates: Iterable[str], only: str | None
) -> tuple[Course, list[Walk]]:
    """Race on a course by name, or on file.py:function or module:function of two numbers or more.

    ``start`` is "x,y", ``rates`` are RULE=LR, ``only`` the rules that take part, with commas. Raises InputError.
    """
    course = COURSES.get(target) or _of_user(target, start)
    if start is not None:
        course = dataclasses.replace(course, start=_numbers(start))
    if len(course.start) != len(COURSES[target].start if target in COURSES else course.start):
        raise InputError(f"--start: {target} is a function of {len(COURSES[target].start)} numbers, got {start}")
    if steps is not None and steps < 1:
        raise InputError(f"--steps: expected at least 1, got {steps}")
    chosen = dict(course.rates)
    for text in rates:
        rule, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--lr {text}: expected RULE=RATE, for example adam=0.1")
        if rule not in RULES:
            raise unknown_name("--lr", "rule in the race", rule, RULES)
        chosen[rule] = _number(f"--lr {rule}", value)
    if only is not None:
        for rule in only.split(","):
            if rule not in RULES:
                raise unknown_name("--rules", "rule in the race", rule, RULES)
        chosen = {rule: lr for rule, lr in chosen.items() if rule in only.split(",")}
    try:
        walks = run(course, steps, chosen)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"race: {target}: {' '.join(str(error).split())}") from error
    if course.window is None and len(course.start) == 2:
        course = dataclasses.replace(course, window=_window(walks))
    return course, walks


def table(course: Course, walks: list[Walk]) -> str:
    """How each rule did, a line each."""
    lines = [f"{'rule':<10} {'lr':>7}  {'last loss':>12}  {'arrived' if course.goal else 'at'}"]
    for walk in walks:
        at = "(" + ", ".join(f"{v:.4g}" for v in walk.positions[-1]) + ")"
        arrived = f"after {walk.arrived} steps" if walk.arrived is not None else "no"
        end = "not finite" if walk.is_lost else arrived if course.goal else at
        lines.append(f"{walk.rule:<10} {walk.lr:>7g}  {walk.losses[-1]:>12.5g}  {end}")
    return "\n".join(lines)


def to_json(course: Course, walks: list[Walk]) -> dict[str, Any]:
    """The same for machines, with all positions."""
    found = [
        {**dataclasses.asdict(walk), "positions": walk.positions.tolist(), "losses": walk.losses.tolist()}
        for walk in walks
    ]
    return {"course": course.name, "start": list(course.start), "goal": course.goal_text or None, "walks": found}


def draw(course: Course, walks: list[Walk], output: str | None, animation: str | None) -> None:
    """Write the pictures that were asked for; one of them alone needs matplotlib."""
    if output is None and animation is None:
        return
    from dtrain.jobs.race_picture import animate_race, draw_race

    if output is not None:
        draw_race(course, walks, Path(output))
    if animation is not None:
        animate_race(course, walks, Path(animation))


def _of_user(target: str, start: str | None) -> Course:
    if ":" not in target:
        raise unknown_name("race", "course", target, COURSES)
    function = load_function(target, "race")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    count = len(list(parameters))
    if start is None:
        defaults = [p.default for p in parameters]
        if not defaults or any(d is inspect.Parameter.empty for d in defaults):
            raise InputError(f"race: {target}: say where to begin with --start x,y, or give its arguments defaults")
        begin = tuple(float(d) for d in defaults)
    else:
        begin = _numbers(start)
    if count and count != len(begin):
        raise InputError(f"--start: {target} takes {count} numbers, got {len(begin)}")
    return Course(target, lambda p: function(*[p[i] for i in range(len(begin))]), begin, dict(RATES))


def _window(walks: list[Walk]) -> tuple[float, float, float, float]:
    """Around the walks, without the fifth that went farthest: one that is lost must not make the others a dot."""
    points = np.concatenate([walk.positions for walk in walks])
    (left, low), (right, high) = np.quantile(points, [0.02, 0.98], axis=0)
    wide, tall = max(right - left, 1e-3), max(high - low, 1e-3)
    return float(left - wide / 4), float(right + wide / 4), float(low - tall / 4), float(high + tall / 4)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number("--start", part) for part in text.split(","))


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{option}: expected a number, got {text!r}")
    return value
