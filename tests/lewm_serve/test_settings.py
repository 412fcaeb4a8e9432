"""Settings: flags win over the environment, and all values have bounds."""

import os
from pathlib import Path

import pytest

from lewm_serve.settings import (
    SettingsError,
    kubernetes_variables,
    load_settings,
    unknown_variables,
)

KUBERNETES_VARIABLES = {
    "LEWM_GRPC_PORT_50051_TCP_ADDR": "10.0.0.1",
    "LEWM_MODELS_PORT": "tcp://10.0.0.1:80",
    "LEWM_PORT": "tcp://10.0.0.1:8000",
    "LEWM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "LEWM_PORT_8000_TCP_ADDR": "10.0.0.1",
    "LEWM_PORT_8000_TCP_PORT": "8000",
    "LEWM_PORT_8000_TCP_PROTO": "tcp",
    "LEWM_SERVICE_HOST": "10.0.0.1",
    "LEWM_SERVICE_PORT": "8000",
    "LEWM_SERVICE_PORT_HTTP": "8000",
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LEWM_")]:
        monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.host, settings.http_port, settings.grpc_port) == ("127.0.0.1", 8000, 50051)
    assert settings.max_body_bytes == 32 * 1024 * 1024
    assert settings.max_pixels == 4 * 1024 * 1024


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWM_HTTP_PORT", "9000")
    monkeypatch.setenv("LEWM_GRPC_PORT", "9001")
    settings = load_settings(http_port="9002", grpc_port=None)
    assert (settings.http_port, settings.grpc_port) == (9002, 9001)


def test_models_are_joined_by_colons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWM_MODELS", "/a:/b/c")
    assert load_settings().models == (Path("/a"), Path("/b/c"))
    assert load_settings(models="d").models == (Path("d"),)


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWM_REDIS_URL", "")
    monkeypatch.setenv("LEWM_THREADS", "")
    settings = load_settings()
    assert settings.redis_url is None
    assert settings.threads is None


def test_errors_name_the_setting() -> None:
    with pytest.raises(SettingsError, match=r"LEWM_MAX_QUEUE \(--max-queue\) is '0'"):
        load_settings(max_queue="0")
    with pytest.raises(SettingsError, match=r"LEWM_CACHE_TTL_S \(--cache-ttl-s\) is '0'"):
        load_settings(cache_ttl_s="0")


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://user:secret@cache.example.org:6380/2?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock?db=3",
    ],
)
def test_usable_redis_urls(url: str) -> None:
    settings = load_settings(redis_url=url)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "http://:secret@host",
        "secret",
        "redis://:secret/with/slashes@host",
        "redis://:secret@host?db=two",
        "redis://:secret@host?socket_timeout=9",
    ],
)
def test_bad_redis_urls_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match=r"LEWM_REDIS_URL \(--redis-url\) is set") as caught:
        load_settings(redis_url=url)
    assert "secret" not in str(caught.value)


def test_unknown_variables_are_named_with_the_closest_setting() -> None:
    names = [
        "LEWM_HTP_PORT",
        "LEWM_XYZ",
        "LEWM_PORT",
        "PATH",
        "LEWM_HOST",
        "lewm_host",
        "LEWM_max_que",
    ]
    assert unknown_variables(KUBERNETES_VARIABLES | dict.fromkeys(names, "1")) == {
        "LEWM_HTP_PORT": "LEWM_HTTP_PORT",
        "LEWM_PORT": "LEWM_HTTP_PORT",
        "LEWM_XYZ": None,
        "LEWM_max_que": "LEWM_MAX_QUEUE",
    }


def test_variables_of_kubernetes_services() -> None:
    others = dict.fromkeys(["LEWM_HTTP_PORT", "LEWM_HOST", "LEWM_REPORT", "LEWM_HTP_PORT"], "1")
    assert kubernetes_variables(others | KUBERNETES_VARIABLES) == list(KUBERNETES_VARIABLES)
    assert unknown_variables(KUBERNETES_VARIABLES) == {}


@pytest.mark.parametrize("name", ["http", "grpc"])
def test_a_port_that_kubernetes_has_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LEWM_{name.upper()}_PORT", "tcp://10.0.0.1:8000")
    problem = rf"LEWM_{name.upper()}_PORT .*'tcp://10.*enableServiceLinks.*false.*rename"
    with pytest.raises(SettingsError, match=problem) as caught:
        load_settings()
    assert f"a service named lewm-{name}" in str(caught.value)


def test_devices_of_several_engines() -> None:
    assert load_settings(device="cuda:0,cuda:1").device == "cuda:0,cuda:1"
    with pytest.raises(SettingsError, match=r"'cuda:0,cpu': expected devices of one kind"):
        load_settings(device="cuda:0,cpu")
    with pytest.raises(SettingsError, match=r"'cpu,cpu': expected one device, since"):
        load_settings(device="cpu,cpu", engine="thread")
    with pytest.raises(SettingsError, match="LEWM_DEVICE"):
        load_settings(device="cpu,")


def test_a_process_for_the_engine_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SettingsError, match=r"LEWM_ENGINE .* expected thread on darwin"):
        load_settings(engine="process")
    assert load_settings(engine="thread").engine == "thread"
