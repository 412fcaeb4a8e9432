"""The few kinds of panels that the dashboards are made of."""

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

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH = 8  # of a grid of 24
HEIGHT = 8


def board(uid: str, title: str, about: str, variables: dict[str, str]) -> dashboard.Dashboard:
    """An empty dashboard; ``variables`` maps a template variable to the query of its values."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["lewm"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Runbooks").url("${runbooks}").target_blank(True))
    )
    for name, values in variables.items():
        made.with_variable(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .datasource(SOURCE)
            .query(values)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    return made.with_variable(
        dashboard.TextBoxVariable("runbooks")
        .label("Where docs/runbooks.md is served")
        .default_value("/public/runbooks.html")
    )


def query(expression: str, legend: str) -> prometheus.Dataquery:
    """A query over the time shown."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).range()


def series(
    title: str, about: str, unit: str, *queries: tuple[str, str], runbook: str | None = None
) -> timeseries.Panel:
    """Lines over time; each query is an expression and its legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(WIDTH)
        .height(HEIGHT)
        .fill_opacity(8)
        .legend(common.VizLegendOptions().show_legend(True))
        .targets([query(*each) for each in queries])
    )
    return panel.links([_runbook(runbook)]) if runbook else panel


def figure(
    title: str, about: str, unit: str, expression: str, runbook: str | None = None
) -> stat.Panel:
    """One number."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(WIDTH)
        .height(HEIGHT // 2)
        .targets([query(expression, "")])
    )
    return panel.links([_runbook(runbook)]) if runbook else panel


def heat_map(title: str, about: str, unit: str, buckets: str) -> heatmap.Panel:
    """A histogram over time; ``buckets`` selects its buckets."""
    cells = f"sum by (le) (increase({buckets}[$__rate_interval]))"
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .span(WIDTH)
        .height(HEIGHT)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .targets([query(cells, "{{le}}").format(PromQueryFormat.HEATMAP)])
    )


def _runbook(alert: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(f"Runbook: {alert}").url("${runbooks}#" + alert.lower())
    return link.target_blank(True)
