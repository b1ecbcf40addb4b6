"""Small charts as SVG text, for a page that has to stand alone: curves, a heat map, stacked bars, a time line.

No scripts, no fonts from elsewhere; colours come from the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

COLOURS = tuple(f"var(--c{number})" for number in range(8))
"""The page's own colours of curves."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT = 640.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 12.0, 24.0, 34.0
_VIRIDIS = (
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#fde725",
)
_MOST_ROWS, _MOST_COLUMNS = 40, 80
Line = tuple[str, Sequence[int], Sequence[float | None]]


def curves(lines: Sequence[Line], about: str, *, is_log: bool = False) -> str:
    """Return curves of (name, steps, values); what is not finite is a cross at the bottom. Empty without a value."""
    points = [
        (name, [(x, float(y)) for x, y in zip(steps, values, strict=True) if y is not None])
        for name, steps, values in lines
    ]
    finite = [y for _, found in points for _, y in found if math.isfinite(y) and (y > 0 or not is_log)]
    if not finite:
        return ""
    shown: Callable[[float], float] = math.log10 if is_log else float
    low, high = shown(min(finite)), shown(max(finite))
    if low == high:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    first = min(x for _, found in points for x, _ in found)
    last = max(x for _, found in points for x, _ in found)
    column, row = (
        _scale(first, max(last, first + 1), _LEFT, _WIDTH - _RIGHT),
        _scale(low, high, _HEIGHT - _BOTTOM, _TOP),
    )
    marks = _axes(_ticks(first, max(last, first + 1)), _ticks(low, high), column, row, is_log)
    for number, (name, found) in enumerate(points):
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]
        fine = [(x, shown(y)) for x, y in found if math.isfinite(y) and (y > 0 or not is_log)]
        path = " ".join(f"{column(x):.1f},{row(y):.1f}" for x, y in fine)
        marks.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}" points="{path}"/>'
        )
        for x, y in found:
            if not math.isfinite(y):
                marks.append(f'<text class="cross" x="{column(x):.1f}" y="{_HEIGHT - _BOTTOM:.0f}">×</text>')
        left = _LEFT + 4 + sum(len(n) * 7 + 34 for n, _ in points[:number])
        marks.append(f'<path d="M{left:.0f} 10h20" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        marks.append(f'<text x="{left + 25:.0f}" y="14">{escape(name)}</text>')
    return _svg(marks, _HEIGHT, about)


def heat_map(names: Sequence[str], steps: Sequence[int], values: Sequence[Sequence[float | None]], about: str) -> str:
    """Return a map of positive values (steps × names) on a logarithmic scale; what is not finite is red. At most 40
    names are shown, the largest of each few steps. Empty without a value."""
    names = list(names)[:_MOST_ROWS]
    columns = [
        list(values[i : i + -(-len(steps) // _MOST_COLUMNS)])
        for i in range(0, len(steps), max(1, -(-len(steps) // _MOST_COLUMNS)))
    ]
    cells = [
        [_largest([row[i] if i < len(row) else None for row in rows]) for rows in columns] for i in range(len(names))
    ]
    finite = [math.log10(v) for row in cells for v in row if v is not None and math.isfinite(v) and v > 0]
    if not finite:
        return ""
    low, high = min(finite), max(max(finite), min(finite) + 1e-9)
    left = max(_LEFT, 7.0 * max(map(len, names)) + 12)
    width, height = (_WIDTH - left - _RIGHT) / len(columns), 15.0
    paths: dict[str, list[str]] = {}
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            if value is None or value == 0:
                continue
            place = (math.log10(value) - low) / (high - low) if math.isfinite(value) else 0.0
            colour = _VIRIDIS[min(len(_VIRIDIS) - 1, int(place * len(_VIRIDIS)))] if math.isfinite(value) else "#ff2020"
            paths.setdefault(colour, []).append(
                f"M{left + j * width:.1f} {8 + i * height:.0f}h{width + 0.3:.1f}v{height}h-{width + 0.3:.1f}z"
            )
    marks = [f'<path fill="{colour}" d="{"".join(found)}"/>' for colour, found in paths.items()]
    for i, name in enumerate(names):
        marks.append(f'<text x="{left - 6:.0f}" y="{8 + i * height + 11:.0f}" text-anchor="end">{escape(name)}</text>')
    bottom = 8 + len(names) * height + 16
    marks.append(f'<text x="{left:.0f}" y="{bottom:.0f}">step {steps[0]}</text>')
    marks.append(f'<text x="{_WIDTH - _RIGHT:.0f}" y="{bottom:.0f}" text-anchor="end">step {steps[-1]}</text>')
    marks.append(
        f'<text x="{left:.0f}" y="{bottom + 16:.0f}">from {10**low:.3g} (dark) to {10**high:.3g} (bright)</text>'
    )
    return _svg(marks, bottom + 24, about)


def stacked_bars(bars: Mapping[str, Mapping[str, float]], about: str) -> str:
    """Return a bar for each name, of its parts in seconds."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    longest = max((sum(bar.values()) for bar in bars.values()), default=0.0)
    if longest <= 0:
        return ""
    marks, left = [], 90.0
    for number, part in enumerate(parts):
        x = left + sum(len(p) * 7 + 26 for p in parts[:number])
        marks.append(f'<rect x="{x:.0f}" y="4" width="10" height="10" fill="{COLOURS[number % 8]}"/>')
        marks.append(f'<text x="{x + 14:.0f}" y="13">{escape(part)}</text>')
    for i, (name, bar) in enumerate(bars.items()):
        x, y = left, 24 + 20 * i
        marks.append(f'<text x="{left - 6:.0f}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        for number, part in enumerate(parts):
            width = (_WIDTH - left - _RIGHT) * bar.get(part, 0.0) / longest
            marks.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="15" fill="{COLOURS[number % 8]}">'
                f"<title>{escape(part)} {bar.get(part, 0.0):.4g} s</title></rect>"
            )
            x += width
    return _svg(marks, 30.0 + 20 * len(bars), about)


def time_line(found: Mapping[str, Any], about: str) -> str:
    """Return who took part and when, from what `timeline` returns; times are seconds since the first."""
    bars, marked = found["bars"], found["marks"]
    ends = [bar["end"] for bar in bars if bar["end"] is not None]
    times = [bar["start"] for bar in bars] + ends + [mark["time"] for mark in marked]
    if not times:
        return ""
    workers = sorted({entry["worker"] for entry in [*bars, *marked]})
    first, last, left = min(times), max(times), 90.0
    column = _scale(first, max(last, first + 1e-3), left, _WIDTH - _RIGHT)
    y_of = {worker: 8 + 20 * i for i, worker in enumerate(workers)}
    marks = [
        f'<text x="{left - 6:.0f}" y="{y + 12}" text-anchor="end">worker {worker}</text>' for worker, y in y_of.items()
    ]
    for bar in bars:
        x, y = column(bar["start"]), y_of[bar["worker"]]
        width = max(1.0, column(last if bar["end"] is None else bar["end"]) - x)
        marks.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="14" fill="{COLOURS[0]}" opacity=".6"/>')
    for mark in marked:
        sign = {"joined": "▲", "lost": "✖", "left": "▽"}[mark["what"]]
        marks.append(
            f'<text x="{column(mark["time"]):.1f}" y="{y_of[mark["worker"]] + 12}" text-anchor="middle">{sign}'
            f"<title>{mark['what']} after {mark['time'] - first:.1f} s</title></text>"
        )
    bottom = 8 + 20 * len(workers) + 14
    marks.append(f'<text x="{left:.0f}" y="{bottom}">0 s</text>')
    marks.append(f'<text x="{_WIDTH - _RIGHT:.0f}" y="{bottom}" text-anchor="end">{last - first:.1f} s</text>')
    return _svg(marks, bottom + 8.0, about)


def _svg(marks: Sequence[str], height: float, about: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(about)}">'
        + "".join(marks)
        + "</svg>"
    )


def _axes(
    xs: Sequence[float],
    ys: Sequence[float],
    column: Callable[[float], float],
    row: Callable[[float], float],
    is_log: bool,
) -> list[str]:
    marks, right, bottom = [], _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for y in ys:
        text = f"{10**y:.3g}" if is_log else f"{y:.4g}"
        marks.append(f'<path class="rule" d="M{_LEFT:.0f} {row(y):.1f}H{right:.0f}"/>')
        marks.append(f'<text x="{_LEFT - 6:.0f}" y="{row(y) + 4:.1f}" text-anchor="end">{text}</text>')
    for x in xs:
        marks.append(f'<path class="rule" d="M{column(x):.1f} {_TOP:.0f}V{bottom:.0f}"/>')
        marks.append(f'<text x="{column(x):.1f}" y="{bottom + 15:.0f}" text-anchor="middle">{x:g}</text>')
    marks.append(f'<text x="{right:.0f}" y="{_HEIGHT - 4:.0f}" text-anchor="end">step</text>')
    return marks


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers between the two."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _largest(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    broken = [value for value in found if not math.isfinite(value)]
    return broken[0] if broken else max(found, default=None)
