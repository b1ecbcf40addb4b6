"""The SVG of a laid out picture: no scripts, no fonts or files from elsewhere, legible in light and dark."""

from __future__ import annotations

import itertools
from html import escape

from dtrain.graph.drawing.layout import Layout
from dtrain.graph.drawing.picture import NOT_FINITE, Box, Picture

_STYLE = """
svg { background: #ffffff; font: 13px ui-sans-serif, system-ui, "DejaVu Sans", sans-serif; }
.box { fill: #eef2ff; stroke: #4f5b93; stroke-width: 1.4; } .input .box { fill: #f5f5f4; stroke: #78716c; }
.output .box { fill: #fff7ed; stroke: #b45309; } .label { fill: #1c1917; text-anchor: middle; }
.edge { fill: none; stroke: #78716c; stroke-width: 1.3; }
.value, .gradient { font-size: 12px; text-anchor: middle; paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
.value { fill: #15803d; } .gradient { fill: #c81e1e; }
.title { fill: #1c1917; font-size: 15px; font-weight: 600; }
.note { fill: #57534e; font-size: 12px; } .arrow { fill: #78716c; }
@media (prefers-color-scheme: dark) {
svg { background: #16181d; } .box { fill: #262c44; stroke: #8e9be0; } .input .box { fill: #292524; stroke: #a8a29e; }
.output .box { fill: #3b2a16; stroke: #f0a860; } .label, .title { fill: #f5f5f4; } .note { fill: #a8a29e; }
.edge { stroke: #a8a29e; } .arrow { fill: #a8a29e; } .value, .gradient { stroke: #16181d; }
.value { fill: #6ee79a; } .gradient { fill: #ff8f8f; }
}
"""
_HALF = 17.0  # of a box's height
Rectangle = tuple[float, float, float, float]


def render(picture: Picture, layout: Layout, *, style: str = _STYLE) -> str:
    """Return the SVG document. A page that it becomes a part of has the ``style`` itself, and gives the empty one."""
    width, height = max(layout.width, 560.0), layout.height
    about = (
        f"A graph of {len(picture.boxes)} boxes and {len(picture.edges)} edges. Above each edge is the value (green), "
        "below it the gradient (red)."
    )
    lines = [
        f'<svg class="graph" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(picture.title)}</title>',
        f'<desc id="desc">{escape(about)}</desc>',
        *([f"<style>{style}</style>"] if style else []),
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="arrow" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<text class="title" x="24" y="28">{escape(picture.title)}</text>',
        '<text class="note" x="24" y="46">value above the edge, gradient below; ‖·‖ is the L2 norm</text>',
    ]
    taken: list[Rectangle] = [
        (x - w / 2, y - _HALF, x + w / 2, y + _HALF) for (x, y), w in zip(layout.centres, layout.widths, strict=True)
    ]
    texts, seen = [], dict[tuple[int, int], int]()
    for number, (edge, path) in enumerate(zip(picture.edges, layout.paths, strict=True)):
        pair = (edge.source, edge.target)
        repeated = seen[pair] = seen.get(pair, 0) + 1
        bend = (repeated // 2) * 42.0 * (1 if repeated % 2 else -1)
        points = _ends(path, layout.widths[edge.source], layout.widths[edge.target])
        curve, choices = _curve(points, bend)
        lines.append(
            f'<path class="edge{_broken(edge.value + edge.gradient)}" data-edge="{number}" d="{curve}" '
            'marker-end="url(#arrow)"/>'
        )
        half = max(len(edge.value), len(edge.gradient)) * 3.4 + 2
        x, y = _free(choices, half, taken)
        taken.append((x - half, y - 16, x + half, y + 16))
        names = f'data-edge="{number}" x="{x:.1f}"'
        texts.append(f'<text class="value{_broken(edge.value)}" {names} y="{y - 5:.1f}">{escape(edge.value)}</text>')
        if edge.gradient:
            kind = f"gradient{_broken(edge.gradient)}"
            texts.append(f'<text class="{kind}" {names} y="{y + 14:.1f}">{escape(edge.gradient)}</text>')
    for number, box in enumerate(picture.boxes):
        lines.append(_box(number, box, *layout.centres[number], layout.widths[number]))
    return "\n".join([*lines, *texts, "</svg>"]) + "\n"


def _broken(text: str) -> str:
    return f" {NOT_FINITE.replace(' ', '-')}" if NOT_FINITE in text else ""


def _box(number: int, box: Box, x: float, y: float, width: float) -> str:
    radius = 4.0 if box.kind == "input" else _HALF
    return (
        f'<g class="{box.kind}" data-box="{number}"><title>{escape(box.detail)}</title>'
        f'<rect class="box" x="{x - width / 2:.1f}" '
        f'y="{y - _HALF:.1f}" width="{width:.1f}" height="{2 * _HALF:.0f}" rx="{radius:.0f}"/>'
        f'<text class="label" x="{x:.1f}" y="{y + 4.5:.1f}">{escape(box.label)}</text></g>'
    )


def _ends(path: list[tuple[float, float]], source: float, target: float) -> list[tuple[float, float]]:
    """The points with the first and last moved to the rims of the boxes."""
    (x0, y0), (x1, y1) = path[0], path[-1]
    return [(x0 + source / 2, y0), *path[1:-1], (x1 - target / 2, y1)]


def _curve(points: list[tuple[float, float]], bend: float) -> tuple[str, list[tuple[float, float]]]:
    """A smooth path through the points, and where its text may stand, the best place first."""
    parts, choices = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"], []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (x0 + x1) / 2
        parts.append(f"C{middle:.1f} {y0 + bend:.1f} {middle:.1f} {y1 + bend:.1f} {x1:.1f} {y1:.1f}")
        for t in (0.5, 0.4, 0.6, 0.3, 0.7):
            u = 1 - t
            x = u**3 * x0 + 3 * u * u * t * middle + 3 * u * t * t * middle + t**3 * x1
            y = (u**3 + 3 * u * u * t) * y0 + (t**3 + 3 * u * t * t) * y1 + 3 * u * t * bend
            choices.append((x, y))
    return " ".join(parts), choices


def _free(choices: list[tuple[float, float]], half: float, taken: list[Rectangle]) -> tuple[float, float]:
    """The first place whose text meets nothing; above or below the edge where there is none."""
    shifts = (0.0, -20.0, 20.0, -36.0, 36.0, -56.0, 56.0, -76.0, 76.0)
    for shift in shifts:
        for x, y in choices:
            if not any(
                x - half < right and x + half > left and y + shift - 16 < bottom and y + shift + 16 > top
                for left, top, right, bottom in taken
            ):
                return x, y + shift
    return choices[0]
