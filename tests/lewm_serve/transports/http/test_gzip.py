"""Bodies in gzip, within the limits of all bodies."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

MIB = 1 << 20
BODY = json.dumps(plan()).encode()
HEADERS = {"content-type": "application/json", "content-encoding": "gzip"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[ServerProcess]:
    """A server that takes bodies of up to 4 MiB."""
    log = tmp_path_factory.mktemp("gzip") / "log"
    flags = ("--models", str(model_folder), "--max-body-bytes", str(4 * MIB))
    with ServerProcess(log, *flags).wait_ready() as process:
        yield process


def post(server: ServerProcess, content: bytes) -> httpx.Response:
    """The answer to a plan request with this body."""
    url = f"{server.url}/plan"
    return httpx.post(url, content=content, headers=HEADERS, timeout=PATIENCE_S)


def test_a_plan_in_gzip(server: ServerProcess) -> None:
    assert post(server, gzip.compress(BODY)).status_code == 200
    padded = BODY + b" " * (4 * MIB - len(BODY))
    assert post(server, gzip.compress(padded)).status_code == 200


def test_a_bomb_costs_no_more_than_a_body(server: ServerProcess) -> None:
    bomb = gzip.compress(bytes(1024 * MIB), 9)
    assert len(bomb) < 4 * MIB

    def send() -> None:
        answer = post(server, bomb)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")

    assert server.memory_growth_mib(send) < 40
    assert server.metric("lewm_held_bytes") == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (BODY, "body: received bytes that are not gzip"),
        (gzip.compress(BODY)[:-4], "body: received gzip data without its end"),
        (gzip.compress(BODY) * 2, "body: received bytes after the end of the gzip data"),
        (b"", "body: received gzip data without its end"),
    ],
)
def test_what_is_not_gzip(content: bytes, problem: str, server: ServerProcess) -> None:
    answer = post(server, content)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")
    assert problem in answer.json()["detail"]
