"""Every setting of the server, read from `LEWM_…` environment variables; flags override them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import shorten
from service.requests import MAX_FRAMES

Port = Annotated[int, Field(ge=0, le=65535)]
Cap = Annotated[int, Field(ge=1, le=1_000_000)]


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it."""


def _split_paths(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part for part in value.split(":") if part)
    return value


class Settings(BaseSettings):
    """The server's settings. Numbers are bounded, so that a slip is refused at the start."""

    model_config = SettingsConfigDict(
        env_prefix="LEWM_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    http_port: Annotated[Port, Field(description="port of REST; 0 takes a free one")] = 8000
    grpc_port: Annotated[Port, Field(description="port of gRPC; 0 takes a free one")] = 50051

    models: Annotated[
        tuple[Path, ...],
        NoDecode,
        BeforeValidator(_split_paths),
        Field(description="model folders or folders of such, joined by ':'; unset: the embedded"),
    ] = ()
    default_model: Annotated[
        str | None,
        Field(description="model of requests that name none; a sole model is it"),
    ] = None
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$",
            description="auto, cpu, cuda or cuda:N",
        ),
    ] = "auto"
    backend: Annotated[
        Literal["auto", "torch", "onnx"], Field(description="what runs the model")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="number format of the model"),
    ] = "auto"
    threads: Annotated[
        int | None,
        Field(
            ge=1,
            le=1024,
            description="CPU threads of the model; unset: one or all cores, whichever is faster",
        ),
    ] = None

    redis_url: Annotated[
        str | None, Field(description="Redis behind the in-process cache; unset: none")
    ] = None
    redis_timeout_ms: Annotated[
        float,
        Field(gt=0, le=10_000, description="longest wait for Redis, milliseconds"),
    ] = 50.0
    cache_ttl_s: Annotated[
        float, Field(gt=0, le=604_800, description="how long a latent is kept, seconds")
    ] = 600.0
    cache_entries: Annotated[
        int, Field(ge=1, le=10_000_000, description="latents kept in the process")
    ] = 65_536

    max_queue: Annotated[
        int,
        Field(ge=1, le=100_000, description="requests inside at once, from decoding to the answer"),
    ] = 1024
    default_deadline_ms: Annotated[
        float,
        Field(
            gt=0,
            le=3_600_000,
            description="a plan without a deadline, or with a later one, is put in order as if it "
            "had this one, milliseconds; it is never cut short by it",
        ),
    ] = 10_000.0
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, le=1 << 30, description="largest body and gRPC message, bytes"),
    ] = 32 * 1024 * 1024
    max_held_bytes: Annotated[
        int,
        Field(ge=1024, le=1 << 40, description="bytes of all requests being served at once"),
    ] = 256 * 1024 * 1024
    max_connections: Annotated[
        int, Field(ge=1, le=1_000_000, description="most HTTP connections at once")
    ] = 800
    receive_s: Annotated[
        float,
        Field(ge=0.1, le=3600, description="longest an HTTP head, then a body, may take, seconds"),
    ] = 60.0
    max_pixels: Annotated[
        int, Field(ge=1, le=1 << 28, description="largest frame, height times width")
    ] = 4 * 1024 * 1024
    max_samples: Annotated[Cap, Field(description="most candidates an iteration")] = 4096
    max_iterations: Annotated[Cap, Field(description="most solver iterations")] = 200
    max_horizon: Annotated[Cap, Field(description="most action blocks to look ahead")] = 50
    max_candidates: Annotated[Cap, Field(description="most candidates of one predict")] = 4096
    max_frames: Annotated[
        int, Field(ge=1, le=MAX_FRAMES, description="most frames of one encode")
    ] = 256
    grace_s: Annotated[
        float,
        Field(ge=0, le=3600, description="time to finish when asked to stop, seconds"),
    ] = 10.0

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="least level logged"),
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], Field(description="how log lines are written")
    ] = "console"

    @field_validator("redis_url", "backend", "precision")
    @classmethod
    def _not_there_yet(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value in ("onnx", "bfloat16") or (value and info.field_name == "redis_url"):
            raise ValueError("not supported by this version")
        return value

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")


def load_settings(**flags: Any) -> Settings:
    """Settings from flags and environment, flags first; `SettingsError` names what is wrong."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe, error.errors()))) from None


def _describe(line: ErrorDetails) -> str:
    name = str(line["loc"][0]) if line["loc"] else "settings"
    flag = name.replace("_", "-")
    message = line["msg"].removeprefix("Value error, ")
    value = "set" if name == "redis_url" else shorten(line["input"])  # a URL may hold a password
    return f"LEWM_{name.upper()} (--{flag}) is {value}: {message}"
