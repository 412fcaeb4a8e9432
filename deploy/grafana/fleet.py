"""The fleet: traffic, errors, latency by stage, saturation, the cache."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import board, figure, series

ON = 'instance=~"$instance"'
RATE = "[$__rate_interval]"


def fleet() -> Dashboard:
    """What the robots ask for and how the servers bear it."""
    made = board(
        "lewm-fleet",
        "LeWM: fleet",
        "Traffic, errors, latency, saturation and cache of the planning servers.",
        {"instance": 'label_values(up{job="lewm"}, instance)'},
    )
    for part in (_traffic, _latency, _saturation, _cache):
        part(made)
    return made


def _traffic(made: Dashboard) -> None:
    requests = f"lewm_requests_total{{{ON}"
    made.with_row(Row("Traffic and errors"))
    made.with_panel(figure("Servers up", "", "none", f'sum(up{{job="lewm", {ON}}})', "LewmAllDown"))
    made.with_panel(
        figure(
            "Requests failed, 1 h",
            "Share that failed by the servers' fault, of all servers.",
            "percentunit",
            "lewm:unavailable:ratio_rate1h",
            "LewmAvailabilityFastBurn",
        )
    )
    made.with_panel(
        figure(
            "Plans over 1 s, 1 h",
            "Share of plans, of all servers.",
            "percentunit",
            "lewm:slow_plans:ratio_rate1h",
            "LewmLatencyFastBurn",
        )
    )
    made.with_panel(
        series(
            "Requests",
            "Answered in a second, failures included.",
            "reqps",
            (
                f"sum by (endpoint, protocol) (rate({requests}}}{RATE}))",
                "{{endpoint}} {{protocol}}",
            ),
            runbook="LewmNoTraffic",
        )
    )
    made.with_panel(
        series(
            "Errors",
            "By code; those of the client included.",
            "reqps",
            (f'sum by (code) (rate({requests}, code!="ok"}}{RATE}))', "{{code}}"),
            runbook="LewmAvailabilityFastBurn",
        )
    )
    made.with_panel(
        series(
            "Plans by how they ended",
            "",
            "reqps",
            (f"sum by (status) (rate(lewm_plan_status_total{{{ON}}}{RATE}))", "{{status}}"),
            runbook="LewmFallbacks",
        )
    )


def _latency(made: Dashboard) -> None:
    made.with_row(Row("Latency"))
    for share in (0.5, 0.99):
        buckets = f"rate(lewm_request_duration_seconds_bucket{{{ON}}}{RATE})"
        made.with_panel(
            series(
                f"Request, p{100 * share:.0f}",
                "From the whole request read to the answer.",
                "s",
                (
                    f"histogram_quantile({share}, sum by (le, endpoint) ({buckets})) >= 0",
                    "{{endpoint}}",
                ),
                runbook="LewmLatencyFastBurn",
            )
        )
    stages = "lewm_stage_duration_seconds"
    made.with_panel(
        series(
            "Mean time by stage",
            "Where a request's time goes.",
            "s",
            (
                f"sum by (stage) (rate({stages}_sum{{{ON}}}{RATE}))"
                f" / (sum by (stage) (rate({stages}_count{{{ON}}}{RATE})) > 0)",
                "{{stage}}",
            ),
            runbook="LewmLatencyFastBurn",
        )
    )


def _saturation(made: Dashboard) -> None:
    made.with_row(Row("Saturation"))
    made.with_panel(
        series(
            "Waiting and active",
            "",
            "none",
            (f"sum by (endpoint) (lewm_queued_requests{{{ON}}})", "waiting: {{endpoint}}"),
            (f"sum(lewm_active_plans{{{ON}}})", "active plans"),
            runbook="LewmQueueGrowing",
        )
    )
    made.with_panel(
        series(
            "Work",
            "",
            "cps",
            (f"sum(rate(lewm_candidates_total{{{ON}}}{RATE}))", "candidates"),
            (f"sum(rate(lewm_predictor_tokens_total{{{ON}}}{RATE}))", "predictor tokens"),
            runbook="LewmEngineStuck",
        )
    )
    rows = "lewm_batch_rows"
    made.with_panel(
        series(
            "Mean rows of a batch",
            "",
            "none",
            (
                f"sum by (kind) (rate({rows}_sum{{{ON}}}{RATE}))"
                f" / (sum by (kind) (rate({rows}_count{{{ON}}}{RATE})) > 0)",
                "{{kind}}",
            ),
        )
    )
    made.with_panel(
        series(
            "Engine up",
            "0 for good once it has died: fallbacks alone are answered.",
            "bool",
            (f"lewm_engine_up{{{ON}}}", "{{instance}}"),
            runbook="LewmEngineDead",
        )
    )
    made.with_panel(series("Bytes held", "", "bytes", (f"lewm_held_bytes{{{ON}}}", "{{instance}}")))


def _cache(made: Dashboard) -> None:
    looked_up = f"lewm_cache_requests_total{{{ON}"
    made.with_row(Row("Cache"))
    made.with_panel(
        series(
            "Hits",
            "Share of the latents looked up that the tier knew.",
            "percentunit",
            (
                f'sum by (tier) (rate({looked_up}, result="hit"}}{RATE}))'
                f" / (sum by (tier) (rate({looked_up}}}{RATE})) > 0)",
                "{{tier}}",
            ),
        )
    )
    made.with_panel(
        series(
            "Errors",
            "Requests are answered all the same.",
            "cps",
            (f"sum by (tier) (rate(lewm_cache_errors_total{{{ON}}}{RATE}))", "{{tier}}"),
            runbook="LewmCacheDown",
        )
    )
    made.with_panel(
        series(
            "Up",
            "",
            "bool",
            (f"lewm_cache_up{{{ON}}}", "{{instance}} {{tier}}"),
            runbook="LewmCacheDown",
        )
    )
