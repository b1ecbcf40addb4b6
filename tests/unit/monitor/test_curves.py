"""Charts of the report: what they draw is what they were given."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from dtrain.monitor.curves import curves, heat_map, stacked_bars, time_line


def points(svg):
    return [[tuple(map(float, p.split(","))) for p in found.split()] for found in re.findall(r'points="([^"]*)"', svg)]


def test_a_curve_goes_through_its_values():
    svg = curves([("loss", [0, 5, 10], [1.0, 3.0, 2.0])], "loss")
    ((low, high, middle),) = points(svg)
    assert (high[0] - low[0], middle[0] - high[0]) == pytest.approx((middle[0] - high[0],) * 2)
    assert low[1] - middle[1] == pytest.approx((low[1] - high[1]) / 2, abs=0.11)
    assert 'aria-label="loss"' in svg


def test_a_logarithmic_curve_has_powers_at_equal_distances():
    ((a, b, c),) = points(curves([("norm", [0, 1, 2], [0.01, 1.0, 100.0])], "", is_log=True))
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.11)


def test_what_is_not_finite_is_a_cross_and_no_point():
    svg = curves([("loss", [0, 1, 2], [1.0, math.nan, math.inf])], "")
    assert svg.count("×</text>") == 2
    assert len(points(svg)[0]) == 1


@pytest.mark.parametrize("values", [[], [math.nan], [None]])
def test_nothing_to_draw_is_no_chart(values):
    assert curves([("loss", list(range(len(values))), values)], "") == ""


def test_names_are_escaped_and_charts_are_whole_xml():
    name = '<b a="1">&'
    charts = [
        curves([(name, [0, 1], [2.0, 2.0])], name),
        heat_map([name, "b"], [0, 1], [[1.0, 10.0], [math.nan, 0.0]], name),
        stacked_bars({name: {name: 1.0}}, name),
        time_line(
            {"bars": [{"worker": 0, "start": 1.0, "end": 2.0}], "marks": [{"worker": 0, "time": 2.0, "what": "lost"}]},
            "",
        ),
    ]
    for chart in charts:
        ET.fromstring(chart)
        assert name not in chart


def test_a_heat_map_has_the_largest_of_neighbouring_steps():
    rows = [[1.0] for _ in range(1000)]
    rows[501] = [1000.0]
    svg = heat_map(["w"], list(range(1000)), rows, "")
    assert "from 1 (dark) to 1e+03 (bright)" in svg
    assert len(svg) < 10_000
