"""The committed dashboards; their queries and the alerts' against a real Prometheus."""

import json
import math
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.grafana.generate import FOLDER, documents
from tests.deploy.promtool import ALERTS, RULES, need
from tests.lewm_serve.support.frames import ACTION_BLOCK, base64_of, pixels
from tests.lewm_serve.support.redis_process import RedisProcess
from tests.lewm_serve.support.requests import rows
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

FILLED = {"$__rate_interval": "1m", "$instance": ".*", "$model": "two-room"}
QUICK = {"name": "cem", "samples": 4, "iterations": 1, "elites": 2, "horizon": 1}


def queries() -> list[str]:
    """Every panel's queries, template variables filled in."""
    found = []
    for document in documents().values():
        for panel in json.loads(document)["panels"]:
            for target in panel.get("targets") or ():
                expression: str = target["expr"]
                for variable, value in FILLED.items():
                    expression = expression.replace(variable, value)
                found.append(expression)
    return found


def test_committed_dashboards_are_what_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == documents()


def test_every_link_is_an_alerts_runbook() -> None:
    for document in documents().values():
        for panel in json.loads(document)["panels"]:
            for link in panel.get("links") or ():
                assert link["url"] in {"${runbooks}#" + alert.lower() for alert in ALERTS}


class PrometheusProcess:
    """A real Prometheus with the committed configuration, only quicker, on one server."""

    def __init__(self, folder: Path, target: str) -> None:
        need("prometheus")
        rules = Path(shutil.copytree(RULES, folder / "rules"))
        config = rules / "prometheus.yml"
        text = config.read_text().replace("127.0.0.1:8000", target)
        config.write_text(text.replace("interval: 15s", "interval: 500ms"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        flags = (f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}")
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            ["prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}"],
            stdout=self.log,
            stderr=self.log,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)

    def query(self, expression: str) -> list[float]:
        """The values of an instant query; fails on an error."""
        answer = self.client.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return [float(each["value"][1]) for each in answer.json()["data"]["result"]]

    def wait_value(self, expression: str, least: float) -> None:
        """Wait until the newest scrape shows at least this much."""

        wait_until(lambda: any(value >= least for value in self.query(expression)))

    def wait_ready(self) -> None:
        """Wait until it answers queries."""

        def ready() -> bool:
            assert self.process.poll() is None, "prometheus ended"
            try:
                return self.client.get("/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready)

    def alerts(self) -> dict[str, dict[str, Any]]:
        """Every alert's rule as Prometheus reads it."""
        groups = self.client.get("/api/v1/rules?type=alert").json()["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def stop(self) -> None:
        """End it."""
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.log.close()


def load(server: ServerProcess) -> None:
    """Requests of every kind: ordinary, anomalous, refused, and enough latents for SIGReg."""
    black = {"pixels": {"data": base64_of(bytes(3 * 64 * 64)), "shape": [64, 64, 3]}}
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:

        def ask(path: str, **body: Any) -> dict[str, Any]:
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            document: dict[str, Any] = answer.json()
            return document

        known = ask("/encode", frames=[pixels(0), pixels(1)])["latents"]
        many = [{"latent": known[i % 2]["latent"]} for i in range(32)]
        for _ in range(64):
            ask("/encode", frames=many)
        past = rows(ACTION_BLOCK)
        ask("/predict", frames=[pixels(0), black], past_actions=past, actions=rows(ACTION_BLOCK))
        ask("/plan", frames=[black], goal=pixels(1), solver=QUICK, seed=1)
        ask("/plan", frames=[pixels(0)], goal=pixels(1), solver=QUICK, seed=1)
        hold = {"controller": "hold"}
        answer = ask("/plan", frames=[black], goal=pixels(1), solver=QUICK, fallback=hold)
        assert answer["status"] == "fallback"
        assert client.post("/plan", json={"frames": []}).status_code == 422


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    """A Prometheus that has seen a server before and after a load."""
    folder = tmp_path_factory.mktemp("stack")
    with (
        RedisProcess() as redis,
        ServerProcess(folder / "server", LEWM_REDIS_URL=redis.url) as server,
    ):
        server.wait_ready()
        process = PrometheusProcess(folder, server.url.removeprefix("http://"))
        try:
            process.wait_ready()
            process.wait_value("up", 1)
            process.wait_value("lewm_cache_up", 1)
            load(server)
            process.wait_value('lewm_requests_total{endpoint="plan",code!="ok"}', 1)
            process.wait_value("sum(rate(lewm_requests_total[1m]))", 1e-9)
            process.wait_value("lewm:fallback_plans:ratio_rate5m", 0)
            process.wait_value("lewm:anomalous_requests:ratio_rate5m", 1e-9)
            process.wait_value("count_over_time(lewm:queued_requests:sum[5m])", 2)
            yield process
        finally:
            process.stop()


def shows(prometheus: PrometheusProcess, expression: str) -> bool:
    """Whether a query has a value that is a number."""
    values = prometheus.query(expression)
    return any(math.isfinite(value) for value in values)


def test_every_panel_shows_something(prometheus: PrometheusProcess) -> None:
    # Recording rules follow a scrape, and a rate needs two.
    for expression in queries():
        wait_until(lambda: shows(prometheus, expression))  # noqa: B023


def test_every_alert_can_be_judged(prometheus: PrometheusProcess) -> None:
    alerts = prometheus.alerts()
    assert set(alerts) == set(ALERTS)
    for name, rule in alerts.items():
        assert rule["health"] in ("ok", "unknown"), rule
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "runbook"}
        # A comparison filters; as `bool` it answers 0 or 1 wherever there is something to compare.
        judged = rule["query"].replace(" > ", " > bool ").replace(" == ", " == bool ")
        assert shows(prometheus, judged), f"{name}: {judged}"
