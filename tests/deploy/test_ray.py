"""The configuration for Ray Serve agrees with the server, and the local cluster with it."""

import ast
from typing import Any

import pytest
import yaml

from benchmarks.ray_cluster import RayCluster
from lewm_serve.ray_serve.settings import read_settings
from lewm_serve.settings import Settings
from tests.deploy.promtool import ROOT

FILE = ROOT / "deploy" / "ray" / "lewm.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    """The configuration."""
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def defines(path: str, separator: str) -> bool:
    """Whether the module of a path of Ray defines its function. Ray is not installed here."""
    module, _, function = path.rpartition(separator)
    source = ROOT / "service" / f"{module.replace('.', '/')}.py"
    body = ast.parse(source.read_text()).body
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in body)


def test_ports_are_those_of_the_server(config: dict[str, Any]) -> None:
    defaults = Settings.model_fields
    assert config["http_options"]["port"] == defaults["http_port"].default
    assert config["grpc_options"]["port"] == defaults["grpc_port"].default


def test_what_ray_imports_exists(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    assert defines(application["import_path"], ":")
    (services,) = config["grpc_options"]["grpc_servicer_functions"]
    assert defines(services, ".")


def test_the_settings_are_taken(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    settings = read_settings(application["args"])
    assert settings.keys_file is not None
    assert settings.metrics_port == 9100


def test_the_local_cluster_has_the_file_with_changes() -> None:
    cluster = RayCluster()
    local = cluster.config({"threads": 1}, {"num_replicas": 3})
    assert local["http_options"] == {"host": "127.0.0.1", "port": cluster.http_port}
    assert local["grpc_options"]["port"] == cluster.grpc_port != cluster.http_port
    (application,) = local["applications"]
    settings = read_settings(application["args"])
    assert (settings.host, settings.keys_file, settings.threads) == ("127.0.0.1", None, 1)
    (planner,) = application["deployments"]
    assert planner["num_replicas"] == 3
    assert "num_gpus" not in planner["ray_actor_options"]
    assert "autoscaling_config" not in planner
