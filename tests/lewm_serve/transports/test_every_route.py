"""With keys, every route and every method needs one, except probes and the gRPC health service.

Both walk what the server really has, so a new route or method that is open fails here.
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect

from lewm_serve.access.keys import Keys
from lewm_serve.access.keys_file import ROLES, Role
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import RequestMemory, RequestRecorder
from lewm_serve.transports.grpc.server import GrpcServer
from lewm_serve.transports.http.access import SESSION_COOKIE, KeyMiddleware, roles_of_path
from lewm_serve.transports.http.app import ExchangeMiddleware, create_app
from lewm_serve.transports.http.console.data import ConsoleData
from lewm_serve.transports.http.console.pages import PAGE, STATIC_FOLDER
from lewm_serve.transports.http.openpi import OpenpiRoute
from lewm_serve.transports.http.websocket import OFFER
from tests.lewm_serve.support.keys import add_key, bearer, metadata

OPEN_ROUTES = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
OPEN_METHODS = {
    *(f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")),
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}
ROLES_OF_ROUTES: dict[str, set[Role]] = {
    "/encode": {"infer"},
    "/predict": {"infer"},
    "/plan": {"infer"},
    "/models": {"infer", "read"},
    "/models/{name}": {"infer", "read"},
    "/v1/encode": {"infer"},
    "/v1/predict": {"infer"},
    "/v1/plan": {"infer"},
    "/v1/models": {"infer", "read"},
    "/v1/models/{name}": {"infer", "read"},
    "/admin/models/reload": {"admin"},
    "/v1/admin/models/reload": {"admin"},
    "/metrics": {"read"},
    "/openapi.json": {"read"},
    "/docs": {"read"},
    "/docs/swagger-ui-bundle.js": {"read"},
    "/docs/swagger-ui.css": {"read"},
    "/docs/favicon-32x32.png": {"read"},
    "/": {"infer", "read"},
    "/v2": {"infer", "read"},
    "/v2/models/{name}": {"infer", "read"},
    "/v2/models/{name}/ready": {"infer", "read"},
    "/v2/models/{name}/infer": {"infer"},
    "/v2/models/{name}/versions/{model_version}": {"infer", "read"},
    "/v2/models/{name}/versions/{model_version}/ready": {"infer", "read"},
    "/v2/models/{name}/versions/{model_version}/infer": {"infer"},
}
"""What opens each route. A new route has to be added here."""

OPEN_CONSOLE_ROUTES = {
    "/console",
    "/console/session",
    *(f"/console/static/{path.name}" for path in STATIC_FOLDER.iterdir() if path.name != PAGE),
}
"""The console's page, its files, and where a key is entered."""

ROLES_OF_CONSOLE: dict[tuple[str, str], set[Role]] = {
    ("GET", "/console/api/server"): {"read"},
    ("GET", "/console/api/plans"): {"read"},
    ("GET", "/console/api/plans/{number}"): {"read"},
    ("POST", "/console/api/plans/{number}/replay"): {"infer"},
    ("GET", "/console/api/fleet"): {"read"},
    ("GET", "/console/api/drive"): {"read"},
    ("POST", "/console/api/drive"): {"infer"},
    ("GET", "/console/api/drive/goals"): {"read"},
    ("POST", "/console/api/drive/controls"): {"infer"},
}
"""What opens each method of each route of the console, if there is one."""

ROLES_OF_WEBSOCKETS: dict[str, set[Role]] = {"/": {"infer"}}
"""What opens each route for requests that offer to speak WebSocket."""

ROLES_OF_METHODS: dict[str, set[Role]] = {
    "/lewm.v1.PlannerService/Encode": {"infer"},
    "/lewm.v1.PlannerService/Predict": {"infer"},
    "/lewm.v1.PlannerService/Plan": {"infer"},
    "/lewm.v1.PlannerService/ListModels": {"infer", "read"},
    "/lewm.v1.PlannerService/GetModel": {"infer", "read"},
    "/inference.GRPCInferenceService/ServerMetadata": {"infer", "read"},
    "/inference.GRPCInferenceService/ModelMetadata": {"infer", "read"},
    "/inference.GRPCInferenceService/ModelReady": {"infer", "read"},
    "/inference.GRPCInferenceService/ModelInfer": {"infer"},
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {"read"},
}

KeyOfRole = dict[Role, str]


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    """A place for a keys file."""
    return tmp_path / "keys"


@pytest.fixture
def key_of_role(keys_file: Path) -> KeyOfRole:
    """A key with each role alone."""
    return {role: add_key(keys_file, role, role) for role in ROLES}


@pytest.fixture
def parts(keys_file: Path, key_of_role: KeyOfRole) -> dict[str, Any]:
    """What both transports get: a planner that loads no model, and keys."""
    settings, metrics = Settings(), Metrics()
    return {
        "planner": Planner(settings, metrics),
        "settings": settings,
        "metrics": metrics,
        "memory": RequestMemory(settings.max_held_bytes),
        "recorder": RequestRecorder(metrics),
        "keys": Keys(keys_file),
    }


def client_of(app: Any) -> httpx.AsyncClient:
    """An HTTP client of an application in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


def routes_of(app: Any, *, websockets: bool = False) -> dict[str, set[str]]:
    """The paths of the application behind the middleware, and their methods."""
    assert isinstance(app, ExchangeMiddleware)
    assert isinstance(app.app, KeyMiddleware)
    fastapi = app.app._app
    assert isinstance(fastapi, FastAPI)
    routes: dict[str, set[str]] = {}

    def walk(route: Any) -> None:
        if hasattr(route, "effective_candidates"):  # a router that is included in another
            for inner in route.effective_candidates():
                walk(inner)
        else:
            route = getattr(route, "starlette_route", None) or route
            if isinstance(route, OpenpiRoute) != websockets:
                return
            routes.setdefault(route.path, set()).update(route.methods)

    for route in fastapi.router.routes:
        walk(route)
    return routes


async def test_every_route_of_http(parts: dict[str, Any], key_of_role: KeyOfRole) -> None:
    app, _ = create_app(**parts)
    routes = routes_of(app)
    assert set(routes) == OPEN_ROUTES | set(ROLES_OF_ROUTES)
    async with client_of(app) as client:
        for path, methods in routes.items():
            for method in methods:
                url = re.sub("{.*?}", "two-room", path)
                no_key = await client.request(method, url)
                if path in OPEN_ROUTES:
                    assert no_key.status_code not in (401, 403, 404), path
                    continue
                assert no_key.status_code == 401, path
                assert no_key.headers["www-authenticate"].startswith("Bearer")
                for role, key in key_of_role.items():
                    answer = await client.request(method, url, headers=bearer(key))
                    if role in ROLES_OF_ROUTES[path]:
                        assert answer.status_code not in (401, 403, 404), (path, role)
                    else:
                        assert answer.status_code == 403, (path, role)


async def test_every_route_of_the_console(parts: dict[str, Any], key_of_role: KeyOfRole) -> None:
    app, _ = create_app(**parts, console=ConsoleData())
    added = {
        (method, path)
        for path, methods in routes_of(app).items()
        for method in methods
        if path.startswith("/console") and method != "HEAD"
    }
    needing_keys = {route for route in added if route[1] not in OPEN_CONSOLE_ROUTES}
    assert needing_keys == set(ROLES_OF_CONSOLE)
    assert {path for _, path in added - needing_keys} == OPEN_CONSOLE_ROUTES
    async with client_of(app) as client:
        for path in OPEN_CONSOLE_ROUTES - {"/console/session"}:
            assert (await client.get(path)).status_code == 200, path
        for (method, path), roles in ROLES_OF_CONSOLE.items():
            url = path.replace("{number}", "1")
            assert (await client.request(method, url)).status_code == 401, path
            for role, key in key_of_role.items():
                by_header = await client.request(method, url, headers=bearer(key))
                cookie = {"cookie": f"{SESSION_COOKIE}={key}"}
                by_cookie = await client.request(method, url, headers=cookie)
                assert by_cookie.status_code == by_header.status_code, (path, role)
                if role not in roles:
                    assert by_header.status_code == 403, (path, role)
                    assert "has the roles" in by_header.json()["detail"]
                elif method == "POST":  # the header of the page is missing
                    assert "lewm-console" in by_header.json()["detail"], (path, role)
                else:
                    assert by_header.status_code != 401, (path, role)
                    assert by_header.status_code != 403, (path, role)


async def test_the_cookie_of_the_console_opens_nothing_else(
    parts: dict[str, Any], key_of_role: KeyOfRole
) -> None:
    app, _ = create_app(**parts, console=ConsoleData())
    async with client_of(app) as client:
        cookie = {"cookie": f"{SESSION_COOKIE}={key_of_role['infer']}"}
        assert (await client.post("/plan", headers=cookie)).status_code == 401
        assert (await client.get("/v2", headers=cookie)).status_code == 401


async def test_the_cookie_of_the_console_is_secure_over_https(
    parts: dict[str, Any], key_of_role: KeyOfRole
) -> None:
    app, _ = create_app(**parts, console=ConsoleData())
    for scheme in ("http", "https"):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=f"{scheme}://server") as client:
            answer = await client.post(
                "/console/session",
                json={"key": key_of_role["read"]},
                headers={"lewm-console": "1"},
            )
        assert answer.status_code == 204
        flags = answer.headers["set-cookie"].split("; ")
        assert ("Secure" in flags) == (scheme == "https")


async def test_without_a_console_its_paths_are_unknown(
    parts: dict[str, Any], key_of_role: KeyOfRole
) -> None:
    async with client_of(create_app(**parts)[0]) as client:
        for path in ("/console", "/console/api/plans", "/console/static/app.js"):
            answer = await client.get(path, headers=bearer(key_of_role["read"]))
            assert answer.json()["code"] == "unknown_route", path


class NoOffer:
    """An offer to speak WebSocket of a client that goes away when it is accepted."""

    def accept(self, *_: object) -> None:
        """The client has gone away."""
        raise ClientDisconnect


async def test_every_websocket(parts: dict[str, Any], key_of_role: KeyOfRole) -> None:
    app, _ = create_app(**parts)
    routes = routes_of(app, websockets=True)
    assert routes == {path: {"GET", "HEAD"} for path in ROLES_OF_WEBSOCKETS}

    async def offering(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, OFFER: NoOffer()}, receive, send)

    async with client_of(offering) as client:
        for path, roles in ROLES_OF_WEBSOCKETS.items():
            assert (await client.get(path)).status_code == 401
            for role, key in key_of_role.items():
                answer = await client.get(path, headers=bearer(key))
                # The planner of this test loads no model.
                expected = "loading" if role in roles else "forbidden"
                assert answer.json()["code"] == expected, (path, role)


UNKNOWN_PATHS = (
    *("/nothing", "/healthz/", "/healthz/x", "http://server//healthz", "/v1/healthz"),
    *("/plan/../healthz/x", "/v2/", "/v2/health", "/v2/health/live/x", "/v2/models/a/b/infer"),
)


@pytest.mark.parametrize("path", UNKNOWN_PATHS)
async def test_unknown_paths_of_http(
    path: str, parts: dict[str, Any], key_of_role: KeyOfRole
) -> None:
    async with client_of(create_app(**parts)[0]) as client:
        assert (await client.get(path)).json()["code"] == "unauthenticated"
        unknown = await client.get(path, headers=bearer(key_of_role["read"]))
        assert unknown.json()["code"] in ("unknown_route", "forbidden")


def test_a_route_that_nobody_listed_is_closed() -> None:
    assert roles_of_path("/new") is None


@pytest.fixture
async def methods_and_target(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[set[str], str]]:
    """The methods that are registered with a running gRPC server, and its address."""
    methods: set[str] = set()
    server_type = type(grpc.aio.server())
    add = server_type.add_generic_rpc_handlers

    def add_and_note(server: Any, handlers: Any) -> None:
        for handler in handlers:
            methods.update(getattr(handler, "_method_handlers", ()))
        add(server, handlers)

    monkeypatch.setattr(server_type, "add_generic_rpc_handlers", add_and_note)
    server = GrpcServer(**parts, certificates=None)
    port = server.bind(["127.0.0.1"], 0)
    await server.start()
    yield methods, f"127.0.0.1:{port}"
    await server.stop(0)


async def call_status(
    channel: grpc.aio.Channel, method: str, key: str | None
) -> tuple[grpc.StatusCode, str]:
    """The status and the code of a call with one empty message. OK if an answer comes."""
    credentials = None if key is None else metadata(key)
    open_stream: Any = channel.unary_stream
    call = open_stream(method)(b"", timeout=30, metadata=credentials)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        trailing: Any = error.trailing_metadata()
        return error.code(), str(dict(trailing).get("code", ""))
    call.cancel()
    return grpc.StatusCode.OK, ""


async def test_every_method_of_grpc(
    methods_and_target: tuple[set[str], str], key_of_role: KeyOfRole
) -> None:
    methods, target = methods_and_target
    assert methods == OPEN_METHODS | set(ROLES_OF_METHODS)
    async with grpc.aio.insecure_channel(target) as channel:
        for method in methods:
            status, code = await call_status(channel, method, None)
            if method in OPEN_METHODS:
                assert status is not grpc.StatusCode.UNAUTHENTICATED, method
                continue
            assert (status, code) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated"), method
            for role, key in key_of_role.items():
                status, code = await call_status(channel, method, key)
                if role in ROLES_OF_METHODS[method]:
                    assert code not in ("unauthenticated", "forbidden", "unknown_route"), method
                else:
                    assert (status, code) == (grpc.StatusCode.PERMISSION_DENIED, "forbidden")


@pytest.mark.parametrize(
    "method", ["/lewm.v1.PlannerService/Fly", "/a/b", "/grpc.health.v1.Healthy/Check"]
)
async def test_unknown_methods_of_grpc(
    method: str, methods_and_target: tuple[set[str], str], key_of_role: KeyOfRole
) -> None:
    _, target = methods_and_target
    async with grpc.aio.insecure_channel(target) as channel:
        assert (await call_status(channel, method, None))[1] == "unauthenticated"
        unknown = await call_status(channel, method, key_of_role["infer"])
        assert unknown == (grpc.StatusCode.UNIMPLEMENTED, "unknown_route")
