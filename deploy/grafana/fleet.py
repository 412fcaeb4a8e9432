"""The dashboard of all servers: traffic, errors, latency by stage, saturation, cache, process."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import (
    HEALTHY_IS_1,
    INTERVAL,
    Limits,
    mean,
    new_dashboard,
    rate,
    single_number,
    time_series,
)

SELECTED = 'instance=~"$instance"'
PROCESS = f'job="lewm", {SELECTED}'
"""Other programs have metrics of the same names."""

BURN_RATE_LIMITS: Limits = ((1, "yellow"), (6, "orange"), (14.4, "red"))
"""At 1 the error budget lasts for its 30 days. Above 6 there is a ticket, above 14.4 a page."""

PLAN_LIMIT: Limits = ((1, "red"),)
"""Seconds: see `lewm:slow_plans:ratio_rate1h`."""

QUEUE_LIMIT: Limits = ((32, "red"),)
"""Requests of one server: see LewmQueueGrowing."""

FILES_LIMIT: Limits = ((0.8, "red"),)

NO_REQUESTS = "no requests"


def fleet() -> Dashboard:
    """The dashboard *LeWM: fleet*."""
    board = new_dashboard(
        "lewm-fleet",
        "LeWM: fleet",
        "Traffic, errors, latency, saturation, cache and processes of the planning servers.",
        {"instance": 'label_values(up{job="lewm"}, instance)'},
    )
    for add_row in (_add_traffic, _add_latency, _add_saturation, _add_cache, _add_process):
        add_row(board)
    return board


def _add_traffic(board: Dashboard) -> None:
    requests = f"lewm_requests_total{{{SELECTED}"
    board.with_row(Row("Traffic and errors"))
    board.with_panel(
        single_number(
            "Servers up",
            "",
            "short",
            f"sum(up{{{PROCESS}}})",
            runbook="LewmAllDown",
            limits=HEALTHY_IS_1,
            when_empty="Prometheus has no server in its job lewm",
        )
    )
    for title, about, ratio, target, runbook in (
        (
            "Failed requests: burn rate, 1 h",
            "requests that failed by a fault of the server",
            "lewm:unavailable:ratio_rate1h",
            "lewm:availability:target",
            "LewmAvailabilityFastBurn",
        ),
        (
            "Slow plans: burn rate, 1 h",
            "plans that took more than a second",
            "lewm:slow_plans:ratio_rate1h",
            "lewm:latency:target",
            "LewmLatencyFastBurn",
        ),
    ):
        board.with_panel(
            single_number(
                title,
                f"The share of {about}, as a multiple of the share that is allowed. All servers.",
                "short",
                f"{ratio} / (1 - scalar({target})) >= 0",
                runbook=runbook,
                limits=BURN_RATE_LIMITS,
                when_empty=NO_REQUESTS,
            )
        )
    board.with_panel(
        time_series(
            "Requests",
            "Answered requests per second, including errors.",
            "reqps",
            (rate(f"{requests}}}", "endpoint, protocol"), "{{endpoint}} {{protocol}}"),
            runbook="LewmNoTraffic",
            when_empty=NO_REQUESTS,
        )
    )
    board.with_panel(
        time_series(
            "Errors",
            "By code, including errors of the client.",
            "reqps",
            (rate(f'{requests}, code!="ok"}}', "code"), "{{code}}"),
            runbook="LewmAvailabilityFastBurn",
            when_empty="no errors",
        )
    )
    board.with_panel(
        time_series(
            "Plans by status",
            "",
            "reqps",
            (rate(f"lewm_plan_status_total{{{SELECTED}}}", "status"), "{{status}}"),
            runbook="LewmFallbacks",
            when_empty="no plans",
        )
    )


def _add_latency(board: Dashboard) -> None:
    board.with_row(Row("Latency"))
    for quantile in (0.5, 0.99):
        buckets = f"rate(lewm_request_duration_seconds_bucket{{{SELECTED}}}{INTERVAL})"
        board.with_panel(
            time_series(
                f"Request, p{100 * quantile:.0f}",
                "From the end of the request body to the answer. The line is the limit of plans.",
                "s",
                (
                    f"histogram_quantile({quantile}, sum by (le, endpoint) ({buckets})) >= 0",
                    "{{endpoint}}",
                ),
                runbook="LewmLatencyFastBurn",
                limits=PLAN_LIMIT,
                when_empty=NO_REQUESTS,
            )
        )
    board.with_panel(
        time_series(
            "Mean time by stage",
            "The mean time that a request spends in each stage.",
            "s",
            (mean("lewm_stage_duration_seconds", SELECTED, "stage"), "{{stage}}"),
            runbook="LewmLatencyFastBurn",
            when_empty=NO_REQUESTS,
        )
    )


def _add_saturation(board: Dashboard) -> None:
    board.with_row(Row("Saturation"))
    board.with_panel(
        time_series(
            "Waiting and active",
            "Requests that wait for the engine, and plans that it solves. Above the line, the "
            "queue of one server counts as long.",
            "short",
            (
                f"sum by (instance) (lewm_queued_requests{{{SELECTED}}})",
                "waiting: {{instance}}",
            ),
            (f"sum by (instance) (lewm_active_plans{{{SELECTED}}})", "plans: {{instance}}"),
            runbook="LewmQueueGrowing",
            limits=QUEUE_LIMIT,
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
    board.with_panel(
        time_series(
            "Mean rows of a batch",
            "Frames or candidates that one run of the model computes together.",
            "short",
            (mean("lewm_batch_rows", SELECTED, "kind"), "{{kind}}"),
            when_empty=NO_REQUESTS,
        )
    )
    board.with_panel(
        time_series(
            "Engine up",
            "0 while the engine is started again, or is dead. Only fallbacks answer then.",
            "bool",
            (f"lewm_engine_up{{{SELECTED}}}", "{{instance}}, {{device}}"),
            runbook="LewmEngineDead",
            limits=HEALTHY_IS_1,
        )
    )
    board.with_panel(
        time_series(
            "Bytes held",
            "Bytes of the requests in progress. At LEWM_MAX_HELD_BYTES, requests are refused.",
            "bytes",
            (f"lewm_held_bytes{{{SELECTED}}}", "{{instance}}"),
        )
    )


def _add_cache(board: Dashboard) -> None:
    looked_up = f"lewm_cache_requests_total{{{SELECTED}"
    redis = f'{SELECTED}, tier="redis"'  # the other tier, memory, cannot fail
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
            when_empty=NO_REQUESTS,
        )
    )
    board.with_panel(
        time_series(
            "Errors of Redis",
            "Requests are answered nevertheless.",
            "cps",
            (
                rate(f'lewm_cache_errors_total{{{SELECTED}, tier="redis"}}', "instance"),
                "{{instance}}",
            ),
            runbook="LewmCacheDown",
            when_empty="no errors, or no Redis",
        )
    )
    board.with_panel(
        time_series(
            "Redis up",
            "Whether each server reaches its Redis.",
            "bool",
            (f"lewm_cache_up{{{redis}}}", "{{instance}}"),
            runbook="LewmCacheDown",
            limits=HEALTHY_IS_1,
            when_empty="no server uses Redis",
        )
    )


def _add_process(board: Dashboard) -> None:
    board.with_row(Row("Process"))
    board.with_panel(
        time_series(
            "Processor",
            "Cores in use, by the server's first process and by its engines.",
            "short",
            (f"rate(process_cpu_seconds_total{{{PROCESS}}}{INTERVAL})", "{{instance}}"),
            (
                f"rate(lewm_engine_processor_seconds{{{SELECTED}}}{INTERVAL})",
                "{{instance}}, engine on {{device}}",
            ),
        )
    )
    board.with_panel(
        time_series(
            "Memory",
            "Resident memory of the server's first process and of its engines, which share a part.",
            "bytes",
            (f"process_resident_memory_bytes{{{PROCESS}}}", "{{instance}}"),
            (f"lewm_engine_memory_bytes{{{SELECTED}}}", "{{instance}}, engine on {{device}}"),
        )
    )
    board.with_panel(
        time_series(
            "Open files",
            "Share of the files and connections that the process may have open.",
            "percentunit",
            (
                f"process_open_fds{{{PROCESS}}} / process_max_fds{{{PROCESS}}}",
                "{{instance}}",
            ),
            limits=FILES_LIMIT,
        )
    )
    board.with_panel(
        time_series(
            "Time since the start",
            "A fall is a restart.",
            "s",
            (f"time() - process_start_time_seconds{{{PROCESS}}}", "{{instance}}"),
        )
    )
    board.with_panel(
        time_series(
            "Dropped log lines",
            "The log's reader is too slow or gone, or the disk is full.",
            "cps",
            (rate(f"lewm_log_lines_dropped_total{{{SELECTED}}}", "instance"), "{{instance}}"),
            when_empty="none was dropped",
        )
    )
