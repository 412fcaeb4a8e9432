"""The committed dashboards; their queries and the alerts' against a real Prometheus."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.generate import FOLDER, documents
from deploy.prometheus import runbooks
from tests.deploy.promtool import ALERTS, RULES, RUNBOOKS, need
from tests.lewm_serve.support.frames import ACTION_BLOCK, base64_of, pixels
from tests.lewm_serve.support.ports import free_port
from tests.lewm_serve.support.redis_process import RedisProcess
from tests.lewm_serve.support.requests import rows
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

FILLED = {"$__rate_interval": "1m", "$instance": ".*", "$model": "two-room"}
QUICK = {"name": "cem", "samples": 4, "iterations": 1, "elites": 2, "horizon": 1}

MATCHER = re.compile(r'''(\w+)=~?"([^"$]+)"''')
SELECTOR = re.compile(r"([a-z0-9_:]+)\{([^}]*)\}")

EMPTY_WITHOUT_FAULTS = ("Dropped log lines",)
"""Panels of faults that the load does not have."""

OFTEN_ZERO = ("Waiting and active", "Bytes held")
"""Panels of gauges that are above 0 for moments only."""

GRAFANA = FOLDER.parent
Panel = dict[str, Any]


def panels() -> list[Panel]:
    """All panels with queries."""
    boards = [json.loads(document) for document in documents().values()]
    return [panel for board in boards for panel in board["panels"] if panel.get("targets")]


def queries(panel: Panel) -> list[str]:
    """The queries of a panel, template variables filled in."""
    expressions: list[str] = [target["expr"] for target in panel["targets"]]
    for variable, value in FILLED.items():
        expressions = [expression.replace(variable, value) for expression in expressions]
    return expressions


def test_committed_dashboards_are_what_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == documents()


def test_the_committed_runbooks_are_those_of_the_document() -> None:
    assert runbooks.PAGE.read_text() == runbooks.page()


def test_the_library_reads_the_dashboards_back() -> None:
    for document in documents().values():
        board = Dashboard.from_json(json.loads(document))
        assert JSONEncoder(indent=2, sort_keys=True).encode(board) + "\n" == document


def test_every_link_is_an_alerts_runbook() -> None:
    for panel in panels():
        for link in panel.get("links") or ():
            assert link["url"] in {"${runbooks}#" + alert.lower() for alert in ALERTS}


def test_the_runbooks_name_panels_that_exist() -> None:
    boards = [json.loads(document) for document in documents().values()]
    titles = {panel["title"] for panel in panels()} | {board["title"] for board in boards}
    named = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", RUNBOOKS.read_text()))
    assert named - {"italics"} <= titles


def test_panels_have_units_and_numbers_have_colours() -> None:
    for panel in panels():
        defaults = panel["fieldConfig"]["defaults"]
        unit = panel["options"]["yAxis"]["unit"] if panel["type"] == "heatmap" else defaults["unit"]
        assert unit, panel["title"]
        if panel["type"] == "heatmap":
            colors = panel["options"]["color"]
            assert (colors["mode"], colors["scheme"], colors["steps"]) == ("scheme", "Oranges", 64)
        if panel["type"] == "stat":
            assert panel["options"]["reduceOptions"]["calcs"] == ["lastNotNull"]
            steps = defaults["thresholds"]["steps"]
            assert len(steps) >= 2, panel["title"]
            assert len({step["color"] for step in steps}) == len(steps)


class PrometheusProcess:
    """A real Prometheus with the committed configuration, only quicker, on one server.

    Attributes:
        empty_at_first: titles of the panels that had a query without a value before the load.
    """

    def __init__(self, folder: Path, target: str) -> None:
        need("prometheus")
        rules = Path(shutil.copytree(RULES, folder / "rules"))
        config = rules / "prometheus.yml"
        text = config.read_text().replace("127.0.0.1:8000", target)
        config.write_text(text.replace("interval: 15s", "interval: 1s"))
        port = free_port()
        flags = (
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.user-assets={rules / 'assets'}",
            f"--web.external-url=http://127.0.0.1:{port}/",
        )
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            ["prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}"],
            stdout=self.log,
            stderr=self.log,
        )
        self.empty_at_first: set[str] = set()
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

    def active_alerts(self) -> list[dict[str, Any]]:
        """The alerts that fire, or will if nothing changes."""
        found: list[dict[str, Any]] = self.client.get("/api/v1/alerts").json()["data"]["alerts"]
        return found

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
        too_late = {"frames": [pixels(0)], "goal": pixels(1), "deadline_ms": 1e-6}
        assert client.post("/plan", json=too_late).status_code == 504


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    """A Prometheus that has seen a server before and after a load."""
    folder = tmp_path_factory.mktemp("stack")
    with (
        RedisProcess() as redis,
        # The cache of the process holds so little that Redis has hits too.
        ServerProcess(
            folder / "server", LEWM_REDIS_URL=redis.url, LEWM_CACHE_ENTRIES="1"
        ) as server,
    ):
        server.wait_ready()
        process = PrometheusProcess(folder, server.url.removeprefix("http://"))
        try:
            process.wait_ready()
            process.wait_value("up", 1)
            process.wait_value("lewm_cache_up", 1)
            process.wait_value("count_over_time(lewm:queued_requests:sum[5m])", 2)
            for panel in panels():
                if not all(shows(process, expression) for expression in queries(panel)):
                    process.empty_at_first.add(panel["title"])
            load(server)
            redis.kill()
            with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
                assert client.post("/encode", json={"frames": [pixels(7)]}).status_code == 200
            process.wait_value('lewm_requests_total{endpoint="plan",code!="ok"}', 1)
            process.wait_value("sum(rate(lewm_requests_total[1m]))", 1e-9)
            process.wait_value("lewm:fallback_plans:ratio_rate5m", 0)
            process.wait_value("lewm:anomalous_requests:ratio_rate5m", 1e-9)
            process.wait_value('lewm_cache_errors_total{tier="redis"}', 1)
            yield process
        finally:
            process.stop()


def shows(prometheus: PrometheusProcess, expression: str) -> bool:
    """Whether a query has a value that is a number."""
    values = prometheus.query(expression)
    return any(math.isfinite(value) for value in values)


def test_every_panel_shows_something(prometheus: PrometheusProcess) -> None:
    # Recording rules follow a scrape, and a rate needs two.
    for panel in panels():
        if panel["title"] not in EMPTY_WITHOUT_FAULTS:
            for expression in queries(panel):
                wait_until(lambda: shows(prometheus, expression), panel["title"])  # noqa: B023


def test_no_line_is_always_zero(prometheus: PrometheusProcess) -> None:
    for panel in panels():
        if panel["type"] == "timeseries" and panel["title"] not in OFTEN_ZERO:
            for expression in queries(panel):
                most = f"max_over_time(({expression})[10m:1s]) == 0"
                wait_until(lambda: not prometheus.query(most), panel["title"])  # noqa: B023


def test_a_panel_that_may_be_empty_says_why(prometheus: PrometheusProcess) -> None:
    assert {"Errors", "Fallbacks", "Requests"} <= prometheus.empty_at_first
    for panel in panels():
        if panel["title"] in prometheus.empty_at_first:
            assert panel["fieldConfig"]["defaults"].get("noValue"), panel["title"]


def test_every_label_value_in_a_query_exists(prometheus: PrometheusProcess) -> None:
    rules = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    expressions = [rule["query"] for group in rules for rule in group["rules"]]
    expressions += [expression for panel in panels() for expression in queries(panel)]
    checked = set()
    for metric, matchers in SELECTOR.findall(" ".join(expressions)):
        for label, values in MATCHER.findall(matchers):
            checked |= {f'{metric}{{{label}="{value}"}}' for value in values.split("|")}
    checked = {selector for selector in checked if '".*"' not in selector}
    assert 'lewm_requests_total{code="overloaded"}' in checked
    for selector in sorted(checked):
        assert prometheus.query(f"count({selector})"), selector


def test_every_alert_can_be_judged(prometheus: PrometheusProcess) -> None:
    alerts = prometheus.alerts()
    assert set(alerts) == set(ALERTS)
    for name, rule in alerts.items():
        assert rule["health"] in ("ok", "unknown"), rule
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "runbook_url"}
        # A comparison filters; as `bool` it answers 0 or 1 wherever there is something to compare.
        judged = rule["query"].replace(" > ", " > bool ").replace(" == ", " == bool ")
        assert shows(prometheus, judged), f"{name}: {judged}"


def check_runbook(url: str, alert: str) -> None:
    """An address leads to the heading of an alert."""
    address, _, anchor = url.partition("#")
    answer = httpx.get(address, timeout=PATIENCE_S)
    assert answer.status_code == 200, url
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert f'<h2 id="{anchor}">{alert}</h2>' in answer.text


def test_every_runbook_url_leads_to_its_heading(prometheus: PrometheusProcess) -> None:
    base = str(prometheus.client.base_url).rstrip("/")
    for name, rule in prometheus.alerts().items():
        url = rule["annotations"]["runbook_url"].replace("{{ $externalURL }}", base)
        check_runbook(url, name)
    # Prometheus itself fills in the address.
    wait_until(prometheus.active_alerts)
    for alert in prometheus.active_alerts():
        assert alert["annotations"]["runbook_url"].startswith(f"{base}/user/")
        check_runbook(alert["annotations"]["runbook_url"], alert["labels"]["alertname"])


def test_the_dashboards_find_the_runbooks_through_grafana(prometheus: PrometheusProcess) -> None:
    data_source = (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert "uid: prometheus " in data_source
    for document in documents().values():
        variables = json.loads(document)["templating"]["list"]
        (runbooks,) = (each for each in variables if each["name"] == "runbooks")
        # Grafana passes what follows on to the data source of this uid.
        path = runbooks["query"].removeprefix("/api/datasources/proxy/uid/prometheus")
        check_runbook(f"{prometheus.client.base_url}{path}#lewmdown", "LewmDown")
