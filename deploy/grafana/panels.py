"""An empty dashboard, and the kinds of panels on it."""

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef
from grafana_foundation_sdk.models.heatmap import HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
PANEL_WIDTH = 8  # the grid has 24 columns
PANEL_HEIGHT = 8


def new_dashboard(
    uid: str, title: str, description: str, variables: dict[str, str]
) -> dashboard.Dashboard:
    """An empty dashboard. ``variables`` maps each template variable to the query of its values."""
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["lewm"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Runbooks").url("${runbooks}").target_blank(True))
    )
    for name, values in variables.items():
        board.with_variable(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .datasource(DATA_SOURCE)
            .query(values)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    return board.with_variable(
        dashboard.TextBoxVariable("runbooks")
        .label("Address of docs/runbooks.md")
        .default_value("/public/runbooks.html")
    )


def query(expression: str, legend: str) -> prometheus.Dataquery:
    """A query over the displayed time."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).range()


def time_series(
    title: str, description: str, unit: str, *queries: tuple[str, str], runbook: str | None = None
) -> timeseries.Panel:
    """A panel of lines over time. Each query is an expression and its legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .unit(unit)
        .span(PANEL_WIDTH)
        .height(PANEL_HEIGHT)
        .fill_opacity(8)
        .legend(common.VizLegendOptions().show_legend(True))
        .targets([query(expression, legend) for expression, legend in queries])
    )
    return panel.links([_runbook(runbook)]) if runbook else panel


def single_number(
    title: str, description: str, unit: str, expression: str, runbook: str | None = None
) -> stat.Panel:
    """A panel of one number."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .unit(unit)
        .span(PANEL_WIDTH)
        .height(PANEL_HEIGHT // 2)
        .targets([query(expression, "")])
    )
    return panel.links([_runbook(runbook)]) if runbook else panel


def heat_map(title: str, description: str, unit: str, buckets: str) -> heatmap.Panel:
    """A panel of a histogram over time. ``buckets`` selects the buckets."""
    cells = f"sum by (le) (increase({buckets}[$__rate_interval]))"
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .span(PANEL_WIDTH)
        .height(PANEL_HEIGHT)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .targets([query(cells, "{{le}}").format(PromQueryFormat.HEATMAP)])
    )


def _runbook(alert: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(f"Runbook: {alert}").url("${runbooks}#" + alert.lower())
    return link.target_blank(True)
