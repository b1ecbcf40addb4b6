"""The table of metrics keeps its own rules."""

import re

import pytest

from dtrain.monitor.table import BY_NAME, METRICS


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus(metric):
    assert re.fullmatch(r"dtrain_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.kind == "info")
    base = metric.name.removesuffix("_total")
    assert metric.unit == "" or base.endswith(f"_{metric.unit}")
    assert metric.help.endswith(".")
    assert "?" in metric.question
    assert len(set(metric.labels)) == len(metric.labels)
    assert "job" not in metric.labels  # Prometheus sets it itself, and would rename ours


def test_names_are_unique():
    assert len(BY_NAME) == len(METRICS)
