"""The Helm chart: what it makes of values, and that it agrees with the server."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm.check import CHART, VALUE_FILES, ChartError, check, check_copies, render
from lewm_serve.observability.metrics import Metrics
from lewm_serve.server import FLUSH_S
from lewm_serve.settings import Settings
from lewm_serve.transports.http.access import OPEN_PATHS
from tests.deploy.promtool import RULES

NAME = "demo-lewm-serve"
OPEN: dict[str, Any] = {"insecure": True}


def deployment(objects: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = objects[f"Deployment/{NAME}"]["spec"]
    return found


def container(objects: dict[str, Any]) -> dict[str, Any]:
    (found,) = deployment(objects)["template"]["spec"]["containers"]
    return dict(found)


def variables(objects: dict[str, Any]) -> dict[str, str | None]:
    """The container's environment; None for a value from a Secret."""
    return {item["name"]: item.get("value") for item in container(objects)["env"]}


@pytest.fixture(scope="module", params=VALUE_FILES, ids=lambda file: file.stem)
def rendered(request: pytest.FixtureRequest) -> dict[str, Any]:
    return render(yaml.safe_load(request.param.read_text()))


@pytest.fixture(scope="module")
def fleet() -> dict[str, Any]:
    (file,) = (file for file in VALUE_FILES if file.stem == "fleet")
    return render(yaml.safe_load(file.read_text()))


def test_kubernetes_takes_what_it_makes(rendered: dict[str, Any]) -> None:
    check(rendered)
    metadata = [found["metadata"] for found in rendered.values()]
    assert all(m["labels"]["app.kubernetes.io/instance"] == "demo" for m in metadata)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicas"), "two"),
        (("spec", "replica"), 2),
        (("spec", "template", "spec", "containers", 0, "ports", 0, "port"), 1),
        (("spec", "template", "spec", "securityContext", "runAsRoot"), False),
    ],
)
def test_what_kubernetes_would_refuse_is_found(path: tuple[Any, ...], value: Any) -> None:
    objects = copy.deepcopy(render(OPEN))
    place = objects[f"Deployment/{NAME}"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ChartError, match=f"Deployment/{NAME}"):
        check(objects)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "keys.secret: set it, or tls.clientCA, or insecure=true"),
        (OPEN | {"tls": {"clientCA": "ca"}}, "tls.clientCA: certificates of clients need"),
        (OPEN | {"models": {"paths": ["/models/a"]}}, "models.volume: models.paths need a volume"),
        (OPEN | {"models": {"paths": ["arm"]}}, "models"),
        (OPEN | {"redis": {"url": "redis://r", "secret": "r"}}, "not in both"),
        (OPEN | {"redis": {"url": "redis://:password@r"}}, "redis"),
        (
            {"keys": {"secret": "k"}, "serviceMonitor": {"enabled": True}},
            "serviceMonitor.keySecret: with keys",
        ),
        (
            OPEN | {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}},
            "autoscaling.minReplicas: it is larger",
        ),
        (OPEN | {"replica": 2}, "replica"),
        (OPEN | {"settings": {"THREADS": 2}}, "THREADS"),
        (OPEN | {"gpus": -1}, "gpus"),
        (OPEN | {"console": "on"}, "console"),
        (OPEN | {"autoscaling": {"kind": "vpa"}}, "kind"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ChartError, match=re.escape(message)):
        render(values)


def test_every_value_is_in_the_schema() -> None:
    """So a value that is misspelt is an error, and none of the documented ones is."""
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(properties) - {"global"} == set(defaults)
    for name, default in defaults.items():
        if isinstance(default, dict) and default:
            known = properties[name].get("properties")
            assert known is None or set(known) == set(default)


def test_its_variables_are_settings(rendered: dict[str, Any]) -> None:
    names = {f"LEWM_{name.upper()}" for name in Settings.model_fields}
    assert set(variables(rendered)) <= names


def test_ports_and_probes_are_those_of_the_server(rendered: dict[str, Any]) -> None:
    server, defaults = container(rendered), Settings()
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    metrics_port = int(variables(rendered)["LEWM_METRICS_PORT"] or 0)
    assert ports == {
        "http": defaults.http_port,
        "grpc": defaults.grpc_port,
        "metrics": metrics_port,
    }
    probes = [server[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/healthz", "/healthz", "/readyz"]
    assert {probe["port"] for probe in probes} == {"metrics"}
    assert {probe["path"] for probe in probes} <= set(OPEN_PATHS)
    has_tls = "LEWM_TLS_CERT" in variables(rendered)
    assert {probe["scheme"] for probe in probes} == {"HTTPS" if has_tls else "HTTP"}
    http = rendered[f"Service/{NAME}"]["spec"]["ports"]
    assert {port["appProtocol"] for port in http} == {"https" if has_tls else "http"}


def test_clients_balance_over_all_servers(rendered: dict[str, Any]) -> None:
    service = rendered[f"Service/{NAME}-grpc"]["spec"]
    assert service["clusterIP"] == "None"
    assert [port["port"] for port in service["ports"]] == [50051]
    labels = deployment(rendered)["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_a_server_has_time_to_finish_its_plans(rendered: dict[str, Any]) -> None:
    server, pod = container(rendered), deployment(rendered)["template"]["spec"]
    lag_s = float(variables(rendered)["LEWM_DRAIN_LAG_S"] or 0)
    readiness = server["readinessProbe"]
    assert lag_s > readiness["periodSeconds"] * readiness["failureThreshold"]
    needed_s = lag_s + float(variables(rendered)["LEWM_GRACE_S"] or 0) + FLUSH_S
    assert pod["terminationGracePeriodSeconds"] > needed_s
    assert deployment(rendered)["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_server_is_confined(rendered: dict[str, Any]) -> None:
    server, pod = container(rendered), deployment(rendered)["template"]["spec"]
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # LEWM_…_PORT of a service would be a setting
    assert server["resources"]["limits"].keys() >= {"cpu", "memory"}
    mounts = {mount["name"] for mount in server["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_a_fleet_has_keys_certificates_models_and_redis(fleet: dict[str, Any]) -> None:
    found = variables(fleet)
    assert found["LEWM_KEYS_FILE"] == "/etc/lewm/keys/keys"
    assert found["LEWM_TLS_CLIENT_CA"] == "/etc/lewm/client-ca/ca.crt"
    assert found["LEWM_MODELS"] == "/models/arm:/models/gripper"
    assert found["LEWM_REDIS_URL"] is None  # from a Secret
    assert "LEWM_INSECURE" not in found
    mounts = {m["name"]: m["mountPath"] for m in container(fleet)["volumeMounts"]}
    for variable, mount in (
        ("LEWM_KEYS_FILE", "keys"),
        ("LEWM_TLS_KEY", "tls"),
        ("LEWM_TLS_CLIENT_CA", "client-ca"),
        ("LEWM_MODELS", "models"),
    ):
        assert str(found[variable]).startswith(mounts[mount] + "/")


def test_only_robots_and_prometheus_reach_a_fleet(fleet: dict[str, Any]) -> None:
    policy = fleet[f"NetworkPolicy/{NAME}"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    robots, monitoring = policy["ingress"]
    assert robots["from"] == [{"namespaceSelector": {"matchLabels": {"robots": "true"}}}]
    assert [port["port"] for port in robots["ports"]] == ["http", "grpc"]
    assert [port["port"] for port in monitoring["ports"]] == ["metrics"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 6379, 4318}


def test_a_fleet_grows_by_its_queue_and_slow_plans(fleet: dict[str, Any]) -> None:
    assert "replicas" not in deployment(fleet)
    scaling = fleet[f"ScaledObject/{NAME}"]["spec"]
    assert scaling["scaleTargetRef"] == {"name": NAME}
    assert (scaling["minReplicaCount"], scaling["maxReplicaCount"]) == (3, 20)
    queue, slow = scaling["triggers"]
    assert (queue["metricType"], queue["metadata"]["threshold"]) == ("AverageValue", "4")
    assert (slow["metricType"], slow["metadata"]["threshold"]) == ("Value", "0.01")
    known = Metrics().render().decode()
    for trigger in (queue, slow):
        query = trigger["metadata"]["query"]
        names = set(re.findall(r"lewm_[a-z_]+", query))
        assert names
        assert all(f"# TYPE {re.sub('_(bucket|count)$', '', name)} " in known for name in names)


def test_a_console_is_there_when_it_is_asked_for() -> None:
    assert "LEWM_CONSOLE" not in variables(render(OPEN))
    objects = render(OPEN | {"console": True})
    assert variables(objects)["LEWM_CONSOLE"] == "1"
    check(objects)


def test_gpus_get_an_engine_each() -> None:
    objects = render(OPEN | {"gpus": 2})
    assert container(objects)["image"] == "lewm-serve:0.2.0-cu130"
    assert variables(objects)["LEWM_DEVICE"] == "cuda:0,cuda:1"
    assert container(objects)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    cpu = render(OPEN)
    assert container(cpu)["image"] == "lewm-serve:0.2.0-cpu"
    assert "LEWM_DEVICE" not in variables(cpu)
    check(objects)


def test_prometheus_finds_the_servers_and_their_rules(fleet: dict[str, Any]) -> None:
    (endpoint,) = fleet[f"ServiceMonitor/{NAME}"]["spec"]["endpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "lewm"}]
    assert endpoint["authorization"]["credentials"]["name"] == "lewm-prometheus-key"
    assert endpoint["tlsConfig"]["serverName"] == "lewm.example.org"
    assert endpoint["port"] in {p["name"] for p in fleet[f"Service/{NAME}"]["spec"]["ports"]}
    recording = fleet[f"PrometheusRule/{NAME}-recording"]["spec"]
    assert recording == yaml.safe_load((RULES / "recording.yml").read_text())
    alerts = fleet[f"PrometheusRule/{NAME}-alerts"]["spec"]
    text = (RULES / "alerts.yml").read_text()
    there = "https://wiki.example.org/lewm/runbooks"
    assert alerts == yaml.safe_load(text.replace("{{ $externalURL }}/user/runbooks.html", there))
    assert there + "#lewmdown" in str(alerts)


def test_a_copy_that_differs_from_the_rules_is_an_error(tmp_path: Path) -> None:
    check_copies(CHART / "files")
    shutil.copytree(CHART / "files", tmp_path / "files")
    with (tmp_path / "files/alerts.yml").open("a") as copied:
        copied.write("# changed\n")
    with pytest.raises(
        ChartError, match=r"files/alerts\.yml differs from .*prometheus/alerts\.yml"
    ):
        check_copies(tmp_path / "files")
