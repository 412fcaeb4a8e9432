"""Who may have the models read again."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from lewm_serve.access.keys import Keys
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.server import Server
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import RequestMemory, RequestRecorder
from lewm_serve.transports.http.app import create_app
from tests.lewm_serve.support.keys import add_key, bearer

RELOAD = "/admin/models/reload"
HOST = "127.0.0.1:8000"


@asynccontextmanager
async def client_of(
    *, is_local: bool = True, keys: Keys | None = None, **changes: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose planner has loaded nothing.

    So a request that is let in gets `loading`.
    """
    settings, metrics = Settings(**changes), Metrics()
    app, _ = create_app(
        Planner(settings, metrics),
        settings,
        metrics=metrics,
        memory=RequestMemory(settings.max_held_bytes),
        recorder=RequestRecorder(metrics),
        keys=keys,
        is_local=lambda: is_local,
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
        yield client


async def code_of(client: httpx.AsyncClient, headers: Mapping[str, str] | None = None) -> str:
    """How the server answers, at both paths."""
    answers = [await client.post(path, headers=headers) for path in (RELOAD, f"/v1{RELOAD}")]
    code, other_code = (str(answer.json()["code"]) for answer in answers)
    assert code == other_code
    return code


async def test_without_keys_only_this_machine_may() -> None:
    async with client_of() as client:
        assert await code_of(client) == "loading"
        for header in ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP"):
            # A proxy passes it on.
            assert await code_of(client, {header: "10.0.0.7"}) == "unknown_route"
        for host in ("planner.example", "10.0.0.7:8000", "[::1", ""):  # a proxy keeps the name
            assert await code_of(client, {"Host": host}) == "unknown_route"
        for host in ("localhost", "127.0.0.2:8000", "[::1]:8000"):
            assert await code_of(client, {"Host": host}) == "loading"
    async with client_of(is_local=False) as client:
        assert await code_of(client) == "unknown_route"
        assert (await client.post(RELOAD)).status_code == 404


async def test_with_keys_the_role_admin_may(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    admin, other = add_key(file, "a", "admin"), add_key(file, "b", "infer", "read")
    for is_local in (True, False):
        async with client_of(keys=Keys(file), is_local=is_local) as client:
            assert await code_of(client) == "unauthenticated"
            assert await code_of(client, bearer(other)) == "forbidden"
            proxied = bearer(admin) | {"X-Forwarded-For": "10.0.0.7", "Origin": "https://a.example"}
            assert await code_of(client, proxied) == "loading"


@pytest.mark.parametrize(
    ("host", "origin", "code"),
    [
        (HOST, f"http://{HOST}", "loading"),  # the page /docs
        ("localhost:8000", "http://localhost:8000", "loading"),
        ("[::1]:8000", "http://[::1]:8000", "loading"),
        (HOST, "https://console.example", "loading"),  # in the settings
        (HOST, "https://evil.example", "forbidden"),
        (HOST, "null", "forbidden"),
        (HOST, "http://[::1", "forbidden"),
        (HOST, "http://127.0.0.1:9000", "forbidden"),
        ("evil.example:8000", "http://evil.example:8000", "unknown_route"),  # its name leads here
    ],
)
async def test_web_pages_of_other_sites_may_not(host: str, origin: str, code: str) -> None:
    async with client_of(cors_origins=("https://console.example",)) as client:
        assert await code_of(client, {"Host": host, "Origin": origin}) == code


async def test_all_origins_does_not_mean_administrators() -> None:
    async with client_of(cors_origins=("*",)) as client:
        assert await code_of(client, {"Origin": "https://evil.example"}) == "forbidden"


@pytest.mark.parametrize(
    ("addresses", "local"), [(["127.0.0.1", "::1"], True), (["127.0.0.1", "10.0.0.1"], False)]
)
def test_the_server_knows_who_reaches_it(addresses: list[str], local: bool) -> None:
    server: Any = SimpleNamespace(
        settings=Settings(insecure=True), monitoring=None, service=SimpleNamespace()
    )
    Server._check_reachable(server, addresses)
    assert server.service.is_local == local
