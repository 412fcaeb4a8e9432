"""The log: one line for each request, which names its model and holds nothing of its content."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.support.drivers import Answer, Driver, GrpcDriver, RestDriver, raw_call
from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.faulty_lewm import FAILING_HORIZON, FAULTY_LEWM
from tests.lewm_serve.support.frames import ACTION_BLOCK, LATENT_DIM, base64_of, latent
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.redis_process import PASSWORD, RedisProcess
from tests.lewm_serve.support.requests import HOLD, plan, predict, rows
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S, wait_until

JSON = {"content-type": "application/json"}

FIELDS_OF_EVERY_LINE = {
    "event",
    "level",
    "timestamp",
    "request_id",
    "endpoint",
    "protocol",
    "code",
    "status",
    "duration_ms",
}
LONG_NAME = "nobody-" * 30


def line_of(server: ServerProcess, answer: Answer) -> dict[str, Any]:
    """The one line of a request."""
    (line,) = server.wait_logged(answer.request_id)
    assert line.keys() >= FIELDS_OF_EVERY_LINE
    assert line["code"] == answer.code
    assert line["duration_ms"] > 0
    return line


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (plan(), "ok"),
        (plan(model=MODEL_NAME), "ok"),
        (plan(goal={}), "missing_field"),
        (plan(model=MODEL_NAME, colour=1), "unknown_field"),
        (plan(warm_start=rows(6 * ACTION_BLOCK)), "shape_mismatch"),
        (plan(frames=[{"latent_id": "x"}]), "unknown_latent"),
        (plan(deadline_ms=1e-6), "deadline_exceeded"),
    ],
    ids=["default", "named", "no-goal", "field", "shape", "latent", "deadline"],
)
def test_every_line_names_the_model(
    server: ServerProcess, driver: Driver, document: dict[str, Any], code: str
) -> None:
    line = line_of(server, driver.send("plan", document))
    assert (line["code"], line["model"]) == (code, MODEL_NAME)
    is_good = line["status"] in (200, "OK")
    assert is_good == ("timing_ms" in line) == (code == "ok")


@pytest.mark.parametrize(
    ("name", "is_usable"),
    [("arm 7", True), ("~" * 128, True), ("~" * 129, False), ("", False), ("tab\there", False)],
)
def test_a_line_has_the_robots_name(
    server: ServerProcess, rest: httpx.Client, rpc: PlannerClient, name: str, is_usable: bool
) -> None:
    response = rest.post("/plan", json=plan(), headers={"Lewm-Robot": name})
    ids = [response.headers["x-request-id"]]
    if name.isprintable():  # gRPC's client sends nothing else
        request = pb.PlanRequest()
        with pytest.raises(grpc.RpcError) as caught:
            rpc.stub.Plan(request, metadata=(("lewm-robot", name),), timeout=PATIENCE_S)
        ids.append(PlannerError(caught.value).request_id)  # type: ignore[arg-type]
    for request_id in ids:
        (line,) = server.wait_logged(request_id)
        assert line.get("robot") == (name if is_usable else None)


@pytest.mark.parametrize(
    ("method", "document", "fields"),
    [
        ("encode", {"frames": [latent(0.1)]}, {"health": "uncalibrated"}),
        ("predict", predict(), {"health": "uncalibrated"}),
        ("plan", plan(), {"health": "uncalibrated", "plan_status": "completed"}),
        (
            "plan",
            plan(deadline_ms=1e-6, fallback=HOLD),
            {
                "health": "unknown",
                "plan_status": "fallback",
                "fallback": HOLD | {"reason": "deadline"},
            },
        ),
        ("plan", plan(deadline_ms=1e-6), {}),
    ],
    ids=["encode", "predict", "plan", "fallback", "refused"],
)
def test_a_line_has_health_and_the_status_of_a_plan(
    server: ServerProcess,
    driver: Driver,
    method: str,
    document: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    line = line_of(server, driver.send(method, document))
    names = ("health", "plan_status", "fallback")
    assert {name: line[name] for name in names if name in line} == fields


def test_an_unknown_model_is_quoted_and_shortened(server: ServerProcess, driver: Driver) -> None:
    names = ("nobody", LONG_NAME, "a\nb")
    answers = [driver.send("predict", predict(model=name)) for name in names]
    short, long, two_lines = (line_of(server, answer)["model"] for answer in answers)
    assert [answer.code for answer in answers] == ["unknown_model"] * 3
    assert (short, two_lines) == ("'nobody'", r"'a\nb'")
    assert long.startswith("'nobody-nobody-")
    assert len(long) <= 40


def test_the_line_of_a_model_request(server: ServerProcess, rest: httpx.Client) -> None:
    for name, logged in ((MODEL_NAME, MODEL_NAME), ("nobody", "'nobody'")):
        request_id = rest.get(f"/models/{name}").headers["x-request-id"]
        (line,) = server.wait_logged(request_id)
        assert (line["endpoint"], line["model"]) == ("models", logged)


def test_a_body_that_is_no_request_has_a_line_without_a_model(
    server: ServerProcess, rest: httpx.Client
) -> None:
    for body in (b"[]", b"{", b'{"model": ["m"]}'):
        response = rest.post("/plan", content=body, headers=JSON)
        (line,) = server.wait_logged(response.headers["x-request-id"])
        assert (line["status"], "model" in line) == (response.status_code, False)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture(scope="module")
def faulty(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, redis: RedisProcess
) -> Iterator[ServerProcess]:
    """A faulty server with Redis that logs everything and takes one request at a time."""
    log = tmp_path_factory.mktemp("faulty") / "log.jsonl"
    flags = ("--models", str(model_folder), "--log-level", "debug", "--max-queue", "1")
    with ServerProcess(log, *flags, program=FAULTY_LEWM, LEWM_REDIS_URL=redis.url) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def drivers(faulty: ServerProcess) -> Iterator[list[Driver]]:
    """Both protocols."""
    with (
        httpx.Client(base_url=faulty.url, timeout=PATIENCE_S) as rest,
        PlannerClient(faulty.target) as rpc,
    ):
        yield [RestDriver(rest), GrpcDriver(rpc)]


def test_an_overloaded_server_names_the_model_too(
    faulty: ServerProcess, drivers: list[Driver]
) -> None:
    with endless_plan(faulty):
        answers = [driver.send("plan", plan()) for driver in drivers]
    wait_until(lambda: faulty.metric("lewm_active_plans") == 0)
    lines = [line_of(faulty, answer) for answer in answers]
    assert [(line["code"], line["model"]) for line in lines] == [("overloaded", MODEL_NAME)] * 2


MARK = b"SECRETPIXELS"
"""Twelve bytes in every frame, which are sixteen characters of base64."""

NUMBER = 0.7310585
"""A number in every latent."""


def marked_requests() -> list[dict[str, Any]]:
    """Good and bad requests whose frames would be recognised in the log."""
    frame = {"pixels": {"data": base64_of(MARK * 1024), "shape": [64, 64, 3]}}
    goal = {"latent": [NUMBER] * LATENT_DIM}
    failing = {"horizon": FAILING_HORIZON}
    return [
        plan(frames=[frame], goal=goal),
        plan(frames=[frame], goal=goal, model="nobody"),
        plan(frames=[frame], goal={"latent": [NUMBER] * 3}),
        plan(frames=[frame], goal=frame, colour=1),
        plan(frames=[{"image": base64_of(MARK * 100)}], goal=goal),
        plan(frames=[{"latent_id": base64_of(MARK)}], goal=goal),
        plan(frames=[frame], goal=goal, warm_start=[[NUMBER] * 3]),
        plan(frames=[frame], goal=goal, solver=failing),
        plan(frames=[frame], goal=goal, solver=failing, fallback=HOLD),
    ]


FAILURE_WITH_MARK = """
import logging, sys
from lewm_serve.observability.logging import configure_logs, log
from lewm_serve.settings import Settings

def fail(frame):
    raise RuntimeError("out of order")

configure_logs(Settings(log_format=sys.argv[1]))
for log_exception in (log.exception, logging.getLogger("x").exception):
    try:
        fail("SECRET" + "PIXELS")
    except RuntimeError:
        log_exception("failed")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_tracebacks_do_not_show_the_values_of_variables(log_format: str) -> None:
    command = [sys.executable, "-c", FAILURE_WITH_MARK, log_format]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert process.stderr.count("RuntimeError: out of order") == 2
    assert MARK.decode() not in process.stderr


def test_neither_frames_nor_passwords_are_logged(
    faulty: ServerProcess, drivers: list[Driver], redis: RedisProcess
) -> None:
    codes = [
        [driver.send("plan", document).code for document in marked_requests()] for driver in drivers
    ]
    assert codes[0] == codes[1]
    assert set(codes[0]) > {"ok", "internal", "unknown_model", "invalid_image"}
    (rest, rpc) = drivers
    assert isinstance(rest, RestDriver)
    assert isinstance(rpc, GrpcDriver)
    truncated = json.dumps(marked_requests()[0]).encode()[:-2]
    assert rest.client.post("/plan", content=truncated, headers=JSON).status_code == 400
    with pytest.raises(grpc.RpcError):
        raw_call(rpc.client, "/lewm.v1.PlannerService/Plan")(b"\x0a\xff" + MARK)

    redis.set_password("changed")  # a message about the old password might repeat it
    wait_until(lambda: any(line["event"] == "redis is down" for line in faulty.log_lines()))
    faulty.wait_logged(drivers[0].send("plan", plan()).request_id)

    log = faulty.errors()
    assert log.count('"internal error"') == 2
    assert log.count("out of order") >= 4  # unexpected errors are logged with their messages
    for secret in (PASSWORD, MARK.decode(), base64_of(MARK), str(NUMBER)[:6]):
        assert secret not in log
