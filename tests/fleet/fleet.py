"""Two servers with keys and mutual TLS that share a Redis, behind nginx and Envoy."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from loadtests.clients import Access, GrpcClient, RestClient
from loadtests.spec import Address
from tests.fleet.proxies import SERVER_NAME, Envoy, Nginx, write_certificates
from tests.lewm_serve.support.certificates import HOST, Authority, CertificateFiles
from tests.lewm_serve.support.keys import add_key
from tests.lewm_serve.support.ports import free_port
from tests.lewm_serve.support.random_model import MODEL_NAME, write_random_model
from tests.lewm_serve.support.redis_process import RedisProcess
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import wait_until


class FleetServer:
    """One server of the fleet. It keeps its ports when it is started again."""

    def __init__(self, folder: Path, flags: tuple[str, ...]) -> None:
        folder.mkdir()
        self._folder = folder
        self.http_port, self.grpc_port = free_port(), free_port()
        ports = ("--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port))
        self._flags = (*flags, *ports)
        self._starts = 0
        self.start()

    def start(self) -> None:
        """Start it. It is not ready yet."""
        self._starts += 1
        self.process = ServerProcess(self._folder / f"log-{self._starts}", *self._flags)

    def restart(self) -> None:
        """Ask it to stop, wait until it has ended, and start it again until it is ready."""
        assert self.process.stop() == 0, self.process.errors()
        self.start()
        self.process.wait_ready()

    def kill(self) -> None:
        """End it at once."""
        self.process.process.kill()
        self.process.wait_stopped()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()


class Fleet:
    """The fleet. Everything is ready inside of the block.

    Args:
        folder: for all files.
        drain_lag_s: the servers' drain lag.

    Attributes:
        access: what robots need to come in through the proxies.
        direct_access: what clients need that reach a server itself.
    """

    def __init__(self, folder: Path, *, drain_lag_s: float) -> None:
        self._folder = folder
        authority = Authority()
        write_certificates(folder, authority)
        files = CertificateFiles.in_folder(folder)
        files.write(authority.issue(SERVER_NAME))
        files.client_ca.write_bytes(authority.certificate)
        ca, certificate, key = (str(folder / name) for name in ("ca.pem", "proxy.pem", "proxy.key"))
        api_key = add_key(folder / "keys", "robots", "infer")
        self.access = Access(api_key, ca)
        self.direct_access = Access(api_key, ca, certificate, key)
        self._flags = (
            *("--models", str(write_random_model(folder / MODEL_NAME))),
            *files.flags,
            *("--tls-client-ca", str(files.client_ca)),
            *("--keys-file", str(folder / "keys")),
            *("--drain-lag-s", str(drain_lag_s)),
        )

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self.redis = opened.enter_context(RedisProcess())
            redis = ("--redis-url", self.redis.url, "--redis-timeout-ms", "1000")
            self.servers = [
                opened.enter_context(FleetServer(self._folder / name, (*self._flags, *redis)))
                for name in ("one", "two")
            ]
            http_ports = [server.http_port for server in self.servers]
            grpc_ports = [server.grpc_port for server in self.servers]
            self.nginx = opened.enter_context(Nginx(self._folder, http_ports))
            self.envoy = opened.enter_context(Envoy(self._folder, grpc_ports))
            for server in self.servers:
                server.process.wait_ready()
            with closing(self.grpc()) as client:
                wait_until(lambda: client.encode(b"") == "invalid_image", "Envoy finds a server")
            self._opened = opened.pop_all()
        return self

    def rest(self) -> RestClient:
        """A new connection to nginx."""
        return RestClient(Address(HOST, self.nginx.port), self.access)

    def grpc(self) -> GrpcClient:
        """A new connection to Envoy."""
        return GrpcClient(Address(HOST, self.envoy.port), self.access)

    def __exit__(self, *_: object) -> None:
        self._opened.close()
