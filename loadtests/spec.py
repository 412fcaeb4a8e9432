"""What a load consists of, and the limits that no load exceeds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from lewm_serve.cli.options import check_tls_options

MAX_SECONDS = 4 * 3600.0
MAX_REQUESTS = 1_000_000
MAX_USERS = 500
MAX_ARRIVALS_PER_S = 1000.0
MIN_ROBOT_HZ, MAX_ROBOT_HZ = 0.1, 100.0
"""The server closes a connection that is idle for longer than a minute."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


def parse_address(option: str, text: str) -> Address:
    """``HOST:PORT`` as an address. An IPv6 address has brackets.

    Raises:
        ValueError: it is something else.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:  # such as a port above 65,535
        host, port = None, None
    if not host or not port or parts.netloc != text or "@" in text:
        raise ValueError(f"{option}: expected HOST:PORT, got {text!r}")
    return Address(host, port)


@dataclass(frozen=True)
class LoadSpec:
    """A load on one server. It ends after ``seconds`` or ``requests``, whichever comes first.

    Robots and clients use the protocols whose addresses are given, in turn. Slow readers need
    REST.

    Attributes:
        http: ``HOST:PORT`` of REST, None: no load over REST.
        grpc: ``HOST:PORT`` of gRPC, None: no load over gRPC.
        seconds: the longest time of the load.
        requests: the most requests.
        robots: clients in a closed loop, each of which walks and asks for plans.
        robot_hz: the most requests of a robot per second.
        arrivals_per_s: plans of an open loop per second: they arrive at random, whether or not
            earlier ones are answered.
        bad_clients: clients that send requests which the server must refuse.
        slow_readers: clients that take seconds to read a large answer.
        leaving_clients: clients that go away before their plan is there.
        deadline_ms: the deadline of the robots' and arrivals' plans.
        seed: of the walks and the arrivals.
        api_key_file: a file with the API key of all clients; None: no key.
        tls_ca: a PEM file with the authorities that sign the server's certificate; None: no TLS.
        tls_cert, tls_key: PEM files with a certificate of the clients and its private key.

    Raises:
        ValueError: a value is outside its limits. The message names the command's option.
    """

    http: str | None = None
    grpc: str | None = None
    seconds: float = 30.0
    requests: int = MAX_REQUESTS
    robots: int = 8
    robot_hz: float = 5.0
    arrivals_per_s: float = 5.0
    bad_clients: int = 2
    slow_readers: int = 1
    leaving_clients: int = 2
    deadline_ms: float = 1000.0
    seed: int = 0
    api_key_file: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        limits = {
            "seconds": (1.0, MAX_SECONDS),
            "requests": (1, MAX_REQUESTS),
            "robots": (0, MAX_USERS),
            "robot_hz": (MIN_ROBOT_HZ, MAX_ROBOT_HZ),
            "arrivals_per_s": (0, MAX_ARRIVALS_PER_S),
            "bad_clients": (0, MAX_USERS),
            "slow_readers": (0, MAX_USERS),
            "leaving_clients": (0, MAX_USERS),
            "deadline_ms": (1.0, 3_600_000.0),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option}: expected {low:g} to {high:g}, got {value}")
        if self.http is not None:
            parse_address("--http", self.http)
        if self.grpc is not None:
            parse_address("--grpc", self.grpc)
        check_tls_options(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
        if not self.protocols:
            raise ValueError("expected --http, --grpc or both")
        if self.slow_readers and self.http is None:
            raise ValueError("--slow-readers: expected --http too, because they read over REST")
        users = self.robots + self.bad_clients + self.slow_readers + self.leaving_clients
        if users > MAX_USERS:
            raise ValueError(f"expected at most {MAX_USERS} robots and clients, got {users}")
        if not users and not self.arrivals_per_s:
            raise ValueError("--robots: expected some robots, arrivals or clients, got none")

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols whose addresses are given."""
        addresses = {"rest": self.http, "grpc": self.grpc}
        return tuple(name for name, address in addresses.items() if address is not None)

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LoadSpec:
        """What `to_json` wrote."""
        return cls(**json.loads(text))
