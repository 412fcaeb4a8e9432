"""The unit of deploy/systemd under a real systemd, which is the first process of a container."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.container.containers import ULIMITS
from tests.container.images import ROOT, SYSTEMD_BASE, add_packages, run
from tests.patience import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

UNIT = "lewm-serve"
SYSTEMD = ("--systemd=always", "--cap-add=sys_admin", "--security-opt=seccomp=unconfined")
"""What systemd needs to run services in sandboxes. The kernel's settings stay read-only."""


class Machine:
    """A container in which systemd runs, as on a robot's own computer.

    Args:
        environment: the folder of the virtual environment, /opt/lewm there.
        folder: an empty folder.
    """

    def __init__(self, environment: Path, folder: Path) -> None:
        add_packages(SYSTEMD_BASE, "systemd", "systemd-sysv")
        self.settings = folder / "lewm-serve.env"
        self.set("LEWM_HOST=0.0.0.0\nLEWM_INSECURE=1")
        unit = f"{UNIT}.service"
        volumes = {
            environment: "/opt/lewm",
            ROOT / "deploy" / "systemd" / unit: f"/etc/systemd/system/{unit}",
            self.settings: "/etc/lewm-serve.env",
        }
        self.name = run(
            *("podman", "--runtime", "runc", "run", "--detach", *ULIMITS, *SYSTEMD),
            *(f"--volume={source}:{target}:ro" for source, target in volumes.items()),
            *("--publish=127.0.0.1::8000", SYSTEMD_BASE, "/lib/systemd/systemd"),
        ).strip()
        self.url = f"http://{run('podman', 'port', self.name, '8000').strip()}"

    def set(self, setting: str) -> None:
        """Write the file of settings, in place: the container sees this very file."""
        self.settings.write_text(f"{setting}\n")

    def execute(self, *command: str) -> str:
        """What a command in it prints."""
        return run("podman", "exec", self.name, *command)

    def start(self) -> None:
        """Start the unit, as soon as systemd is there."""
        start = ["podman", "exec", self.name, "systemctl", "start", UNIT]
        wait_until(lambda: subprocess.run(start, capture_output=True, check=False).returncode == 0)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.execute("systemctl", "show", "--value", "--property", name, UNIT).strip()

    def is_ready(self) -> bool:
        """Whether the server plans."""
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def machine(unpacked: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine with the environment of the image. The unit is not started."""
    made = Machine(unpacked / "opt" / "lewm", tmp_path)
    try:
        yield made
    finally:
        run("podman", "rm", "--force", "--time", "1", made.name)


def test_the_server_runs_in_its_sandbox_and_comes_back(machine: Machine) -> None:
    machine.start()
    wait_until(machine.is_ready)
    status = machine.execute("cat", f"/proc/{machine.show('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    assert int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")

    machine.execute("sh", "-c", f"kill -9 {machine.show('MainPID')}")
    wait_until(lambda: machine.show("NRestarts") == "1")
    wait_until(machine.is_ready)

    machine.execute("systemctl", "stop", UNIT)
    assert (machine.show("Result"), machine.show("ExecMainStatus")) == ("success", "0")

    machine.set("LEWM_GRACE_S=soon")
    machine.start()
    wait_until(lambda: machine.show("ActiveState") == "failed")
    assert (machine.show("NRestarts"), machine.show("ExecMainStatus")) == ("0", "2")
    assert "LEWM_GRACE_S" in machine.execute("journalctl", "--unit", UNIT, "--no-pager")
