"""The settings of a replica: those of `lewm serve`, without what Ray does itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lewm_serve.settings import Settings, SettingsError, load_settings

SETTINGS_OF_RAY = (
    "console",
    "drain_lag_s",
    "engine",
    "engine_timeout_s",
    "grace_s",
    "grpc_port",
    "http_port",
    "root_path",
    "tls_cert",
    "tls_client_ca",
    "tls_key",
)
"""Settings of what Ray does itself, or of what does not work behind its proxies."""

NOT_PROTECTED = (
    "keys_file: received nothing, and other machines may reach Ray's proxies. Expected a file of "
    "`lewm keys add`, or insecure: true if everything that reaches them may use the planner"
)


def read_settings(args: Mapping[str, Any]) -> Settings:
    """The settings of a replica.

    Raises:
        SettingsError: a setting is unknown, unusable, or Ray's.
    """
    for name, value in args.items():
        if name not in Settings.model_fields:
            raise SettingsError(f"{name}: received {value!r}, expected the name of a setting")
        if name in SETTINGS_OF_RAY:
            raise SettingsError(f"{name}: received {value!r}, expected no value, see docs/ray.md")
    settings = load_settings(**args)
    if "," in settings.device:
        raise SettingsError(f"device: received {settings.device!r}, expected one device")
    if settings.keys_file is None and not settings.insecure:
        raise SettingsError(NOT_PROTECTED)
    return settings
