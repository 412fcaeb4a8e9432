"""The dashboard of one model: the health of its latents, and the fallbacks."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import (
    Limits,
    heat_map,
    new_dashboard,
    rate,
    single_number,
    time_series,
)

SELECTED = 'instance=~"$instance", model=~"$model"'

ANOMALY_LIMIT: Limits = ((0.05, "red"),)
DRIFT_LIMIT: Limits = ((0.5, "orange"),)
"""See LewmAnomalies, LewmFallbacks and LewmDrift."""

NO_REQUESTS = "no requests, or the model is not calibrated for this"


def model() -> Dashboard:
    """The dashboard *LeWM: model*."""
    board = new_dashboard(
        "lewm-model",
        "LeWM: model",
        "Latents, their health, and fallbacks. docs/latent-health.md explains the scores.",
        {
            "instance": 'label_values(up{job="lewm"}, instance)',
            "model": "label_values(lewm_model_info, model)",
        },
    )
    for add_row in (_add_latents, _add_prediction, _add_anomalies):
        add_row(board)
    return board


def _add_latents(board: Dashboard) -> None:
    board.with_row(Row("Latents"))
    board.with_panel(
        heat_map(
            "Norms",
            "Norm of the latent of each frame. Goals are not counted.",
            "none",
            f"lewm_latent_norm_bucket{{{SELECTED}}}",
            when_empty=NO_REQUESTS,
        )
    )
    board.with_panel(
        time_series(
            "z-score of the norm",
            "The most unusual frame of the newest request.",
            "none",
            (f"lewm_latent_norm_zscore{{{SELECTED}}}", "{{instance}} {{model}}"),
            runbook="LewmAnomalies",
            when_empty=NO_REQUESTS,
        )
    )
    board.with_panel(
        heat_map(
            "Mahalanobis distance",
            "The most unusual frame of each request.",
            "none",
            f"lewm_latent_mahalanobis_bucket{{{SELECTED}}}",
            when_empty=NO_REQUESTS,
        )
    )


def _add_prediction(board: Dashboard) -> None:
    board.with_row(Row("Prediction and distribution"))
    board.with_panel(
        heat_map(
            "Surprise",
            "Distance between the newest latent and its one-step prediction, if there are several "
            "frames.",
            "none",
            f"lewm_surprise_bucket{{{SELECTED}}}",
            when_empty=NO_REQUESTS,
        )
    )
    board.with_panel(
        time_series(
            "SIGReg",
            "SIGReg of the recent latents: how much their distribution differs from a Gaussian.",
            "none",
            (f"lewm_latent_sigreg{{{SELECTED}}}", "{{instance}} {{model}}"),
            runbook="LewmDrift",
            when_empty="there are not enough frames yet",
        )
    )
    board.with_panel(
        time_series(
            "Loaded models",
            "",
            "short",
            (
                f"sum by (model, version, backend, precision) (lewm_model_info{{{SELECTED}}})",
                "{{model}} {{version}} {{backend}} {{precision}}",
            ),
            runbook="LewmNotReady",
        )
    )


def _add_anomalies(board: Dashboard) -> None:
    board.with_row(Row("Anomalies and fallbacks"))
    for title, about, ratio, limits, runbook in (
        (
            "Anomalous requests, 5 m",
            "Share of the model's requests, of those whose frames were assessed. All servers.",
            'lewm:anomalous_requests:ratio_rate5m{model=~"$model"}',
            ANOMALY_LIMIT,
            "LewmAnomalies",
        ),
        (
            "Requests with drift, 30 m",
            "Share of the model's requests whose SIGReg is above its limit. All servers.",
            'lewm:drifted_requests:ratio_rate30m{model=~"$model"}',
            DRIFT_LIMIT,
            "LewmDrift",
        ),
        (
            "Plans with a fallback, 5 m",
            "Share of all plans. All servers and models.",
            "lewm:fallback_plans:ratio_rate5m",
            ANOMALY_LIMIT,
            "LewmFallbacks",
        ),
    ):
        board.with_panel(
            single_number(
                title,
                about,
                "percentunit",
                f"{ratio} >= 0",
                runbook=runbook,
                limits=limits,
                when_empty="no requests",
            )
        )
    board.with_panel(
        time_series(
            "Requests by health",
            "Requests whose frames were assessed.",
            "reqps",
            (rate(f"lewm_health_total{{{SELECTED}}}", "status"), "{{status}}"),
            runbook="LewmAnomalies",
            when_empty="no requests",
        )
    )
    board.with_panel(
        time_series(
            "Anomalies",
            "By the kind of score that was above its limit.",
            "reqps",
            (rate(f"lewm_anomalies_total{{{SELECTED}}}", "kind"), "{{kind}}"),
            runbook="LewmAnomalies",
            when_empty="no anomalies",
        )
    )
    board.with_panel(
        time_series(
            "Fallbacks",
            "Plans with a fallback, by controller and reason.",
            "reqps",
            (
                rate(f"lewm_fallbacks_total{{{SELECTED}}}", "controller, reason"),
                "{{controller}}: {{reason}}",
            ),
            runbook="LewmFallbacks",
            when_empty="no fallbacks",
        )
    )
