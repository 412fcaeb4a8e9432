"""The dashboard of all servers: traffic, errors, latency by stage, saturation, cache."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import new_dashboard, single_number, time_series

SELECTED = 'instance=~"$instance"'
INTERVAL = "[$__rate_interval]"


def fleet() -> Dashboard:
    """The dashboard *LeWM: fleet*."""
    board = new_dashboard(
        "lewm-fleet",
        "LeWM: fleet",
        "Traffic, errors, latency, saturation and cache of the planning servers.",
        {"instance": 'label_values(up{job="lewm"}, instance)'},
    )
    for add_row in (_add_traffic, _add_latency, _add_saturation, _add_cache):
        add_row(board)
    return board


def _add_traffic(board: Dashboard) -> None:
    requests = f"lewm_requests_total{{{SELECTED}"
    board.with_row(Row("Traffic and errors"))
    board.with_panel(
        single_number("Servers up", "", "none", f'sum(up{{job="lewm", {SELECTED}}})', "LewmAllDown")
    )
    board.with_panel(
        single_number(
            "Requests failed, 1 h",
            "Share of requests that failed by a fault of the server. All servers.",
            "percentunit",
            "lewm:unavailable:ratio_rate1h",
            "LewmAvailabilityFastBurn",
        )
    )
    board.with_panel(
        single_number(
            "Plans over 1 s, 1 h",
            "Share of plans. All servers.",
            "percentunit",
            "lewm:slow_plans:ratio_rate1h",
            "LewmLatencyFastBurn",
        )
    )
    board.with_panel(
        time_series(
            "Requests",
            "Answered requests per second, including errors.",
            "reqps",
            (
                f"sum by (endpoint, protocol) (rate({requests}}}{INTERVAL}))",
                "{{endpoint}} {{protocol}}",
            ),
            runbook="LewmNoTraffic",
        )
    )
    board.with_panel(
        time_series(
            "Errors",
            "By code, including errors of the client.",
            "reqps",
            (f'sum by (code) (rate({requests}, code!="ok"}}{INTERVAL}))', "{{code}}"),
            runbook="LewmAvailabilityFastBurn",
        )
    )
    board.with_panel(
        time_series(
            "Plans by status",
            "",
            "reqps",
            (
                f"sum by (status) (rate(lewm_plan_status_total{{{SELECTED}}}{INTERVAL}))",
                "{{status}}",
            ),
            runbook="LewmFallbacks",
        )
    )


def _add_latency(board: Dashboard) -> None:
    board.with_row(Row("Latency"))
    for quantile in (0.5, 0.99):
        buckets = f"rate(lewm_request_duration_seconds_bucket{{{SELECTED}}}{INTERVAL})"
        board.with_panel(
            time_series(
                f"Request, p{100 * quantile:.0f}",
                "From the end of the request body to the answer.",
                "s",
                (
                    f"histogram_quantile({quantile}, sum by (le, endpoint) ({buckets})) >= 0",
                    "{{endpoint}}",
                ),
                runbook="LewmLatencyFastBurn",
            )
        )
    stages = "lewm_stage_duration_seconds"
    board.with_panel(
        time_series(
            "Mean time by stage",
            "The mean time that a request spends in each stage.",
            "s",
            (
                f"sum by (stage) (rate({stages}_sum{{{SELECTED}}}{INTERVAL}))"
                f" / (sum by (stage) (rate({stages}_count{{{SELECTED}}}{INTERVAL})) > 0)",
                "{{stage}}",
            ),
            runbook="LewmLatencyFastBurn",
        )
    )


def _add_saturation(board: Dashboard) -> None:
    board.with_row(Row("Saturation"))
    board.with_panel(
        time_series(
            "Waiting and active",
            "",
            "none",
            (f"sum by (endpoint) (lewm_queued_requests{{{SELECTED}}})", "waiting: {{endpoint}}"),
            (f"sum(lewm_active_plans{{{SELECTED}}})", "active plans"),
            runbook="LewmQueueGrowing",
        )
    )
    board.with_panel(
        time_series(
            "Work",
            "",
            "cps",
            (f"sum(rate(lewm_candidates_total{{{SELECTED}}}{INTERVAL}))", "candidates"),
            (
                f"sum(rate(lewm_predictor_tokens_total{{{SELECTED}}}{INTERVAL}))",
                "predictor tokens",
            ),
            runbook="LewmEngineStuck",
        )
    )
    rows = "lewm_batch_rows"
    board.with_panel(
        time_series(
            "Mean rows of a batch",
            "",
            "none",
            (
                f"sum by (kind) (rate({rows}_sum{{{SELECTED}}}{INTERVAL}))"
                f" / (sum by (kind) (rate({rows}_count{{{SELECTED}}}{INTERVAL})) > 0)",
                "{{kind}}",
            ),
        )
    )
    board.with_panel(
        time_series(
            "Engine up",
            "0 after the engine has died, until a restart. Only fallbacks answer then.",
            "bool",
            (f"lewm_engine_up{{{SELECTED}}}", "{{instance}}"),
            runbook="LewmEngineDead",
        )
    )
    board.with_panel(
        time_series(
            "Bytes held",
            "Bytes of the requests in progress.",
            "bytes",
            (f"lewm_held_bytes{{{SELECTED}}}", "{{instance}}"),
        )
    )


def _add_cache(board: Dashboard) -> None:
    looked_up = f"lewm_cache_requests_total{{{SELECTED}"
    board.with_row(Row("Cache"))
    board.with_panel(
        time_series(
            "Hits",
            "Share of the looked-up latents that the tier knows.",
            "percentunit",
            (
                f'sum by (tier) (rate({looked_up}, result="hit"}}{INTERVAL}))'
                f" / (sum by (tier) (rate({looked_up}}}{INTERVAL})) > 0)",
                "{{tier}}",
            ),
        )
    )
    board.with_panel(
        time_series(
            "Errors",
            "Requests are answered nevertheless.",
            "cps",
            (
                f"sum by (tier) (rate(lewm_cache_errors_total{{{SELECTED}}}{INTERVAL}))",
                "{{tier}}",
            ),
            runbook="LewmCacheDown",
        )
    )
    board.with_panel(
        time_series(
            "Up",
            "",
            "bool",
            (f"lewm_cache_up{{{SELECTED}}}", "{{instance}} {{tier}}"),
            runbook="LewmCacheDown",
        )
    )
