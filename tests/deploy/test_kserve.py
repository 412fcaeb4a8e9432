"""The InferenceService of KServe: what it runs, and that it agrees with the server."""

from typing import Any

import pytest
import yaml

from lewm_serve import settings
from lewm_serve.server import FLUSH_S
from lewm_serve.settings import Settings
from lewm_serve.transports.http.access import OPEN_PATHS
from tests.deploy.promtool import ROOT

FILE = ROOT / "deploy" / "kserve" / "inferenceservice.yaml"


@pytest.fixture(scope="module")
def predictor() -> dict[str, Any]:
    """The predictor."""
    service = yaml.safe_load(FILE.read_text())
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    found: dict[str, Any] = service["spec"]["predictor"]
    return found


@pytest.fixture(scope="module")
def container(predictor: dict[str, Any]) -> dict[str, Any]:
    """Its only container, which KServe knows by this name."""
    (found,) = predictor["containers"]
    assert found["name"] == "kserve-container"
    return dict(found)


def variables(container: dict[str, Any]) -> dict[str, str]:
    """The container's environment."""
    return {item["name"]: item["value"] for item in container["env"]}


def test_it_has_both_ports_of_the_server(container: dict[str, Any]) -> None:
    defaults = Settings()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http1": defaults.http_port, "grpc": defaults.grpc_port}


def test_its_variables_are_settings(container: dict[str, Any]) -> None:
    names = {f"LEWM_{name.upper()}" for name in settings.Settings.model_fields}
    assert set(variables(container)) <= names


def test_its_probes_need_no_key(container: dict[str, Any]) -> None:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        request = container[name]["httpGet"]
        assert request["path"] in OPEN_PATHS
        assert request["port"] == Settings().http_port
        assert "failureThreshold" in container[name] or name != "startupProbe"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_it_has_time_to_finish_its_plans(
    predictor: dict[str, Any], container: dict[str, Any]
) -> None:
    lag_s = float(variables(container)["LEWM_DRAIN_LAG_S"])
    assert lag_s > container["readinessProbe"]["periodSeconds"] * 3  # its default threshold
    needed_s = lag_s + Settings().grace_s + FLUSH_S
    assert predictor["terminationGracePeriodSeconds"] > needed_s


def test_it_is_confined_and_asks_for_keys(
    predictor: dict[str, Any], container: dict[str, Any]
) -> None:
    confined = container["securityContext"]
    assert confined["readOnlyRootFilesystem"] is True
    assert confined["allowPrivilegeEscalation"] is False
    assert confined["capabilities"] == {"drop": ["ALL"]}
    assert predictor["securityContext"]["runAsNonRoot"] is True
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    (mount,) = container["volumeMounts"]
    (volume,) = predictor["volumes"]
    assert mount["name"] == volume["name"]
    assert variables(container)["LEWM_KEYS_FILE"].startswith(mount["mountPath"] + "/")
