"""The pictures of a race: contours with the trajectories, or the losses, as SVG, PNG or an animated GIF.

Needs matplotlib, the extra ``plots``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dtrain.errors import InputError
from dtrain.optim.race import Course, Walk

FRAMES = 100
"""The most frames of an animation."""

_COLOURS = ("#d62728", "#2ca02c", "#9467bd", "#1f77b4", "#ff7f0e", "#8c564b", "#17202a")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # told apart without colours too


def draw_race(course: Course, walks: list[Walk], path: Path) -> None:
    """Write the picture of a race to ``path``: .svg or .png. Raises InputError without matplotlib."""
    if path.suffix not in (".svg", ".png"):
        raise InputError(f"race: expected a picture .svg or .png, got {path}; change the name")
    plots = _matplotlib()
    figure, axes = _scene(plots, course, walks)
    for walk, colour, marker in zip(walks, _COLOURS, _MARKERS, strict=False):
        xs, ys = _line(course, walk)
        axes.plot(xs, ys, color=colour, lw=1.6, label=_label(walk))
        axes.plot(xs[-1:], ys[-1:], color=colour, marker=marker, ms=6)
    axes.legend(loc="upper right" if course.window is None else "upper left", fontsize=8, framealpha=0.9)
    _save(figure, path)


def animate_race(course: Course, walks: list[Walk], path: Path) -> None:
    """Write the race as a GIF of at most ``FRAMES`` pictures. Raises InputError without matplotlib."""
    if path.suffix != ".gif":
        raise InputError(f"race: expected an animation .gif, got {path}; change the name")
    plots = _matplotlib()
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, axes = _scene(plots, course, walks)
    lines = []
    for walk, colour, marker in zip(walks, _COLOURS, _MARKERS, strict=False):
        (line,) = axes.plot([], [], color=colour, lw=1.6, label=_label(walk))
        (head,) = axes.plot([], [], color=colour, marker=marker, ms=6)
        lines.append((line, head, *_line(course, walk)))
    axes.legend(loc="upper right" if course.window is None else "upper left", fontsize=8, framealpha=0.9)
    note = axes.text(0.99, 0.01, "", transform=axes.transAxes, ha="right", va="bottom", fontsize=9)
    last = max(len(walk.positions) for walk in walks) - 1
    steps = np.unique(np.linspace(0, last, min(FRAMES, last + 1)).astype(int))

    def show(step: int) -> list[Any]:
        for line, head, xs, ys in lines:
            line.set_data(xs[: step + 1], ys[: step + 1])
            head.set_data(xs[: step + 1][-1:], ys[: step + 1][-1:])
        note.set_text(f"step {step}")
        return []

    try:
        FuncAnimation(figure, show, frames=[int(s) for s in steps]).save(path, PillowWriter(fps=15), dpi=80)
    except OSError as error:
        raise InputError(f"race: {path} cannot be written: {error.strerror}") from None


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise InputError("race: pictures need matplotlib; install it with pip install 'dtrain[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _label(walk: Walk) -> str:
    ending = "not finite" if walk.is_lost else "" if walk.arrived is None else f"{walk.arrived} steps"
    return f"{walk.rule}, {walk.lr:g}" + (f": {ending}" if ending else "")


def _line(course: Course, walk: Walk) -> tuple[Any, Any]:
    if course.window is None:
        return np.arange(len(walk.losses)), walk.losses
    return walk.positions[:, 0], walk.positions[:, 1]


def _scene(plots: Any, course: Course, walks: list[Walk]) -> tuple[Any, Any]:
    """The figure and its axes: the contours of a function of two numbers, empty axes for losses otherwise."""
    from matplotlib.colors import BoundaryNorm

    figure, axes = plots.subplots(figsize=(8, 5.6), layout="constrained")
    axes.set_title(course.name + (f": steps until {course.goal_text}" if course.goal_text else ""), fontsize=11)
    if course.window is None:
        axes.set_xlim(0, max(len(walk.losses) for walk in walks))
        axes.set_ylim(0.9 * min(w.losses.min() for w in walks), 1.1 * max(w.losses.max() for w in walks))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.3)
        return figure, axes
    left, right, low, high = course.window
    xs, ys = np.meshgrid(np.linspace(left, right, 241), np.linspace(low, high, 241))
    heights = np.asarray(course.loss(np.stack([xs, ys])), np.float64)
    finite = heights[np.isfinite(heights)]
    levels = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, 26)))
    if len(levels) > 1:
        colours = BoundaryNorm(levels, 256)  # a colour for each level, however far apart they are
        axes.contourf(xs, ys, heights, levels=levels, cmap="Blues_r", norm=colours, alpha=0.55)
        axes.contour(xs, ys, heights, levels=levels, colors="#44546a", linewidths=0.4, alpha=0.7)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"race: {path} cannot be written: {error.strerror}") from None
