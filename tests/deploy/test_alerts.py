"""Each alert fires when it should and is quiet when it should, by Prometheus's own arithmetic."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.promtool import ALERTS, RULES, RUNBOOKS, promtool

Series = dict[str, str]
LENGTH = 480  # minutes
ON = 'job="lewm", instance="a:8000"'


def rising(step: float) -> str:
    """A counter that grows by so much a minute."""
    return f"0+{step}x{LENGTH}"


def steady(value: float) -> str:
    """A gauge that stays."""
    return f"{value}+0x{LENGTH}"


def answers(**rates: float) -> Series:
    """Plans answered a minute, by code."""
    head = f'lewm_requests_total{{{ON}, endpoint="plan", code='
    return {f'{head}"{code}"}}': rising(rate) for code, rate in rates.items()}


def durations(fast: float, slow: float) -> Series:
    """Plans a minute within a second, and beyond."""
    head = f'{{{ON}, endpoint="plan"'
    return {
        f'lewm_request_duration_seconds_bucket{head}, le="1.0"}}': rising(fast),
        f"lewm_request_duration_seconds_count{head}}}": rising(fast + slow),
    }


def health(**rates: float) -> Series:
    """Requests a minute to a model, by their health."""
    head = f'lewm_health_total{{{ON}, model="m", status='
    return {f'{head}"{status}"}}': rising(rate) for status, rate in rates.items()}


def anomalies(kind: str, rate: float) -> Series:
    """Requests a minute with a score of a kind beyond its limit."""
    return {f'lewm_anomalies_total{{{ON}, model="m", kind="{kind}"}}': rising(rate)}


def held(computed: float) -> Series:
    """A plan that is being solved, and the batches computed a minute."""
    return {
        f'lewm_queued_requests{{{ON}, endpoint="plan"}}': steady(0),
        f"lewm_active_plans{{{ON}}}": steady(1),
        f"lewm_predictor_tokens_total{{{ON}}}": rising(0),
        f'lewm_batch_rows_count{{{ON}, kind="rollout"}}': rising(computed),
    }


def ended(fallback: float) -> Series:
    """Plans a minute by how they ended."""
    head = f"lewm_plan_status_total{{{ON}, status="
    return {
        f'{head}"completed"}}': rising(100 - fallback),
        f'{head}"fallback"}}': rising(fallback),
    }


def gauge(name: str, values: str, labels: str = "") -> Series:
    """One gauge of the server."""
    return {f"{name}{{{ON}{labels}}}": values}


SERVED = gauge("lewm_model_info", steady(1), ', model="m"')
UP, DOWN = gauge("up", steady(1)), gauge("up", steady(0))


@dataclass(frozen=True)
class Case:
    """What an alert must see to fire, and what comes near to it but must not."""

    fires: Series
    quiet: Series


CASES = {
    "LewmAvailabilityFastBurn": Case(answers(ok=98, internal=2), answers(ok=99, overloaded=1)),
    "LewmAvailabilitySlowBurn": Case(
        answers(ok=990, overloaded=10), answers(ok=995, internal=5, out_of_range=500)
    ),
    "LewmLatencyFastBurn": Case(durations(80, 20), durations(90, 10)),
    "LewmLatencySlowBurn": Case(durations(90, 10), durations(95, 5)),
    "LewmDown": Case(DOWN, UP),
    "LewmAllDown": Case(DOWN, UP | {'up{job="lewm", instance="b:8000"}': steady(0)}),
    "LewmNotReady": Case(UP, UP | SERVED),
    # Fallbacks answer for a dead engine, and their plans are `ok`.
    "LewmEngineDead": Case(
        gauge("lewm_engine_up", steady(0)) | answers(ok=1, failed=0),
        gauge("lewm_engine_up", steady(1)) | answers(ok=1, failed=0),
    ),
    "LewmEngineRestarts": Case(
        gauge("lewm_engine_restarts_total", rising(0.01)),
        gauge("lewm_engine_restarts_total", steady(3)),
    ),
    "LewmEngineStuck": Case(held(computed=0), held(computed=1)),
    "LewmQueueGrowing": Case(
        gauge("lewm_queued_requests", rising(1), ', endpoint="plan"'),
        gauge("lewm_queued_requests", steady(500), ', endpoint="plan"'),
    ),
    "LewmNoTraffic": Case(answers(ok=0), answers(ok=0.2)),
    "LewmCacheDown": Case(
        gauge("lewm_cache_up", steady(0), ', tier="redis"'),
        gauge("lewm_cache_up", steady(1), ', tier="redis"'),
    ),
    "LewmReloadFailed": Case(
        gauge("lewm_model_reloads_total", rising(0.1), ', result="failed"'),
        gauge("lewm_model_reloads_total", steady(3), ', result="failed"')
        | gauge("lewm_model_reloads_total", rising(1), ', result="switched"'),
    ),
    # Of whatever a model is calibrated for, norms alone as well.
    "LewmAnomalies": Case(
        health(ok=90, anomalous=10),
        health(ok=6, degraded=90, anomalous=4) | anomalies("norm", 4) | anomalies("sigreg", 90),
    ),
    "LewmDrift": Case(
        health(ok=40, degraded=50, anomalous=10) | anomalies("sigreg", 60),
        health(ok=60, anomalous=40) | anomalies("sigreg", 40) | anomalies("norm", 60),
    ),
    "LewmFallbacks": Case(ended(fallback=10), ended(fallback=4)),
}


def test_every_alert_is_tested_and_has_a_runbook() -> None:
    assert set(CASES) == set(ALERTS)
    headings = [line[3:] for line in RUNBOOKS.read_text().splitlines() if line.startswith("## ")]
    assert headings == ALERTS
    text = (RULES / "alerts.yml").read_text()
    for alert in ALERTS:
        url = f"{{{{ $externalURL }}}}/user/runbooks.html#{alert.lower()}"
        assert text.count(f'runbook_url: "{url}"\n') == 1


def test_configuration_and_rules_are_sound() -> None:
    promtool("check", "config", str(RULES / "prometheus.yml"))


def judged(alert: str, series: Series, firing: bool, after: str = f"{LENGTH}m") -> dict[str, Any]:
    """A test of promtool's: does the alert fire, once the series have run?"""
    told = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    expected = [{"labels": "{}", "value": 1}] if firing else []
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": told, "eval_time": after, "exp_samples": expected}],
    }


def test_rules(tmp_path: Path, rules: list[dict[str, Any]]) -> None:
    document = {
        "rule_files": [str(RULES / name) for name in ("recording.yml", "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": rules,
    }
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps(document))  # JSON is YAML
    promtool("test", "rules", str(path))


@pytest.fixture(params=["fires", "quiet", "ends"])
def rules(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Tests of all alerts: that they fire, that they do not, that the short window ends them."""
    if request.param == "fires":
        return [judged(alert, case.fires, True) for alert, case in CASES.items()]
    if request.param == "quiet":
        return [judged(alert, case.quiet, False) for alert, case in CASES.items()]
    over = {
        'lewm_requests_total{job="lewm", endpoint="plan", code="ok"}': rising(90),
        'lewm_requests_total{job="lewm", endpoint="plan", code="internal"}': "0+10x60 600+0x420",
    }
    return [
        judged("LewmAvailabilityFastBurn", over, True, "60m"),
        judged("LewmAvailabilityFastBurn", over, False, "70m"),
    ]
