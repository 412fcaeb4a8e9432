"""Path prefixes, trusted proxies, web pages of other origins, and the port for monitoring."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lewm_serve.settings import Settings, SettingsError, load_settings
from lewm_serve.transports.http.proxies import behind_proxies
from tests.lewm_serve.support.keys import add_key, bearer
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

PREFIX = "/fleet/planner"
ORIGIN = "https://console.example.org"


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for a keys file."""
    return tmp_path_factory.mktemp("proxies") / "keys"


@pytest.fixture(scope="module")
def key(keys_file: Path) -> str:
    """A key with two roles."""
    return add_key(keys_file, "arm-1", "infer", "read")


@pytest.fixture(scope="module")
def proxied(keys_file: Path, key: str, model_folder: Path) -> Iterator[ServerProcess]:
    """A server behind a proxy, with keys and a port for monitoring."""
    flags = ["--root-path", PREFIX, "--cors-origins", ORIGIN, "--metrics-port", "0"]
    flags += ["--keys-file", str(keys_file), "--models", str(model_folder)]
    with ServerProcess(keys_file.with_name("log"), *flags).wait_ready() as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.errors()


@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_paths_with_the_prefix_and_without(prefix: str, proxied: ServerProcess, key: str) -> None:
    with httpx.Client(base_url=proxied.url, headers=bearer(key), timeout=PATIENCE_S) as client:
        assert client.get(f"{prefix}/readyz").json() == {"status": "ready"}
        assert client.post(f"{prefix}/plan", json=plan()).status_code == 200
        assert "swagger" in client.get(f"{prefix}/docs").text
        assert client.get(f"{prefix}/docs/swagger-ui.css").status_code == 200
        assert client.get(f"{prefix}/openapi.json").json()["servers"][0]["url"] == "."
        assert client.get("/fleet/plannerx/readyz").json()["code"] == "unknown_route"


def test_the_prefix_does_not_open_anything(proxied: ServerProcess) -> None:
    assert proxied.get(f"{PREFIX}/plan").json()["code"] == "unauthenticated"
    assert proxied.get(f"{PREFIX}{PREFIX}/healthz").json()["code"] == "unauthenticated"


def test_web_pages_of_the_named_origin(proxied: ServerProcess, key: str) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    allowed = httpx.options(f"{proxied.url}/plan", headers=asked, timeout=PATIENCE_S)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "Authorization" in allowed.headers["access-control-allow-headers"]
    asked["origin"] = "https://other.example.org"
    refused = httpx.options(f"{proxied.url}/plan", headers=asked, timeout=PATIENCE_S)
    assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (400, None)
    headers = bearer(key) | {"origin": ORIGIN}
    answer = httpx.post(f"{proxied.url}/plan", json=plan(), headers=headers, timeout=PATIENCE_S)
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    without_key = httpx.post(f"{proxied.url}/plan", json=plan(), headers={"origin": ORIGIN})
    assert without_key.status_code == 401
    assert without_key.headers["access-control-allow-origin"] == ORIGIN


def test_a_port_for_monitoring(proxied: ServerProcess, key: str) -> None:
    url = f"http://127.0.0.1:{proxied.ready['metrics_port']}"
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert "lewm_requests_total" in client.get("/metrics", headers=bearer(key)).text
        for path in ("/models", "/docs", "/openapi.json"):
            assert client.get(path, headers=bearer(key)).json()["code"] == "unknown_route"
    on_api_port = httpx.get(f"{proxied.url}/metrics", headers=bearer(key), timeout=PATIENCE_S)
    assert on_api_port.status_code == 404
    assert proxied.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("peer", "client", "scheme"),
    [
        ("10.1.2.3", ("203.0.113.7", 0), "https"),
        ("192.0.2.1", ("192.0.2.1", 5000), "http"),
    ],
)
async def test_only_trusted_proxies_say_who_the_client_is(
    peer: str, client: tuple[str, int], scheme: str
) -> None:
    seen = {}

    async def app(scope: dict[str, object], _receive: object, _send: object) -> None:
        seen.update(scope)

    settings = Settings(trusted_proxies=("10.0.0.0/8",))
    headers = [(b"x-forwarded-for", b"198.51.100.1, 203.0.113.7"), (b"x-forwarded-proto", b"https")]
    scope = {"type": "http", "client": (peer, 5000), "scheme": "http", "headers": headers}
    await behind_proxies(app, settings)(scope, None, None)  # type: ignore[arg-type]
    assert (seen["client"], seen["scheme"]) == (client, scheme)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("root_path", "fleet", "expected a path such as /fleet/planner"),
        ("root_path", "/fleet/", "without a / at its end"),
        ("trusted_proxies", "proxy.example.org", "expected addresses or networks"),
        ("trusted_proxies", "*", "expected addresses or networks"),
    ],
)
def test_wrong_settings(name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=f"LEWM_{name.upper()}.*{expected}"):
        load_settings(**{name: value})
