"""Every setting of the server. Environment variables `LEWM_…` set them; flags override these."""

import os
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lewm_serve.constants import MAX_FRAMES_PER_REQUEST
from lewm_serve.errors import shorten

Port = Annotated[int, Field(ge=0, le=65535)]
RequestLimit = Annotated[int, Field(ge=1, le=1_000_000)]
ENV_PREFIX = "LEWM_"
REDIS_URL_OPTIONS = ("host", "port", "path", "db", "username", "password", "connection_class")


KUBERNETES_VARIABLE = re.compile(
    ENV_PREFIX + r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""The variables of a Kubernetes service named lewm or lewm-…, except its LEWM_…_PORT, which is
recognised by its value."""
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
KUBERNETES_VALUE = re.compile("(tcp|udp|sctp)://")

KUBERNETES_HINT = (
    "Kubernetes sets this variable for a service named {service}: set enableServiceLinks to false "
    "in the pod's spec, or rename the service"
)


class SettingsError(ValueError):
    """A setting has an unusable value. The message names the setting."""


def _split_paths(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part for part in value.split(":") if part)
    return value


def _split_commas(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _check_proxy(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError:
        raise ValueError("expected addresses or networks such as 10.0.0.0/8") from None
    return text


def _check_root_path(path: str) -> str:
    if path and not ROOT_PATH.fullmatch(path):
        raise ValueError("expected a path such as /fleet/planner, without a / at its end")
    return path


def _check_redis_url(url: str) -> None:
    """Refuse a URL that redis-py would misread. Messages must not repeat the URL's password."""
    from redis.asyncio.connection import parse_url  # a slow import that most servers do not need

    try:
        options = parse_url(url)
    except ValueError:
        raise ValueError(
            "expected redis://, rediss:// or unix://, special characters as %XX"
        ) from None
    unknown = [name for name in options if name not in REDIS_URL_OPTIONS and name[:4] != "ssl_"]
    if unknown:
        raise ValueError("expected no options in the URL except db and ssl_…")


def _check_otlp_endpoint(url: str) -> None:
    """Refuse what is no address of HTTP, and passwords, which would be in the list of processes."""
    expected = "expected http:// or https://, a host and a port, such as http://127.0.0.1:4318"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ValueError(expected)
    if "@" in parts.netloc:
        raise ValueError(f"{expected}; put a password into OTEL_EXPORTER_OTLP_HEADERS")


class Settings(BaseSettings):
    """The server's settings. All numbers have bounds, so that a typing error ends the start."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    http_port: Annotated[Port, Field(description="port of REST; 0 takes a free one")] = 8000
    grpc_port: Annotated[Port, Field(description="port of gRPC; 0 takes a free one")] = 50051

    tls_cert: Annotated[
        Path | None,
        Field(description="PEM file of the server's certificate, for both ports; unset: no TLS"),
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="PEM file of the certificate's private key")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(
            description="PEM file of the certificates that sign those of clients; unset: clients "
            "need no certificate"
        ),
    ] = None
    keys_file: Annotated[
        Path | None,
        Field(
            description="file of `lewm keys add`: clients need one of its keys; unset: no client "
            "needs a key"
        ),
    ] = None

    metrics_port: Annotated[
        Port | None,
        Field(
            description="port of /metrics, /healthz and /readyz alone, without certificates of "
            "clients; 0 takes a free one; unset: they are at the port of REST"
        ),
    ] = None
    root_path: Annotated[
        str,
        AfterValidator(_check_root_path),
        Field(description="path prefix that a proxy leaves before the paths of REST"),
    ] = ""
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_split_commas),
        Field(
            description="origins of web pages that may call REST, joined by ',', such as "
            "https://console.example.org; *: all; unset: none"
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_check_proxy)], ...],
        NoDecode,
        BeforeValidator(_split_commas),
        Field(
            description="addresses or networks, joined by ',', whose X-Forwarded-For and "
            "X-Forwarded-Proto are believed; unset: none"
        ),
    ] = ()
    insecure: Annotated[
        bool,
        Field(
            description="1: serve other machines although clients need neither a key nor a "
            "certificate"
        ),
    ] = False

    console: Annotated[
        bool,
        Field(description="1: the page /console, where people watch, replay and drive"),
    ] = False

    models: Annotated[
        tuple[Path, ...],
        NoDecode,
        BeforeValidator(_split_paths),
        Field(description="model folders or embedded models, joined by ':'; unset: two-room"),
    ] = ()
    default_model: Annotated[
        str | None,
        Field(description="model of requests that name none; unset: the only model there is"),
    ] = None
    keep_old_s: Annotated[
        float,
        Field(
            ge=0,
            le=604_800,
            description="how long a replaced or removed model still answers requests that name its "
            "version, seconds; its memory is released afterwards",
        ),
    ] = 60.0
    engine: Annotated[
        Literal["process", "thread"],
        Field(
            description="process: the engine has a process of its own, which is started again if "
            "it dies; thread: it is a thread of the server"
        ),
    ] = "process" if sys.platform == "linux" else "thread"
    engine_timeout_s: Annotated[
        float,
        Field(
            ge=0.5,
            le=3600,
            description="an engine that gives no sign of life for so long is killed, seconds",
        ),
    ] = 30.0
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|(cpu|cuda(:\d{1,2})?)(,(cpu|cuda(:\d{1,2})?))*)$",
            description="auto, cpu, cuda or cuda:N; several, joined by commas: an engine for each",
        ),
    ] = "auto"
    backend: Annotated[
        Literal["auto", "torch", "onnx", "native"],
        Field(description="what runs the model; auto: the fastest on this machine"),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(
            description="number format of the model; auto: bfloat16 where it is faster and ranks "
            "candidates like float32"
        ),
    ] = "auto"
    search: Annotated[
        Literal["auto", "host", "device"],
        Field(
            description="where candidates are drawn and compared: on the host, or on the device of "
            "the model; auto: on a GPU. Only PyTorch runs searches on its device"
        ),
    ] = "auto"
    threads: Annotated[
        int | None,
        Field(
            ge=1,
            le=1024,
            description="CPU threads of the model; unset: as many as are fastest",
        ),
    ] = None
    native_compile: Annotated[
        bool,
        Field(
            description="compile the native backend at the start if the package has no compiled "
            "library of it"
        ),
    ] = False

    redis_url: Annotated[
        SecretStr | None,
        Field(description="Redis behind the in-process caches of several servers; unset: none"),
    ] = None
    redis_timeout_ms: Annotated[
        float,
        Field(gt=0, le=10_000, description="longest wait of a request for Redis, milliseconds"),
    ] = 50.0
    cache_ttl_s: Annotated[
        float,
        Field(
            gt=0, le=604_800, description="time after which an unused latent is dropped, seconds"
        ),
    ] = 600.0
    cache_entries: Annotated[
        int, Field(ge=1, le=10_000_000, description="most latents in the in-process cache")
    ] = 65_536

    max_queue: Annotated[
        int,
        Field(ge=1, le=100_000, description="most requests in progress at once"),
    ] = 1024
    default_deadline_ms: Annotated[
        float,
        Field(
            gt=0,
            le=3_600_000,
            description="a request without a deadline that has waited this long gets a tenth of "
            "the time even if requests with deadlines wait, milliseconds",
        ),
    ] = 10_000.0
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, le=1 << 30, description="largest HTTP body and gRPC message, bytes"),
    ] = 32 * 1024 * 1024
    max_held_bytes: Annotated[
        int,
        Field(
            ge=1024,
            le=1 << 40,
            description="most bytes of all requests in progress and of large answers that "
            "are being read, together",
        ),
    ] = 256 * 1024 * 1024
    max_connections: Annotated[
        int,
        Field(
            ge=1, le=1_000_000, description="most HTTP connections at once, and as many for gRPC"
        ),
    ] = 800
    receive_s: Annotated[
        float,
        Field(
            ge=0.1,
            le=3600,
            description="longest time for an HTTP head, then for its body, for a gRPC message, and "
            "for a client to take an answer, seconds",
        ),
    ] = 60.0
    max_pixels: Annotated[
        int, Field(ge=1, le=1 << 28, description="largest frame, height × width")
    ] = 4 * 1024 * 1024
    max_samples: Annotated[RequestLimit, Field(description="most candidates per iteration")] = 4096
    max_iterations: Annotated[RequestLimit, Field(description="most solver iterations")] = 200
    max_horizon: Annotated[RequestLimit, Field(description="longest horizon, action blocks")] = 50
    max_candidates: Annotated[
        RequestLimit, Field(description="most candidates of a predict request")
    ] = 4096
    max_candidate_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=1 << 40,
            description="most candidates × iterations × horizon of one request; unset: what this "
            "machine does in about 10 seconds",
        ),
    ] = None
    max_frames: Annotated[
        int, Field(ge=1, le=MAX_FRAMES_PER_REQUEST, description="most frames of one encode request")
    ] = 256
    drain_lag_s: Annotated[
        float,
        Field(
            ge=0,
            le=3600,
            description="time in which a server that was asked to stop says that it is not ready, "
            "and still takes requests; the grace period follows; seconds",
        ),
    ] = 0.0
    grace_s: Annotated[
        float,
        Field(ge=0, le=3600, description="time to finish requests when asked to stop, seconds"),
    ] = 10.0

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="lowest level that is logged"),
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], Field(description="format of the log lines")
    ] = "console"
    otlp_endpoint: Annotated[
        str | None,
        Field(
            description="receiver of traces by OTLP over HTTP, such as http://127.0.0.1:4318; "
            "unset: no traces"
        ),
    ] = None

    @field_validator("engine")
    @classmethod
    def _is_possible_here(cls, engine: str) -> str:
        if engine == "process" and sys.platform != "linux":
            raise ValueError(f"expected thread on {sys.platform}: process needs Linux")
        return engine

    @field_validator("device")
    @classmethod
    def _are_devices_of_one_kind(cls, device: str, info: ValidationInfo) -> str:
        devices = device.split(",")
        if len({name.partition(":")[0] for name in devices}) > 1:
            raise ValueError("expected devices of one kind, on which a plan is the same")
        if len(devices) > 1 and info.data.get("engine") == "thread":
            raise ValueError("expected one device, since LEWM_ENGINE is thread")
        return device

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            _check_redis_url(url.get_secret_value())
        return url

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_otlp_endpoint(cls, url: str | None) -> str | None:
        if url is not None:
            _check_otlp_endpoint(url)
        return url


def load_settings(**flags: Any) -> Settings:
    """Settings from flags and the environment. Flags win.

    Raises:
        SettingsError: a setting has an unusable value.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe, error.errors()))) from None


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Variables with the prefix that are no settings, each with a setting of a similar name.

    Variables of Kubernetes' services are left out: see `kubernetes_variables`.
    """
    services = kubernetes_variables(environment)
    unknown = {}
    for name in sorted(_no_settings(environment) - set(services)):
        similar = get_close_matches(_setting_name(name), Settings.model_fields, n=1)
        unknown[name] = ENV_PREFIX + similar[0].upper() if similar else None
    return unknown


def kubernetes_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that Kubernetes makes of services whose names begin like the settings."""
    return sorted(
        name
        for name in _no_settings(environment)
        if KUBERNETES_VARIABLE.fullmatch(name)
        or (name.endswith("_PORT") and KUBERNETES_VALUE.match(environment[name]))
    )


def _no_settings(environment: Mapping[str, str]) -> set[str]:
    return {
        name
        for name in environment
        if name.upper().startswith(ENV_PREFIX) and _setting_name(name) not in Settings.model_fields
    }


def _setting_name(variable: str) -> str:
    return variable[len(ENV_PREFIX) :].lower()


def _describe(line: ErrorDetails) -> str:
    name = str(line["loc"][0]) if line["loc"] else "settings"
    flag = name.replace("_", "-")
    message = line["msg"].removeprefix("Value error, ")
    # A URL may hold a password.
    value = "set" if name in ("redis_url", "otlp_endpoint") else shorten(line["input"])
    if name.endswith("_port") and KUBERNETES_VALUE.match(str(line["input"])):
        service = f"lewm-{name.removesuffix('_port').replace('_', '-')}"
        message = KUBERNETES_HINT.format(service=service)
    return f"LEWM_{name.upper()} (--{flag}) is {value}: {message}"
