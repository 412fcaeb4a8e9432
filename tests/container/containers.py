"""A server in a container, as `tests.lewm_serve.support.server_process` is one in a process."""

import json
import subprocess
from typing import Any, Self

import httpx

from tests.container.images import run
from tests.patience import PATIENCE_S, wait_until

USER = "54321:54321"
"""A user that the image does not know."""
ULIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
CONFINED = (
    "--read-only",
    "--read-only-tmpfs=false",  # not even /tmp can be written
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
)
RUN = ("podman", "--runtime", "runc", "run", *ULIMITS, *CONFINED, "--env=LEWM_INSECURE=1")


class ServerContainer:
    """The image's server on free ports of 127.0.0.1. Nothing in the container can be written.

    Args:
        image: its name.
        options: options of `podman run`.
        command: arguments of `lewm`; none: those of the image.
    """

    def __init__(self, image: str, *options: str, command: tuple[str, ...] = ()) -> None:
        ports = ("--publish=127.0.0.1::8000", "--publish=127.0.0.1::50051")
        identity = run(*RUN, "--detach", f"--user={USER}", *ports, *options, image, *command)
        self.name = identity.strip()
        http, grpc = (run("podman", "port", self.name, port).strip() for port in ("8000", "50051"))
        self.url, self.target = f"http://{http}", grpc

    def wait_ready(self) -> Self:
        """Wait until it plans."""
        wait_until(lambda: self.events("ready") or not self.is_running())
        assert self.events("ready"), self.log()
        return self

    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._state()["Running"] is True

    def exit_code(self) -> int:
        """The exit code of its process, which has ended."""
        assert not self.is_running()
        code: int = self._state()["ExitCode"]
        return code

    def _state(self) -> dict[str, Any]:
        (container,) = json.loads(run("podman", "inspect", self.name))
        state: dict[str, Any] = container["State"]
        return state

    def log(self) -> str:
        """What it has written to standard error."""
        done = subprocess.run(
            ["podman", "logs", self.name], capture_output=True, text=True, check=True
        )
        return done.stderr

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of an event."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def get(self, path: str) -> httpx.Response:
        """The answer to a GET request."""
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        run("podman", "rm", "--force", "--time", "1", self.name)
