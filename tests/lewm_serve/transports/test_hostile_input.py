"""Bad requests beside good ones: the good are not harmed, and the memory does not grow."""

import json
import random
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import httpx
import numpy as np
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlannerError
from lewm_serve.errors import CODES
from lewm_serve.settings import Settings
from tests.lewm_serve.support.requests import CASES, plan
from tests.lewm_serve.support.drivers import Driver, RestDriver, GrpcDriver, raw_call
from tests.lewm_serve.support.frames import base64_of, chunk, picture, pixels, png
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

MIB = 1 << 20
HELD = 4
"""A body is held as received, as text and as an array, and memory is not given back at once."""
SPARE_MIB = 64
LIMIT = Settings.model_fields["max_body_bytes"].default
JSON = {"content-type": "application/json"}

BAD = [case for case in CASES if case.code != "ok"]


def image_bombs() -> list[bytes]:
    """Images that are small until somebody unfolds them."""
    text = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(128 * MIB)))
    huge = png(30_000, 30_000, rows=bytes(32 * MIB))
    return [png(64, 64, text), huge, png(2**31 - 1, 1)]


def bombs() -> list[bytes]:
    """Bodies that are small until somebody makes objects of them, or large."""
    return [
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


def assert_bounded(server: ServerProcess, size: int, send: Callable[[], object]) -> None:
    """The server needs little more memory for a request than its size in bytes."""
    # What the system took back from a server that rested does not count.
    httpx.post(f"{server.url}/plan", json=plan(), timeout=PATIENCE_S).raise_for_status()
    assert server.memory_growth_mib(send) < HELD * size // MIB + SPARE_MIB


def test_memory_is_bounded(server: ServerProcess, rest: httpx.Client) -> None:
    def refused(path: str, body: bytes) -> None:
        response = rest.post(path, content=body, headers=JSON)
        assert response.status_code in (400, 413, 422), response.text

    for image in image_bombs():
        body = json.dumps({"frames": [{"image": base64_of(image)}]}).encode()
        assert_bounded(server, len(body), partial(refused, "/encode", body))
    for body in bombs():
        assert_bounded(server, len(body), partial(refused, "/plan", body))
    assert rest.post("/plan", json=plan()).status_code == 200


def test_memory_is_bounded_for_messages(server: ServerProcess, rpc: PlannerClient) -> None:
    def refused(method: str, message: bytes) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            raw_call(rpc, f"/lewm.v1.PlannerService/{method}")(message)
        assert PlannerError(caught.value).status in (  # type: ignore[arg-type]
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )

    for image in image_bombs():
        message = pb.EncodeRequest(frames=[pb.Frame(image=image)]).SerializeToString()
        assert_bounded(server, len(message), partial(refused, "Encode", message))
    for request in (
        *(pb.PlanRequest(model="m" * size) for size in (LIMIT - 100, LIMIT, 2 * LIMIT)),
        pb.PlanRequest(frames=[pb.Frame()] * 1_000_000),
        pb.PlanRequest(include=["x"] * 1_000_000),
    ):
        message = request.SerializeToString()
        assert_bounded(server, len(message), partial(refused, "Plan", message))
    assert rpc.encode([picture(0)]).latents


def test_good_requests_are_not_harmed(server: ServerProcess, rest: httpx.Client) -> None:
    good = plan(frames=[pixels(5)], goal=pixels(6))
    expected = rest.post("/plan", json=good).json()
    stop = threading.Event()

    def plan_on(driver: Driver) -> None:
        for _ in range(12):
            answer = driver.send("plan", good)
            assert answer.code == "ok", answer.detail
            same = np.float32(answer.document["actions"]) == np.float32(expected["actions"])
            assert same.all()

    def disturb(driver: Driver, seed: int) -> None:
        cases = random.Random(seed).sample(BAD, len(BAD))
        while not stop.is_set():
            for case in cases:
                if case.only not in (None, driver.name):
                    continue
                assert driver.send(case.method, case.request).code == case.code
                if stop.is_set():
                    break

    def abort() -> None:
        while not stop.is_set():
            for port in (server.http_port, server.grpc_port):
                with socket.create_connection(
                    ("127.0.0.1", port), timeout=PATIENCE_S
                ) as connection:
                    linger = struct.pack("ii", 1, 0)  # reset, do not close
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    connection.sendall(b"POST /plan HTTP/1.1\r\nContent-Length: 9999\r\n\r\n{")

    with (
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as bad_rest,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as good_rest,
        PlannerClient(server.target) as bad_rpc,
        PlannerClient(server.target) as good_rpc,
        ThreadPoolExecutor(5) as pool,
    ):
        bad = [
            pool.submit(disturb, RestDriver(bad_rest), 1),
            pool.submit(disturb, GrpcDriver(bad_rpc), 2),
            pool.submit(abort),
        ]
        try:
            for planning in [
                pool.submit(plan_on, RestDriver(good_rest)),
                pool.submit(plan_on, GrpcDriver(good_rpc)),
            ]:
                planning.result()
        finally:
            stop.set()
        for disturbing in bad:
            disturbing.result()
    assert "Traceback" not in server.errors()


def test_every_bad_case_names_a_known_code() -> None:
    assert {case.code for case in BAD} <= set(CODES)
