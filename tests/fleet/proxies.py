"""Real nginx and real Envoy with the configurations in `deploy/`, on free ports of this machine."""

import os
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import pytest

from tests.lewm_serve.support.certificates import Authority
from tests.lewm_serve.support.ports import free_port
from tests.patience import wait_until

ROOT = Path(__file__).parents[2]
NGINX_CONFIGURATION = ROOT / "deploy" / "nginx" / "nginx.conf"
ENVOY_CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"

SERVER_NAME = "planner.internal"
"""The name in the certificates of the servers that both configurations ask for."""

TLS_FOLDER = "/etc/lewm/tls"
SERVER_ADDRESSES = ("192.0.2.11", "192.0.2.12")


def write_certificates(folder: Path, authority: Authority) -> None:
    """The files that both configurations expect in the folder `TLS_FOLDER`."""
    (folder / "ca.pem").write_bytes(authority.certificate)
    for name in ("public", "proxy"):
        identity = authority.issue()
        (folder / f"{name}.pem").write_bytes(identity.certificate)
        (folder / f"{name}.key").write_bytes(identity.key)


class Proxy(ABC):
    """A proxy that listens on a free port of this machine inside of the block.

    Args:
        folder: for its files, the certificates of `write_certificates` among them.
        server_ports: the ports of the two servers.
    """

    program: ClassVar[str]
    configuration: ClassVar[Path]
    check_flags: ClassVar[tuple[str, ...]]
    """Flags with which the program checks the configuration and ends."""

    def __init__(self, folder: Path, server_ports: Sequence[int]) -> None:
        self.port = free_port()
        self.folder = folder / self.program
        self.folder.mkdir()
        self.file = self.folder / self.configuration.name
        text = self.configuration.read_text()
        replacements = {TLS_FOLDER: str(folder)} | self.replacements(server_ports)
        for old, new in replacements.items():
            assert old in text, f"{old} is not in {self.configuration}"
            text = text.replace(old, new)
        self.file.write_text(text)
        self.log = self.folder / "log"

    @abstractmethod
    def replacements(self, server_ports: Sequence[int]) -> dict[str, str]:
        """What has to be different in the configuration on this machine."""

    @abstractmethod
    def command(self) -> list[str]:
        """The program with its flags."""

    def check(self) -> str:
        """Let the program check the configuration, and return what it says."""
        command = [*self.command(), *self.check_flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        wait_until(self._listens, f"{self.program} listens")
        return self

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


class Nginx(Proxy):
    """nginx before the REST ports."""

    configuration = NGINX_CONFIGURATION
    program = "nginx"
    check_flags = ("-t",)

    @property
    def access_log(self) -> Path:
        """A line of JSON for each request."""
        return self.folder / "access.log"

    def replacements(self, server_ports: Sequence[int]) -> dict[str, str]:
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        addresses = zip(SERVER_ADDRESSES, server_ports, strict=True)
        return {
            "user www-data;": "user root;" if os.geteuid() == 0 else "",
            "/run/nginx.pid": f"{self.folder}/nginx.pid",
            "/var/log/nginx": str(self.folder),
            "server_tokens off;": f"server_tokens off; {temporary}",
            "listen 443": f"listen 127.0.0.1:{self.port}",
        } | {f"{address}:8000": f"127.0.0.1:{port}" for address, port in addresses}

    def command(self) -> list[str]:
        path = shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin")
        if path is None:
            pytest.fail("nginx is missing: `make setup`, as root on Debian, installs it")
        return [path, "-c", str(self.file), "-g", "daemon off;"]


class Envoy(Proxy):
    """Envoy before the gRPC ports."""

    configuration = ENVOY_CONFIGURATION
    program = "envoy"
    check_flags = ("--mode", "validate")

    @property
    def target(self) -> str:
        """Its address for gRPC clients."""
        return f"127.0.0.1:{self.port}"

    def replacements(self, server_ports: Sequence[int]) -> dict[str, str]:
        def address(host: str, port: int) -> str:
            return f"address: {host}, port_value: {port}"

        addresses = zip(SERVER_ADDRESSES, server_ports, strict=True)
        return {
            address("0.0.0.0", 50051): address("127.0.0.1", self.port),
            address("127.0.0.1", 9901): address("127.0.0.1", 0),
        } | {address(host, 50051): address("127.0.0.1", port) for host, port in addresses}

    def command(self) -> list[str]:
        path = Path(sys.executable).with_name("envoy")
        options = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
        return [str(path), "--config-path", str(self.file), *options]
