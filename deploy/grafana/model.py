"""The model: how ordinary what it sees is, and what took over where it was not."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.panels import board, figure, heat_map, series

ON = 'instance=~"$instance", model=~"$model"'
RATE = "[$__rate_interval]"


def model() -> Dashboard:
    """Latent health and fallbacks."""
    made = board(
        "lewm-model",
        "LeWM: model",
        "Latents, their health, and fallbacks. What the scores tell: docs/latent-health.md.",
        {
            "instance": 'label_values(up{job="lewm"}, instance)',
            "model": "label_values(lewm_model_info, model)",
        },
    )
    for part in (_latents, _prediction, _trust):
        part(made)
    return made


def _latents(made: Dashboard) -> None:
    made.with_row(Row("Latents"))
    made.with_panel(
        heat_map("Norms", "Of every latent served.", "none", f"lewm_latent_norm_bucket{{{ON}}}")
    )
    made.with_panel(
        series(
            "z-score of the norm",
            "Furthest frame of the newest request, in deviations of the calibration.",
            "none",
            (f"lewm_latent_norm_zscore{{{ON}}}", "{{instance}} {{model}}"),
            runbook="LewmAnomalies",
        )
    )
    made.with_panel(
        heat_map(
            "Mahalanobis distance",
            "Furthest frame of each request.",
            "none",
            f"lewm_latent_mahalanobis_bucket{{{ON}}}",
        )
    )


def _prediction(made: Dashboard) -> None:
    made.with_row(Row("Prediction and distribution"))
    made.with_panel(
        heat_map(
            "Surprise",
            "Distance of the newest latent from the predicted one; only requests with a history.",
            "none",
            f"lewm_surprise_bucket{{{ON}}}",
        )
    )
    made.with_panel(
        series(
            "SIGReg",
            "Of the recent stream: how far from the Gaussian that training aims at.",
            "none",
            (f"lewm_latent_sigreg{{{ON}}}", "{{instance}} {{model}}"),
            runbook="LewmDrift",
        )
    )
    made.with_panel(
        series(
            "Models served",
            "",
            "none",
            (
                f"sum by (model, version, backend, precision) (lewm_model_info{{{ON}}})",
                "{{model}} {{version}} {{backend}} {{precision}}",
            ),
            runbook="LewmNotReady",
        )
    )


def _trust(made: Dashboard) -> None:
    made.with_row(Row("Anomalies and fallbacks"))
    made.with_panel(
        figure(
            "Anomalous requests, 5 m",
            "Share of the requests to the model whose frames were looked at, of all servers.",
            "percentunit",
            'lewm:anomalous_requests:ratio_rate5m{model=~"$model"}',
            "LewmAnomalies",
        )
    )
    made.with_panel(
        figure(
            "Plans by a fallback, 5 m",
            "Share of all plans, of all servers and models.",
            "percentunit",
            "lewm:fallback_plans:ratio_rate5m",
            "LewmFallbacks",
        )
    )
    made.with_panel(
        series(
            "Requests by health",
            "Those whose frames were looked at.",
            "reqps",
            (f"sum by (status) (rate(lewm_health_total{{{ON}}}{RATE}))", "{{status}}"),
            runbook="LewmAnomalies",
        )
    )
    made.with_panel(
        series(
            "Anomalies",
            "By the kind of score that was beyond its limit.",
            "reqps",
            (f"sum by (kind) (rate(lewm_anomalies_total{{{ON}}}{RATE}))", "{{kind}}"),
            runbook="LewmAnomalies",
        )
    )
    made.with_panel(
        series(
            "Fallbacks",
            "By controller and reason.",
            "reqps",
            (
                f"sum by (controller, reason) (rate(lewm_fallbacks_total{{{ON}}}{RATE}))",
                "{{controller}}: {{reason}}",
            ),
            runbook="LewmFallbacks",
        )
    )
