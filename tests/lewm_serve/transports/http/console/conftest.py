"""Servers with a console."""

import base64
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from lewm_models.checkpoint import EMBEDDED_MODEL
from tests.lewm_serve.support.keys import add_key
from tests.lewm_serve.support.random_model import MODEL_NAME, write_random_model
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S

COOKIE = "lewm-key"
PREFIX = "/fleet/planner"
"""A path prefix that the server with keys also takes."""

PAGE_HEADERS = {"lewm-console": "1"}
FRAMES = ROOT / "docs" / "frames"


class Console(NamedTuple):
    """A server with a console, the keys by their names if it has any, and its model's folder."""

    process: ServerProcess
    keys: dict[str, str]
    model: Path

    @property
    def page(self) -> str:
        """The address of the page."""
        return f"{self.process.url}/console"

    def plan(
        self, robot: str = "arm", headers: dict[str, str] | None = None, **changes: Any
    ) -> str:
        """Make a plan of the embedded model's pictures, and return its request id."""
        request_id = uuid.uuid4().hex
        document = {"frames": [frame("start.png")], "goal": frame("goal.png"), "seed": 7}
        answer = httpx.post(
            f"{self.process.url}/plan",
            json=document | changes,
            headers={"lewm-robot": robot, "x-request-id": request_id, **(headers or {})},
            timeout=PATIENCE_S,
        )
        assert answer.status_code == 200, answer.text
        return request_id

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        """What the page gets, with a key in its cookie."""
        with _page_of(key) as client:
            return client.get(f"{self.page}/api/{path}")

    def post(
        self,
        path: str,
        document: Any,
        *,
        key: str | None = None,
        headers: dict[str, str] = PAGE_HEADERS,
    ) -> httpx.Response:
        """What the page posts, with a key in its cookie."""
        with _page_of(key) as client:
            return client.post(f"{self.page}/{path}", json=document, headers=headers)

    def number_of(self, request_id: str) -> int:
        """The number of a kept plan."""
        (plan,) = self.get(f"plans?request_id={request_id}").json()["plans"]
        number: int = plan["number"]
        return number


def _page_of(key: str | None) -> httpx.Client:
    return httpx.Client(cookies={} if key is None else {COOKIE: key}, timeout=PATIENCE_S)


def frame(name: str) -> dict[str, str]:
    """A picture of Two-Room in a request."""
    return {"image": base64.b64encode((FRAMES / name).read_bytes()).decode()}


@pytest.fixture(scope="package")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A server with the embedded model and a console, without keys."""
    log = tmp_path_factory.mktemp("console") / "log.jsonl"
    with ServerProcess(log, LEWM_CONSOLE="1") as process:
        yield Console(process.wait_ready(), {}, EMBEDDED_MODEL)
        assert process.stop() == 0, process.errors()


@pytest.fixture(scope="package")
def keyed_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A server with a console, keys, and a model that has no probe, decoder or calibration."""
    folder = tmp_path_factory.mktemp("keyed-console")
    model = write_random_model(folder / MODEL_NAME)
    keys = {
        "viewer": add_key(folder / "keys", "viewer", "read"),
        "operator": add_key(folder / "keys", "operator", "read", "infer"),
        "robot": add_key(folder / "keys", "robot", "infer"),
    }
    flags = ("--models", str(model), "--keys-file", str(folder / "keys"))
    environment = {"LEWM_CONSOLE": "1", "LEWM_ROOT_PATH": PREFIX}
    with ServerProcess(folder / "log.jsonl", *flags, **environment) as process:
        yield Console(process.wait_ready(), keys, model)
