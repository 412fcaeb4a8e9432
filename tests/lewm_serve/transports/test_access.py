"""A server with keys, over both protocols: who comes in, what is answered, logged and counted."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_client import PlannerError
from tests.lewm_serve.support.certificates import Authority, CertificateFiles
from tests.lewm_serve.support.inference_protocol import (
    OipHttpDriver,
    binary_outputs,
    translate,
)
from tests.lewm_serve.support.keys import add_key, bearer, metadata
from tests.lewm_serve.support.openpi import OBSERVATION, openpi
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S, wait_until


class KeyedServer(NamedTuple):
    """A server with keys, and the keys by their names."""

    process: ServerProcess
    file: Path
    keys: dict[str, str]

    def post(self, document: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        """The answer to a plan request on a connection of its own."""
        url = f"{self.process.url}/plan"
        return httpx.post(url, json=document, headers=headers, timeout=PATIENCE_S)

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """The answer to a GET request on a connection of its own."""
        return httpx.get(f"{self.process.url}{path}", headers=headers, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[KeyedServer]:
    """A ready server with four keys."""
    folder = tmp_path_factory.mktemp("keys")
    file = folder / "keys"
    keys = {
        "arm-1": add_key(file, "arm-1", "infer"),
        "monitor": add_key(file, "monitor", "read"),
        "one-at-once": add_key(file, "one-at-once", "infer", max_concurrent=1),
        "slow": add_key(file, "slow", "infer", rate_per_s=0.001),
    }
    flags = ("--models", str(model_folder), "--keys-file", str(file))
    with ServerProcess(folder / "log", *flags) as process:
        yield KeyedServer(process.wait_ready(), file, keys)
        text = process.errors()
        for key in keys.values():
            assert key not in text
            assert key[-43:] not in text


@pytest.mark.parametrize("scheme", ["Bearer ", "Api-Key ", "bearer "])
def test_a_key_in_the_authorization_header(keyed: KeyedServer, scheme: str) -> None:
    headers = {"authorization": scheme + keyed.keys["arm-1"]}
    assert keyed.post(plan(), headers).status_code == 200


def test_a_key_in_a_header_of_its_own(keyed: KeyedServer) -> None:
    assert keyed.post(plan(), {"api-key": keyed.keys["arm-1"]}).status_code == 200


def test_browsers_send_the_key_as_a_password_to_read_alone(keyed: KeyedServer) -> None:
    def basic(key: str) -> dict[str, str]:
        return {"authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}

    refused = keyed.get("/docs")
    assert refused.headers["www-authenticate"] == 'Bearer, Basic realm="lewm"'
    assert keyed.get("/docs", basic(keyed.keys["monitor"])).status_code == 200
    changing = keyed.post(plan(), basic(keyed.keys["arm-1"]))
    assert (changing.status_code, changing.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("key", [None, "wrong", "lewm_0123456789abcdef_" + "A" * 43])
def test_no_key_and_wrong_keys(keyed: KeyedServer, key: str | None) -> None:
    headers = {"x-request-id": f"wrong {key}"} | (bearer(key) if key else {})
    answer = keyed.post(plan(), headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "unauthenticated"
    assert answer.headers["connection"] == "close"
    (line,) = keyed.process.wait_logged(f"wrong {key}")
    assert (line["code"], line["status"], line["endpoint"]) == ("unauthenticated", 401, "plan")
    assert "key" not in line


def test_the_log_names_the_key(keyed: KeyedServer) -> None:
    headers = bearer(keyed.keys["arm-1"]) | {"x-request-id": "named"}
    assert keyed.post(plan(), headers).status_code == 200
    (line,) = keyed.process.wait_logged("named")
    assert line["key"] == "arm-1"


def test_refusals_are_counted_and_logged_on_every_path(keyed: KeyedServer) -> None:
    assert keyed.get("/metrics", {"x-request-id": "scrape"}).status_code == 401
    (line,) = keyed.process.wait_logged("scrape")
    assert line["code"] == "unauthenticated"
    forbidden = keyed.get("/metrics", bearer(keyed.keys["arm-1"]))
    assert (forbidden.status_code, forbidden.json()["code"]) == (403, "forbidden")
    assert forbidden.json()["detail"] == "the key arm-1 has the roles infer, expected read"
    text = keyed.get("/metrics", bearer(keyed.keys["monitor"])).text
    for code in ("unauthenticated", "forbidden"):
        series = f'lewm_requests_total{{code="{code}",endpoint="other",protocol="rest"}} '
        (value,) = (line for line in text.splitlines() if line.startswith(series))
        assert float(value.split()[-1]) >= 1


def test_the_openapi_document_asks_for_a_key(keyed: KeyedServer) -> None:
    document = keyed.get("/openapi.json", bearer(keyed.keys["monitor"])).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert {"401", "403", "429"} <= set(document["paths"]["/plan"]["post"]["responses"])


def test_a_rate_limit(keyed: KeyedServer) -> None:
    assert keyed.post(plan(), bearer(keyed.keys["slow"])).status_code == 200
    with httpx.Client(base_url=keyed.process.url, timeout=PATIENCE_S) as client:
        for _ in range(2):
            limited = client.post("/plan", json=plan(), headers=bearer(keyed.keys["slow"]))
            assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
            assert 900 < int(limited.headers["retry-after"]) <= 1000
            assert "may send 0.001 requests per second" in limited.json()["detail"]
            assert "connection" not in limited.headers


def test_a_limit_of_requests_at_once_counts_both_protocols(keyed: KeyedServer) -> None:
    key = keyed.keys["one-at-once"]
    long_plan = plan(solver={"samples": 300, "iterations": 200, "tolerance": 0})
    with ThreadPoolExecutor() as pool, grpc.insecure_channel(keyed.process.target) as channel:
        running = pool.submit(keyed.post, long_plan, bearer(key))
        methods: Any = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        limited: list[grpc.RpcError] = []

        def is_limited() -> bool:
            try:
                methods.ListModels(pb.ListModelsRequest(), metadata=metadata(key))
            except grpc.RpcError as error:
                limited.append(error)
            return bool(limited) or running.done()

        wait_until(is_limited)
        (error,) = limited
        refusal = PlannerError(error)  # type: ignore[arg-type]
        assert refusal.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.code == "rate_limited"
        assert refusal.retry_after_s
        assert running.result().status_code == 200
    assert keyed.post(plan(), bearer(key)).status_code == 200


def test_keys_over_grpc(keyed: KeyedServer) -> None:
    with grpc.insecure_channel(keyed.process.target) as channel:
        methods: Any = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.ListModelsRequest()
        answer = methods.ListModels(request, metadata=metadata(keyed.keys["arm-1"]))
        assert [model.name for model in answer.models] == keyed.process.ready["models"]
        identified = (("x-request-id", "grpc without"),)
        with pytest.raises(grpc.RpcError) as caught:
            methods.ListModels(request, metadata=identified)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.details() == "expected a key: Authorization: Bearer KEY"
        (line,) = keyed.process.wait_logged("grpc without")
        assert (line["code"], line["endpoint"]) == ("unauthenticated", "models")
        with pytest.raises(grpc.RpcError) as caught:
            methods.Plan(pb.PlanRequest(), metadata=metadata(keyed.keys["monitor"]))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        named = (("x-request-id", "grpc with"), *metadata(keyed.keys["arm-1"]))
        methods.ListModels(request, metadata=named)
        (line,) = keyed.process.wait_logged("grpc with")
        assert line["key"] == "arm-1"


def test_keys_over_openpi(keyed: KeyedServer) -> None:
    with openpi(keyed.process, keyed.keys["arm-1"]) as connection:
        answer = connection.infer(OBSERVATION)
        (line,) = keyed.process.wait_logged(answer["request_id"])
        assert (line["key"], line["protocol"], line["endpoint"]) == ("arm-1", "openpi", "plan")
    for key, status in ((None, 401), ("wrong", 401), (keyed.keys["monitor"], 403)):
        with pytest.raises(InvalidStatus, match=str(status)), openpi(keyed.process, key):
            pass
    text = keyed.get("/metrics", bearer(keyed.keys["monitor"])).text
    assert 'lewm_requests_total{code="forbidden",endpoint="plan",protocol="openpi"} 1.0' in text


def test_browsers_open_no_websocket_with_a_password(keyed: KeyedServer) -> None:
    basic = base64.b64encode(f"me:{keyed.keys['arm-1']}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}"}
    url = f"ws://127.0.0.1:{keyed.process.http_port}"
    with (
        pytest.raises(InvalidStatus, match="401"),
        connect(url, additional_headers=headers, proxy=None),
    ):
        pass


def test_each_observation_counts_for_the_limits_of_its_key(keyed: KeyedServer) -> None:
    key = add_key(keyed.file, "slow-openpi", "infer", rate_per_s=0.001)
    wait_until(lambda: accepts(keyed, key))
    with openpi(keyed.process, key) as connection, openpi(keyed.process, key) as another:
        assert connection.infer(OBSERVATION)["status"] == "completed"
        for limited in (connection.infer(OBSERVATION), another.infer(OBSERVATION)):
            assert limited.startswith("rate_limited: the key slow-openpi may send 0.001 requests")
            assert "; try again in " in limited


def test_a_revoked_key_ends_its_connection(keyed: KeyedServer) -> None:
    key = add_key(keyed.file, "arm-8", "infer")
    wait_until(lambda: accepts(keyed, key))
    with openpi(keyed.process, key) as connection:
        assert connection.infer(OBSERVATION)["status"] == "completed"
        assert lewm("keys", "revoke", "arm-8", "--file", str(keyed.file)).returncode == 0
        wait_until(lambda: not accepts(keyed, key))
        assert connection.infer(OBSERVATION).startswith("unauthenticated: the key is wrong or has")
        with pytest.raises(ConnectionClosed, match="1011"):
            connection.receive()


def accepts(keyed: KeyedServer, key: str) -> bool:
    """Whether the server knows a key. The question does not count for its limits."""
    try:
        with openpi(keyed.process, key):
            return True
    except InvalidStatus:
        return False


def test_a_batch_counts_as_so_many_requests(keyed: KeyedServer) -> None:
    request = translate("plan", plan())
    pair = {
        name: raw._replace(shape=[2, *raw.shape[1:]], data=2 * raw.data)
        for name, raw in request.inputs.items()
    }
    for name, code in (("arm-1", "ok"), ("one-at-once", "rate_limited")):
        headers = bearer(keyed.keys[name])
        with httpx.Client(base_url=keyed.process.url, headers=headers) as client:
            driver = OipHttpDriver(client)
            answer = driver.infer(request._replace(inputs=pair))
            if code == "ok":
                assert binary_outputs(answer)["actions"].shape[0] == 2
            else:
                assert (answer.status_code, answer.json()["code"]) == (429, code)
            assert driver.infer(request).status_code == 200  # nothing is counted any more


def test_keys_of_the_open_inference_protocol(keyed: KeyedServer) -> None:
    with httpx.Client(base_url=keyed.process.url) as client:
        refused = OipHttpDriver(client).infer(translate("plan", plan()))
        assert (refused.status_code, refused.headers["connection"]) == (401, "close")
        assert refused.json()["error"].startswith("unauthenticated: expected a key")
    with grpc.insecure_channel(keyed.process.target) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")  # type: ignore[call-arg]
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=(("x-request-id", "oip without"),))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        (line,) = keyed.process.wait_logged("oip without")
        assert (line["protocol"], line["endpoint"]) == ("oip", "plan")


def lewm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The result of a `lewm` command."""
    return subprocess.run(
        [sys.executable, "-m", "lewm_serve.cli.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_a_key_of_the_command_is_accepted_until_it_is_revoked(keyed: KeyedServer) -> None:
    file = ("--file", str(keyed.file))
    added = lewm("keys", "add", "arm-9", "--role", "infer", "--role", "read", *file)
    assert added.returncode == 0, added.stderr
    key = added.stdout.split()[-1]
    wait_until(lambda: keyed.post(plan(), bearer(key)).status_code == 200)
    assert keyed.get("/metrics", bearer(key)).status_code == 200
    listed = lewm("keys", "list", *file)
    assert "arm-9" in listed.stdout
    assert "infer, read" in listed.stdout
    assert key not in listed.stdout
    assert lewm("keys", "revoke", "arm-9", *file).returncode == 0
    wait_until(lambda: keyed.post(plan(), bearer(key)).status_code == 401)


def test_a_broken_file_keeps_the_keys_and_is_logged(keyed: KeyedServer) -> None:
    text = keyed.file.read_text()
    keyed.file.write_text(text + "broken\n")
    line = text.count("\n") + 1

    def is_logged() -> bool:
        assert keyed.post(plan(), bearer(keyed.keys["arm-1"])).status_code == 200
        return f"line {line}: the line: Invalid JSON" in keyed.process.errors()

    wait_until(is_logged)
    keyed.file.write_text(text)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("add", "arm-1", "--role", "drive"), "--role: received 'drive', expected infer, read"),
        (("add", "arm 1", "--role", "infer"), "name is 'arm 1': String should match pattern"),
        (("add", "a", "--role", "infer", "--rate", "0"), "rate_per_s is 0.0: Input should be"),
        (("add", "taken", "--role", "infer"), "there is a key taken already; revoke it first"),
        (("revoke", "nobody"), "there is no key nobody; there is taken"),
        (("list", "--file", "/nowhere/keys"), "/nowhere/keys: no such file or directory"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    add_key(file, "taken", "infer")
    result = lewm("keys", arguments[0], "--file", str(file), *arguments[1:])
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"lewm keys {arguments[0]}: ")
    assert problem in result.stderr


@pytest.mark.parametrize(("text", "problem"), [(None, "no such file"), ("{}\n", "line 1: ")])
def test_a_server_does_not_start_with_an_unusable_file(
    text: str | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    result = lewm("serve", "--keys-file", str(file), "--http-port", "0", "--grpc-port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(
        f"lewm serve: LEWM_KEYS_FILE (--keys-file): {file}"
    )
    assert problem in result.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_not_served_without_a_check(host: str) -> None:
    result = lewm("serve", "--host", host, "--http-port", "0", "--grpc-port", "0")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"lewm serve: LEWM_HOST (--host) is {host}, so other machines reach")
    for name in ("LEWM_KEYS_FILE", "LEWM_TLS_CLIENT_CA", "LEWM_INSECURE=1"):
        assert name in line


def test_keys_or_certificates_of_clients_open_the_server_to_other_machines(
    tmp_path: Path, model_folder: Path
) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    flags = ("--models", str(model_folder), "--host", "0.0.0.0", "--keys-file", str(file))
    with ServerProcess(tmp_path / "log", *flags).wait_listening() as process:
        assert "keys travel unencrypted: set LEWM_TLS_CERT" in process.errors()
    files = CertificateFiles.in_folder(tmp_path)
    files.write(Authority().issue())
    files.client_ca.write_bytes(Authority().certificate)
    of_tls = ("--host", "0.0.0.0", *files.flags, "--tls-client-ca", str(files.client_ca))
    with ServerProcess(tmp_path / "tls-log", *of_tls).wait_listening() as process:
        assert "warning" not in process.errors()
