"""A local Ray in a process of its own, in an environment that has Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Self

import httpx

from lewm_client import PlannerClient
from tests.packaging.environments import ROOT, Environment, kept_environment
from tests.patience import PATIENCE_S

CONSTRAINTS = ROOT / "constraints.txt"


def ray_environment() -> Environment:
    """An environment with Ray on top of this one, for which Ray is too large."""
    (pin,) = (line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("ray=="))
    requirement = pin.replace("ray", "ray[serve]")

    def fill(environment: Environment) -> None:
        (site_packages,) = environment.folder.glob("lib/python*/site-packages")
        here = sysconfig.get_path("purelib")
        (site_packages / "development.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        environment.install(requirement, constraints=CONSTRAINTS)

    return kept_environment(requirement, fill)


class RayProcess:
    """`benchmarks.ray_cluster` with two replicas. See there for ``change``."""

    def __init__(self, environment: Environment, log: Path, **change: Any) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [environment.program("python"), "-m", "benchmarks.ray_cluster", json.dumps(change)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._ports = self._answer()

    @property
    def url(self) -> str:
        """The address of REST."""
        return f"http://127.0.0.1:{self._ports['http_port']}"

    @property
    def target(self) -> str:
        """The address of gRPC."""
        return f"127.0.0.1:{self._ports['grpc_port']}"

    def client(self, robot: str | None = None, retries: int = 3) -> PlannerClient:
        """A new client over gRPC, with a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return PlannerClient(self.target, robot=robot, retries=retries, channel_options=options)

    def rest(self, robot: str | None = None) -> httpx.Client:
        """A new client over HTTP."""
        headers = {} if robot is None else {"lewm-robot": robot}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S)

    def replicas(self) -> set[int]:
        """The processes of the replicas that run."""
        return self.deploy()

    def deploy(self, **change: Any) -> set[int]:
        """Deploy with changes, and wait. Returns the processes of the replicas."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(change) + "\n")
        self._process.stdin.flush()
        return set(self._answer()["pids"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self.__exit__()
        raise RuntimeError(f"Ray has ended:\n{self._log.read_text()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=PATIENCE_S)
