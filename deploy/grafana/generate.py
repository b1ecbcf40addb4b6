"""Make Grafana's dashboards from panels.py and the table of metrics: `python -m deploy.grafana.generate`.

They are committed, so that Grafana needs nothing else; a test compares. grafana-foundation-sdk has to be the version in
pyproject.toml: another one writes other JSON.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    BigValueTextMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.panels import DASHBOARDS, RUNS, Dashboard, Panel
from dtrain.monitor.table import BY_NAME

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="dtrain-prometheus")
"""As provisioning/datasources/prometheus.yml names it."""


def metrics_of(panel: Panel) -> list[str]:
    """The metrics of the table that a panel shows; ``dtrain_job_info`` only if it is more than the choice of runs."""
    exprs = [query.expr if query.expr == RUNS else query.expr.replace(RUNS, "") for query in panel.queries]
    names = dict.fromkeys(name for expr in exprs for name in re.findall(r"\bdtrain_\w+", expr))
    return [name for name in names if name in BY_NAME]


def description(panel: Panel) -> str:
    """What the panel answers, and what its figures are, from the table."""
    metrics = [BY_NAME[name] for name in metrics_of(panel)]
    return "\n\n".join([*(f"{m.question} {m.help}" for m in metrics), *([panel.note] if panel.note else [])])


def build(board: Dashboard) -> str:
    """A dashboard as JSON, with a newline at its end."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(f"dtrain-{board.name}")
        .tags(["dtrain"])
        .refresh("5s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("dtrain")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["dtrain"])
            .icon("dashboard")
            .keep_time(True)
        )
        .with_variable(_variable("name", "Job", "label_values(dtrain_job_info, name)"))
        .with_variable(_variable("run", "Run", 'label_values(dtrain_job_info{name=~"$name"}, run)'))
    )
    numbers = itertools.count(1)
    for title, panels in board.rows:
        builder = builder.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            builder = builder.with_panel(_panel(panel).id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=1).encode(builder.build()) + "\n"


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel) -> Any:
    builder: Any = {"stat": _stat, "name": _stat, "table": _table}.get(panel.kind, _lines)(panel)
    builder = builder.title(panel.title).description(description(panel)).datasource(SOURCE).span(panel.width)
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id("ABCDEF"[number])
        if panel.kind == "table":
            target = target.instant().format(PromQueryFormat.TABLE)
        builder = builder.with_target(target)
    return builder


def _stat(panel: Panel) -> Any:
    return (
        stat.Panel()
        .unit(panel.unit)
        .height(4)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.NAME if panel.kind == "name" else BigValueTextMode.AUTO)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _table(panel: Panel) -> Any:
    hidden = {"excludeByName": dict.fromkeys(("Time", "Value", "__name__", "job", "dtrain_job", "dtrain_run"), True)}
    return table.Panel().height(6).with_transformation(DataTransformerConfig(id_val="organize", options=hidden))


def _lines(panel: Panel) -> Any:
    builder = (
        timeseries.Panel()
        .unit(panel.unit)
        .height(8)
        .fill_opacity(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.kind == "log":
        builder = builder.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    if panel.kind == "stacked":
        builder = builder.fill_opacity(40).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.kind == "steps":
        builder = builder.line_interpolation(LineInterpolation.STEP_AFTER).min(0)
    return builder


if __name__ == "__main__":
    for board in DASHBOARDS:
        (FOLDER / f"{board.name}.json").write_text(build(board))
