"""Bad requests beside good ones: the good are not harmed, and the memory does not grow."""

import base64
import json
import random
import socket
import struct
import threading
import zlib
from collections.abc import Callable

import grpc
import httpx
import numpy as np
import pytest
from lewm.v1 import planner_pb2 as pb

from service.errors import CODES
from service.rpc.client import PlannerClient
from service.settings import Settings
from tests.service.cases import CASES, plan
from tests.service.drivers import Driver, RestDriver, RpcDriver, raw_call
from tests.service.frames import chunk, picture, pixels, png
from tests.service.process import ServerProcess

MIB = 1 << 20
GROWTH_MIB = 320  # two bodies of 32 MiB at once, each held as bytes, text and array
LIMIT = Settings.model_fields["max_body_bytes"].default
JSON = {"content-type": "application/json"}

BAD = [case for case in CASES if case.code != "ok"]


def bombs() -> list[bytes]:
    """Bodies that are small until somebody unfolds or repeats them."""
    text = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(64 * MIB)))
    huge = png(30_000, 30_000, rows=bytes(32 * MIB))
    images = [png(64, 64, text), huge, png(2**31 - 1, 1)]
    frames = [{"frames": [{"image": base64.b64encode(data).decode()}]} for data in images]
    return [
        *(json.dumps(document).encode() for document in frames),
        b'{"frames":[' + b"{}," * 2_000_000 + b"{}]}",
        b'{"frames":[' + b"[]," * 900_000 + b"[]]}",
        b'{"goal":{"latent":[' + b"0.5," * 900_000 + b'1]},"frames":[{}]}',
        b'{"model":"' + b"m" * (24 * MIB) + b'","frames":[]}',
        b'{"frames":[{"image":"' + b"A" * (24 * MIB) + b'"}]}',
        b'{"frames":[{"pixels":{"shape":[1,1,3],"data":"' + b"A" * (24 * MIB) + b'"}}]}',
        b'{"' + b'a":1,"' * 900_000 + b'b":1}',
        b"[" * (8 * MIB),
        b" " * (40 * MIB),
    ]


def test_memory_is_bounded(server: ServerProcess, rest: httpx.Client) -> None:
    rest.post("/plan", json=plan())
    before = server.memory("VmHWM")

    def attack(bodies: list[bytes]) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for body in bodies:
                response = client.post("/plan", content=body, headers=JSON)
                assert response.status_code in (400, 413, 422), response.text

    bodies = bombs()
    _run_all([lambda: attack(bodies), lambda: attack(bodies[::-1])])
    assert server.memory("VmHWM") - before < GROWTH_MIB
    assert rest.post("/plan", json=plan()).status_code == 200


def test_memory_is_bounded_for_messages(server: ServerProcess, rpc: PlannerClient) -> None:
    before = server.memory("VmHWM")
    call = raw_call(rpc, "/lewm.v1.PlannerService/Plan")
    images = [json.loads(bomb)["frames"][0]["image"] for bomb in bombs()[:3]]
    messages = [
        *(pb.PlanRequest(frames=[pb.Frame(image=base64.b64decode(data))]) for data in images),
        *(pb.PlanRequest(model="m" * size) for size in (LIMIT - 100, LIMIT, 2 * LIMIT)),
        pb.PlanRequest(frames=[pb.Frame()] * 1_000_000),
        pb.PlanRequest(include=["x"] * 1_000_000),
    ]
    for message in messages:
        with pytest.raises(grpc.RpcError):
            call(message.SerializeToString(), timeout=60)
    assert server.memory("VmHWM") - before < GROWTH_MIB
    assert rpc.encode([picture(0)]).latents


def test_good_requests_are_not_harmed(server: ServerProcess, rest: httpx.Client) -> None:
    good = plan(frames=[pixels(5)], goal=pixels(6))
    expected = rest.post("/plan", json=good).json()
    stop = threading.Event()

    def plan_on(driver: Driver) -> None:
        for _ in range(12):
            answer = driver.ask("plan", good)
            assert answer.code == "ok", answer.detail
            same = np.float32(answer.document["actions"]) == np.float32(expected["actions"])
            assert same.all()
        assert not stop.is_set()

    def disturb(driver: Driver, seed: int) -> None:
        cases = random.Random(seed).sample(BAD, len(BAD))
        while not stop.is_set():
            for case in cases:
                if case.only not in (None, driver.name):
                    continue
                assert driver.ask(case.method, case.request).code == case.code
                if stop.is_set():
                    break

    def abort() -> None:
        while not stop.is_set():
            for port in (server.ready["http_port"], server.ready["grpc_port"]):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    linger = struct.pack("ii", 1, 0)  # reset, do not close
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    connection.sendall(b"POST /plan HTTP/1.1\r\nContent-Length: 9999\r\n\r\n{")

    with (
        httpx.Client(base_url=server.url, timeout=60) as bad_rest,
        httpx.Client(base_url=server.url, timeout=60) as good_rest,
        PlannerClient(server.target) as bad_rpc,
        PlannerClient(server.target) as good_rpc,
    ):
        bad = [
            lambda: disturb(RestDriver(bad_rest), 1),
            lambda: disturb(RpcDriver(bad_rpc), 2),
            abort,
        ]
        behind = threading.Thread(target=lambda: _run_all(bad))
        behind.start()
        try:
            _run_all([lambda: plan_on(RestDriver(good_rest)), lambda: plan_on(RpcDriver(good_rpc))])
        finally:
            stop.set()
            behind.join(60)
    assert "Traceback" not in server.errors()


def _run_all(tasks: list[Callable[[], None]]) -> None:
    """Run the tasks at once; the first failure is raised."""
    failures: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_every_bad_case_names_a_known_code() -> None:
    assert {case.code for case in BAD} <= set(CODES)
