"""What a request leaves in the log: one line that names its model, and nothing of its content."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from lewm_client import PlannerClient
from tests.lewm_serve.support.requests import plan, predict
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.drivers import Answer, Driver, RestDriver, GrpcDriver, raw_call
from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.frames import ACTION_BLOCK, base64_of, latent, rows
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.lewm_serve.support.redis_process import PASSWORD, RedisProcess
from tests.lewm_serve.support.faulty_lewm import FAILING_HORIZON, FAULTY_LEWM
from tests.patience import PATIENCE_S, wait_until

JSON = {"content-type": "application/json"}
ALWAYS = {"event", "level", "timestamp", "request_id", "endpoint", "protocol", "code", "status"}
ALWAYS |= {"duration_ms"}
LONG = "nobody-" * 30


def line_of(server: ServerProcess, answer: Answer) -> dict[str, Any]:
    """The one line of an answer, whole."""
    (line,) = server.wait_logged(answer.request_id)
    assert line.keys() >= ALWAYS
    assert line["code"] == answer.code
    assert line["duration_ms"] > 0
    return line


@pytest.mark.parametrize(
    ("request_", "code"),
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
def test_a_line_names_the_model_whatever_the_answer(
    server: ServerProcess, driver: Driver, request_: dict[str, Any], code: str
) -> None:
    answer = driver.send("plan", request_)
    line = line_of(server, answer)
    assert (line["code"], line["model"]) == (code, MODEL_NAME)
    good = line["status"] in (200, "OK")
    assert good == ("timing_ms" in line) == (code == "ok")


HOLD = {"controller": "hold"}


@pytest.mark.parametrize(
    ("method", "request_", "told"),
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
def test_a_line_tells_health_and_how_a_plan_ended(
    server: ServerProcess,
    driver: Driver,
    method: str,
    request_: dict[str, Any],
    told: dict[str, Any],
) -> None:
    line = line_of(server, driver.send(method, request_))
    assert {key: line[key] for key in ("health", "plan_status", "fallback") if key in line} == told


def test_a_model_that_is_not_served_is_quoted_and_shortened(
    server: ServerProcess, driver: Driver
) -> None:
    answers = [driver.send("predict", predict(model=name)) for name in ("nobody", LONG, "a\nb")]
    quoted, shortened, tamed = (line_of(server, answer)["model"] for answer in answers)
    assert [answer.code for answer in answers] == ["unknown_model"] * 3
    assert (quoted, tamed) == ("'nobody'", r"'a\nb'")
    assert shortened.startswith("'nobody-nobody-")
    assert len(shortened) <= 40


def test_the_route_of_a_model(server: ServerProcess, rest: httpx.Client) -> None:
    for name, logged in ((MODEL_NAME, MODEL_NAME), ("nobody", "'nobody'")):
        request_id = rest.get(f"/models/{name}").headers["x-request-id"]
        (line,) = server.wait_logged(request_id)
        assert (line["endpoint"], line["model"]) == ("models", logged)


def test_what_is_no_request_names_no_model(server: ServerProcess, rest: httpx.Client) -> None:
    for body in (b"[]", b"{", b'{"model": ["m"]}'):
        response = rest.post("/plan", content=body, headers=JSON)
        (line,) = server.wait_logged(response.headers["x-request-id"])
        assert (line["status"], "model" in line) == (response.status_code, False)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture(scope="module")
def talkative(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, redis: RedisProcess
) -> Iterator[ServerProcess]:
    """A server that logs all it can, has a secret, takes one request at a time, and may fail."""
    flags = ("--models", str(model_folder), "--log-level", "debug", "--max-queue", "1")
    log = tmp_path_factory.mktemp("talkative") / "log.jsonl"
    with ServerProcess(log, *flags, program=FAULTY_LEWM, LEWM_REDIS_URL=redis.url) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def drivers(talkative: ServerProcess) -> Iterator[list[Driver]]:
    with (
        httpx.Client(base_url=talkative.url, timeout=PATIENCE_S) as rest,
        PlannerClient(talkative.target) as rpc,
    ):
        yield [RestDriver(rest), GrpcDriver(rpc)]


def test_an_overloaded_server_names_the_model(
    talkative: ServerProcess, drivers: list[Driver]
) -> None:
    with endless_plan(talkative):
        answers = [driver.send("plan", plan()) for driver in drivers]
    wait_until(lambda: talkative.metric("lewm_active_plans") == 0)
    lines = [line_of(talkative, answer) for answer in answers]
    assert [(line["code"], line["model"]) for line in lines] == [("overloaded", MODEL_NAME)] * 2


MARK = b"SECRETPIXELS"
"""Twelve bytes, which are sixteen characters of base64."""
NUMBER = 0.7310585


def secretive() -> list[dict[str, Any]]:
    """Requests, good and bad, whose every frame would be known again."""
    shown = {"pixels": {"data": base64_of(MARK * 1024), "shape": [64, 64, 3]}}
    told = {"latent": [NUMBER] * 128}
    return [
        plan(frames=[shown], goal=told),
        plan(frames=[shown], goal=told, model="nobody"),
        plan(frames=[shown], goal={"latent": [NUMBER] * 3}),
        plan(frames=[shown], goal=shown, colour=1),
        plan(frames=[{"image": base64_of(MARK * 100)}], goal=told),
        plan(frames=[{"latent_id": base64_of(MARK)}], goal=told),
        plan(frames=[shown], goal=told, warm_start=[[NUMBER] * 3]),
        plan(frames=[shown], goal=told, solver={"horizon": FAILING_HORIZON}),
        plan(
            frames=[shown], goal=told, solver={"horizon": FAILING_HORIZON}, fallback={"controller": "hold"}
        ),
    ]


FAILURE = """
import logging, sys
from lewm_serve.observability.logging import configure_logs, log
from lewm_serve.settings import Settings

def fail(frame):
    raise RuntimeError("out of order")

configure_logs(Settings(log_format=sys.argv[1]))
for tell in (log.exception, logging.getLogger("x").exception):
    try:
        fail("SECRET" + "PIXELS")
    except RuntimeError:
        tell("failed")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_does_not_show_what_was_in_hand(log_format: str) -> None:
    command = [sys.executable, "-c", FAILURE, log_format]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.count("RuntimeError: out of order") == 2
    assert MARK.decode() not in done.stderr


def test_no_frame_and_no_secret_is_logged(
    talkative: ServerProcess, drivers: list[Driver], redis: RedisProcess
) -> None:
    codes = [[driver.send("plan", one).code for one in secretive()] for driver in drivers]
    assert codes[0] == codes[1]
    assert set(codes[0]) > {"ok", "internal", "unknown_model", "invalid_image"}
    (rest, rpc) = drivers
    assert isinstance(rest, RestDriver)
    assert isinstance(rpc, GrpcDriver)
    torn = json.dumps(secretive()[0]).encode()[:-2]
    assert rest.client.post("/plan", content=torn, headers=JSON).status_code == 400
    with pytest.raises(grpc.RpcError):
        raw_call(rpc.client, "/lewm.v1.PlannerService/Plan")(b"\x0a\xff" + MARK)

    redis.set_password(
        "changed"
    )  # so that the server's is refused, and whoever says so might say it
    wait_until(lambda: any(line["event"] == "redis is down" for line in talkative.log_lines()))
    talkative.wait_logged(drivers[0].ask("plan", plan()).request_id)

    log = talkative.errors()
    assert log.count('"internal error"') == 2
    assert log.count("out of order") >= 4  # errors are told in full, with all that they say
    for secret in (PASSWORD, MARK.decode(), base64_of(MARK), str(NUMBER)[:6]):
        assert secret not in log
