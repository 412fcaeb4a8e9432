"""Each of the examples runs as it stands, but for the ports of the server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lewm_serve.support.server_process import ServerProcess
from tests.packaging.environments import ROOT, Environment
from tests.patience import PATIENCE_S

EXAMPLES = ROOT / "examples"


def run(*command: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name: str, *options: str) -> str:
    """What an example prints that runs in the server's environment."""
    return run(sys.executable, str(EXAMPLES / name), *options)


def test_every_example_is_described_and_tested() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    readme = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    for name in files:
        assert f"[{name}]({name})" in readme
        assert f'"{name}"' in tests


def test_a_robot(embedded: ServerProcess) -> None:
    lines = example("robot.py", "--server", embedded.target).splitlines()
    assert lines[-1] == "reached the goal"
    assert all(re.fullmatch(r"plan: [\d.]+ pixels to go", line) for line in lines[:-1])


def test_robots_in_asyncio(embedded: ServerProcess) -> None:
    printed = example("robot_asyncio.py", "--server", embedded.target)
    assert printed.splitlines()[-1] == "3 of 3 robots reached their goals"


def test_an_evaluation(embedded: ServerProcess) -> None:
    printed = example("evaluate.py", "--server", embedded.target, "--episodes", "4")
    assert "success: 4 of 4" in printed
    assert re.search(r"steps to the goal: [\d.]+ \(median\)", printed)
    assert re.search(r"plan: [\d.]+ ms \(median of \d+\)", printed)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(embedded: ServerProcess) -> None:
    printed = run("sh", str(EXAMPLES / "plan.sh"), embedded.url)
    assert '"status":"completed"' in printed
    assert '"seed":7' in printed


def test_openpi(clients: Environment, embedded: ServerProcess) -> None:
    options = ["-I", str(EXAMPLES / "openpi_robot.py"), "--port", str(embedded.http_port)]
    lines = clients.run("python", options, cwd=ROOT).splitlines()
    assert lines[0].endswith(": two-room plans 25 actions")
    assert len([line for line in lines if line.startswith("step ")]) == 10
    assert all(line.endswith("(completed)") for line in lines[1:-1])


def test_triton(clients: Environment, embedded: ServerProcess) -> None:
    address = embedded.url.removeprefix("http://")
    options = ["-I", str(EXAMPLES / "triton_client.py"), "--http", address, "--grpc"]
    printed = clients.run("python", [*options, embedded.target], cwd=ROOT)
    assert "actions of both plans: (2, 25, 2)" in printed
    assert "status: completed completed" in printed
    assert "the same plan over gRPC: True" in printed
    assert "latents: (1, 1, 128)" in printed
