"""An empty dashboard, the kinds of panels on it, and the queries that several panels share."""

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphTresholdsStyleMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, Threshold
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
RUNBOOKS = f"/api/datasources/proxy/uid/{DATA_SOURCE.uid}/user/runbooks.html"
"""Grafana passes this address on to Prometheus, which serves the page."""

PANEL_WIDTH = 8  # the grid has 24 columns
PANEL_HEIGHT = 8
INTERVAL = "[$__rate_interval]"

Limits = tuple[tuple[float, str], ...]
"""Values from which on a panel has another colour, in rising order. Below the first: green."""

HEALTHY_IS_1: Limits = ((float("-inf"), "red"), (1, "green"))


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
        .label("Address of the runbooks")
        .default_value(RUNBOOKS)
    )


def rate(counter: str, by: str) -> str:
    """Events per second by the labels ``by``.

    Labels whose events have never occurred have no line, so that a panel does not show dozens of
    lines at 0.
    """
    return f"sum by ({by}) (rate({counter}{INTERVAL})) and sum by ({by}) ({counter}) > 0"


def mean(name: str, selected: str, by: str) -> str:
    """The mean of a histogram by the labels ``by``, where there is one."""
    sums, counts = (
        f"sum by ({by}) (rate({name}_{part}{{{selected}}}{INTERVAL}))" for part in ("sum", "count")
    )
    return f"{sums} / ({counts} > 0)"


def query(expression: str, legend: str) -> prometheus.Dataquery:
    """A query over the displayed time."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).range()


def time_series(
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    runbook: str | None = None,
    limits: Limits = (),
    when_empty: str | None = None,
) -> timeseries.Panel:
    """A panel of lines over time.

    Args:
        title: its title.
        description: what it shows.
        unit: Grafana's name of the unit.
        queries: pairs of an expression and its legend.
        runbook: the alert whose runbook it links to.
        limits: values at which it has a horizontal line.
        when_empty: what it means if there are no lines. Needed where this is not a fault.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .unit(unit)
        .span(PANEL_WIDTH)
        .height(PANEL_HEIGHT)
        .fill_opacity(8)
        .axis_soft_min(0)
        .legend(common.VizLegendOptions().show_legend(True))
        .targets([query(expression, legend) for expression, legend in queries])
    )
    if limits:
        style = common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds(limits)).thresholds_style(style)
    if when_empty:
        panel.no_value(when_empty)
    return panel.links([_runbook(runbook)]) if runbook else panel


def single_number(
    title: str,
    description: str,
    unit: str,
    expression: str,
    *,
    runbook: str,
    limits: Limits,
    when_empty: str | None = None,
) -> stat.Panel:
    """A panel of one number, whose colour changes at ``limits``. See `time_series`."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .unit(unit)
        .span(PANEL_WIDTH)
        .height(PANEL_HEIGHT // 2)
        .thresholds(_thresholds(limits))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .targets([query(expression, "")])
        .links([_runbook(runbook)])
    )
    return panel.no_value(when_empty) if when_empty else panel


def heat_map(
    title: str, description: str, unit: str, buckets: str, *, when_empty: str | None = None
) -> heatmap.Panel:
    """A panel of a histogram over time. ``buckets`` selects the buckets."""
    colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    cells = f"sum by (le) (increase({buckets}{INTERVAL}))"
    panel = (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .span(PANEL_WIDTH)
        .height(PANEL_HEIGHT)
        .calculate(False)
        .color(colors)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .targets([query(cells, "{{le}}").format(PromQueryFormat.HEATMAP)])
    )
    return panel.no_value(when_empty) if when_empty else panel


def _thresholds(limits: Limits) -> dashboard.ThresholdsConfig:
    # Grafana writes −∞, below which there is nothing, as null.
    steps = [Threshold(None if value == float("-inf") else value, color) for value, color in limits]
    if steps[0].value is not None:
        steps.insert(0, Threshold(None, "green"))
    return dashboard.ThresholdsConfig().steps(steps)


def _runbook(alert: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(f"Runbook: {alert}").url("${runbooks}#" + alert.lower())
    return link.target_blank(True)
