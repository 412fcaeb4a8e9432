"""What docker-compose.yml starts, as compose's own parser reads it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lewm_serve.server import FLUSH_S
from lewm_serve.settings import Settings
from tests.deploy.fleet_settings import drain_lag_s
from tests.deploy.promtool import ROOT, promtool

COMPOSE = Path(sys.executable).with_name("docker-compose")
FOLDER = ROOT / "deploy" / "compose"
PORTS = {
    "server": [8000, 50051],
    "prometheus": [9090],
    "grafana": [3000],
    "redis": [],
    "robots": [],
}


def parse(*arguments: str, **variables: str) -> dict[str, Any]:
    """The services of docker-compose.yml, robots included."""
    environment = {"PATH": os.environ["PATH"]} | variables
    command = [str(COMPOSE), *arguments, "--profile", "robots", "config", "--format", "json"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services without any variable of the operator."""
    return parse()


@pytest.mark.parametrize("name", PORTS)
def test_a_service_is_confined_and_comes_back(name: str, services: dict[str, Any]) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] == "unless-stopped"
    assert int(service["mem_limit"]) > 0
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+[\w-]*", service["image"])
    ports = [(port["host_ip"], port["target"]) for port in service.get("ports", [])]
    assert ports == [("127.0.0.1", port) for port in PORTS[name]]
    for volume in service.get("volumes", []):
        if volume["type"] == "bind":
            assert volume["read_only"] is True
            assert Path(volume["source"]).exists()


def test_only_the_server_reaches_redis(services: dict[str, Any]) -> None:
    assert [name for name in services if "cache" in services[name]["networks"]] == [
        "redis",
        "server",
    ]
    assert list(services["redis"]["networks"]) == ["cache"]


def test_a_stop_takes_longer_than_the_lag_and_the_grace_period(services: dict[str, Any]) -> None:
    seconds = float(services["server"]["stop_grace_period"].removesuffix("s"))
    assert seconds > drain_lag_s() + Settings().grace_s + FLUSH_S


def test_a_server_of_a_fleet_has_keys_and_certificates() -> None:
    fleet = ("--file", "docker-compose.yml", "--file", "deploy/compose/fleet.yml")
    server = parse(*fleet, LISTEN_ADDRESS="192.0.2.11")["server"]
    settings = server["environment"]
    assert settings["LEWM_INSECURE"] == "0"
    assert float(settings["LEWM_DRAIN_LAG_S"]) == drain_lag_s()
    assert {"LEWM_KEYS_FILE", "LEWM_TLS_CERT", "LEWM_TLS_KEY", "LEWM_TLS_CLIENT_CA"} <= set(
        settings
    )
    ports = {(port["host_ip"], port["target"]) for port in server["ports"]}
    assert ports == {("192.0.2.11", port) for port in (8000, 8001, 50051)}
    assert {volume["target"] for volume in server["volumes"]} == {"/models", "/etc/lewm"}


def test_the_operator_sets_models_addresses_and_the_build() -> None:
    cuda = ("--file", "docker-compose.yml", "--file", "deploy/compose/cuda.yml")
    server = parse(*cuda, MODELS_FOLDER="/srv/models", LISTEN_ADDRESS="0.0.0.0")["server"]
    (volume,) = server["volumes"]
    assert (volume["type"], volume["source"]) == ("bind", "/srv/models")
    assert {port["host_ip"] for port in server["ports"]} == {"0.0.0.0"}
    assert server["build"]["args"]["TORCH_BUILD"] == "cu130"
    assert server["image"].endswith("-cu130")


def content(file: Path, **replacements: str) -> list[str]:
    """The lines of a YAML file without comments, with words replaced."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    for old, new in replacements.items():
        lines = [line.replace(old, new) for line in lines]
    return lines


def test_prometheus_reads_our_rules(tmp_path: Path, services: dict[str, Any]) -> None:
    rules = mounts(services["prometheus"])["/etc/prometheus/rules"]
    shutil.copytree(rules, tmp_path / "rules")
    assert "--web.user-assets=/etc/prometheus/rules/assets" in services["prometheus"]["command"]
    assert (rules / "assets").is_dir()
    configuration = FOLDER / "prometheus.yml"
    text = configuration.read_text().replace("/etc/prometheus", str(tmp_path))
    (tmp_path / "prometheus.yml").write_text(text)
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
    expected = content(rules / "prometheus.yml", **{"127.0.0.1": "server"})
    assert content(configuration, **{"/etc/prometheus/rules/": ""}) == expected


def test_grafana_has_our_dashboards_and_their_source(services: dict[str, Any]) -> None:
    folders = mounts(services["grafana"])
    assert folders["/etc/grafana/dashboards/lewm"] == ROOT / "deploy" / "grafana" / "dashboards"
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    provider = folders["/etc/grafana/provisioning/dashboards/lewm.yml"]
    assert "/etc/grafana/dashboards/lewm" in provider.read_text()
    source = folders["/etc/grafana/provisioning/datasources/prometheus.yml"]
    expected = content(
        provisioning / "datasources" / "prometheus.yml", **{"127.0.0.1": "prometheus"}
    )
    assert content(source) == expected


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """What a service mounts from the repository, by its path in the container."""
    binds = [volume for volume in service["volumes"] if volume["type"] == "bind"]
    return {volume["target"]: Path(volume["source"]) for volume in binds}
