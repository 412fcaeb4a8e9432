"""How a client reaches its planner: the address, TLS, who the client is, and what it retries."""

from __future__ import annotations

import importlib
import math
import os
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import grpc

from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_client.errors import PlannerError

Pem = str | os.PathLike[str] | bytes
"""The name of a PEM file, or the bytes of one."""

PEM_START = b"-----BEGIN "

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A server that is back is found within a second; gRPC's own default is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
WITHOUT_PROXY = ("grpc.enable_http_proxy", 0)
"""gRPC would connect to this machine through the proxy of the environment, too."""

LOOPBACK_TARGET = re.compile(
    r"(dns:(///)?|ipv[46]:)?(localhost|127(\.\d{1,3}){3}|::1|\[::1\])(:\d+)?", re.IGNORECASE
)
API_KEY = re.compile(r"[\x21-\x7e]+")
ROBOT_NAME = re.compile(r"[\x20-\x7e]{1,128}")

FIRST_RETRY_PAUSE_S = 0.05
MAX_RETRY_PAUSE_S = 1.0


class Connection:
    """What the blocking and the asyncio client share.

    Args:
        target: the planner's address, `host:port`.
        retries: how often a call that is lost (see `PlannerError`) is repeated within its
            `timeout_s`.
        tls: whether to encrypt. True trusts the public certificate authorities that gRPC knows; a
            PEM file, or its bytes, trusts the authorities in it.
        certificate: the client's certificate, for a server that requires one (mutual TLS).
        key: the private key of ``certificate``.
        api_key: the key that the server knows the client by.
        allow_insecure_key: send ``api_key`` to another machine without TLS. Everybody on the way
            can read it.
        robot: the robot's name in the server's logs and traces.
        jpeg_quality: compress frames of pixels to JPEG of this quality, 1 to 100; None sends the
            pixels. Needs the extra `lewm-client[jpeg]`.
        channel_options: further options of gRPC, such as `[("grpc.enable_http_proxy", 0)]`; they
            replace those in `CHANNEL_OPTIONS`.

    Raises:
        ValueError: an argument is wrong; the message names it.
        OSError: a PEM file cannot be read.
        ImportError: ``jpeg_quality`` needs a package that is not installed.
    """

    transport: ClassVar[Any]
    """The module that makes the channels: `grpc` or `grpc.aio`."""
    channel: Any

    def __init__(
        self,
        target: str,
        *,
        retries: int = 3,
        tls: bool | Pem = False,
        certificate: Pem | None = None,
        key: Pem | None = None,
        api_key: str | None = None,
        allow_insecure_key: bool = False,
        robot: str | None = None,
        jpeg_quality: int | None = None,
        channel_options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        credentials = _credentials(tls, certificate, key)
        is_loopback = is_loopback_target(target)
        if api_key is not None and not (credentials or is_loopback or allow_insecure_key):
            raise ValueError(
                f"api_key: without TLS, everybody between this machine and {target} can read the "
                "key; set tls=True or tls='ca.pem', or insist with allow_insecure_key=True"
            )
        if jpeg_quality is not None:
            _check_jpeg(jpeg_quality)
        self.retries = retries
        self.jpeg_quality = jpeg_quality
        self.metadata = _metadata(api_key, robot)
        own_options = (*CHANNEL_OPTIONS, WITHOUT_PROXY) if is_loopback else CHANNEL_OPTIONS
        options = tuple((dict(own_options) | dict(channel_options)).items())
        if credentials is None:
            self.channel = self.transport.insecure_channel(target, options=options)
        else:
            self.channel = self.transport.secure_channel(target, credentials, options=options)
        self.stub = PlannerServiceStub(self.channel)  # type: ignore[no-untyped-call]


class Attempts:
    """What a call may still do: the time for the next attempt, and the pause before it.

    Only calls that are lost are retried: a plan that was too late once is too late again, and
    retries make an overloaded server slower. The pauses double. They are shortened at random, so
    that the robots of a fleet do not return at the same moment, but are at least as long as the
    server asks for.

    Args:
        timeout_s: seconds for all attempts and pauses together.
        retries: how many further attempts are allowed.

    Raises:
        ValueError: ``timeout_s`` is not a finite number above 0: the call might never return.
    """

    def __init__(self, timeout_s: float, retries: int) -> None:
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be a finite number above 0, got {timeout_s}")
        self._deadline = time.monotonic() + timeout_s
        self._retries_left = retries
        self._next_pause_s = FIRST_RETRY_PAUSE_S

    def time_left_s(self) -> float:
        """The timeout of the next attempt."""
        return max(0.0, self._deadline - time.monotonic())

    def pause_after_s(self, error: PlannerError) -> float:
        """How long to wait until the next attempt.

        Raises:
            PlannerError: the error, because there is no further attempt.
        """
        pause_s = max(error.retry_after_s or 0.0, self._next_pause_s * random.uniform(0.5, 1))
        out_of_time = pause_s >= self.time_left_s()
        if not error.lost or not self._retries_left or out_of_time:
            raise error
        self._retries_left -= 1
        self._next_pause_s = min(2 * self._next_pause_s, MAX_RETRY_PAUSE_S)
        return pause_s


def is_loopback_target(target: str) -> bool:
    """Whether a target of gRPC is certainly this machine."""
    is_socket_file = target.startswith(("unix:", "unix-abstract:"))
    return is_socket_file or LOOPBACK_TARGET.fullmatch(target) is not None


def _credentials(
    tls: bool | Pem, certificate: Pem | None, key: Pem | None
) -> grpc.ChannelCredentials | None:
    if tls is False:
        if certificate is not None or key is not None:
            raise ValueError("certificate and key need TLS: set tls=True or tls='ca.pem'")
        return None
    if (certificate is None) != (key is None):
        missing = "key" if key is None else "certificate"
        raise ValueError(f"{missing}: expected together with the other one of certificate and key")
    return grpc.ssl_channel_credentials(
        root_certificates=None if tls is True else _read_pem("tls", tls),
        private_key=None if key is None else _read_pem("key", key),
        certificate_chain=None if certificate is None else _read_pem("certificate", certificate),
    )


def _read_pem(name: str, source: Pem) -> bytes:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if PEM_START not in content:
        what = f"{len(content)} bytes" if isinstance(source, bytes) else f"the file {source}"
        raise ValueError(f"{name}: expected PEM (-----BEGIN …), got {what}")
    return content


def _metadata(api_key: str | None, robot: str | None) -> tuple[tuple[str, str], ...]:
    """What every call carries."""
    metadata = []
    if api_key is not None:
        if not API_KEY.fullmatch(api_key):  # the message must not show the key
            raise ValueError("api_key: expected printable ASCII without spaces")
        metadata.append(("authorization", f"Bearer {api_key}"))
    if robot is not None:
        if not ROBOT_NAME.fullmatch(robot):
            raise ValueError(
                f"robot: expected 1 to 128 printable ASCII characters, got {robot[:40]!r}"
            )
        metadata.append(("lewm-robot", robot))
    return tuple(metadata)


def _check_jpeg(quality: int) -> None:
    if not 1 <= quality <= 100:
        raise ValueError(f"jpeg_quality: expected 1 to 100, got {quality}")
    try:
        importlib.import_module("simplejpeg")
    except ImportError as error:
        raise ImportError(
            "jpeg_quality needs simplejpeg: pip install 'lewm-client[jpeg]'"
        ) from error
