"""Hostile requests: they do not harm good ones, and they cost little memory."""

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
from tests.lewm_serve.support.drivers import Driver, GrpcDriver, RestDriver, raw_call
from tests.lewm_serve.support.frames import base64_of, picture, pixels, png, png_chunk
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.lewm_serve.transports.contract_cases import CASES
from tests.patience import PATIENCE_S

MIB = 1 << 20

BODY_MEMORY_FACTOR = 4
"""A body is held as bytes, as text and as an array, and memory is not returned at once."""

SPARE_MIB = 64
MAX_BODY_BYTES = Settings.model_fields["max_body_bytes"].default
JSON = {"content-type": "application/json"}

BAD_CASES = [case for case in CASES if case.code != "ok"]


def image_bombs() -> list[bytes]:
    """Images that are small until they are decompressed."""
    text = png_chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(128 * MIB)))
    huge = png(30_000, 30_000, rows=bytes(32 * MIB))
    return [png(64, 64, text), huge, png(2**31 - 1, 1)]


def json_bombs() -> list[bytes]:
    """Bodies that are small until they are parsed, or large."""
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


def assert_memory_bounded(server: ServerProcess, size: int, send: Callable[[], object]) -> None:
    """A request of ``size`` bytes needs little more memory than that."""
    # Memory that the system has taken back from an idle server does not count.
    httpx.post(f"{server.url}/plan", json=plan(), timeout=PATIENCE_S).raise_for_status()
    allowed_mib = BODY_MEMORY_FACTOR * size // MIB + SPARE_MIB
    assert server.memory_growth_mib(send) < allowed_mib


def test_rest_requests_need_bounded_memory(server: ServerProcess, rest: httpx.Client) -> None:
    def send_refused(path: str, body: bytes) -> None:
        response = rest.post(path, content=body, headers=JSON)
        assert response.status_code in (400, 413, 422), response.text

    for image in image_bombs():
        body = json.dumps({"frames": [{"image": base64_of(image)}]}).encode()
        assert_memory_bounded(server, len(body), partial(send_refused, "/encode", body))
    for body in json_bombs():
        assert_memory_bounded(server, len(body), partial(send_refused, "/plan", body))
    assert rest.post("/plan", json=plan()).status_code == 200


def test_grpc_requests_need_bounded_memory(server: ServerProcess, rpc: PlannerClient) -> None:
    def send_refused(method: str, message: bytes) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            raw_call(rpc, f"/lewm.v1.PlannerService/{method}")(message)
        assert PlannerError(caught.value).status in (  # type: ignore[arg-type]
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )

    for image in image_bombs():
        message = pb.EncodeRequest(frames=[pb.Frame(image=image)]).SerializeToString()
        assert_memory_bounded(server, len(message), partial(send_refused, "Encode", message))
    for request in (
        *(
            pb.PlanRequest(model="m" * size)
            for size in (MAX_BODY_BYTES - 100, MAX_BODY_BYTES, 2 * MAX_BODY_BYTES)
        ),
        pb.PlanRequest(frames=[pb.Frame()] * 1_000_000),
        pb.PlanRequest(include=["x"] * 1_000_000),
    ):
        message = request.SerializeToString()
        assert_memory_bounded(server, len(message), partial(send_refused, "Plan", message))
    assert rpc.encode([picture(0)]).latents


def test_bad_requests_do_not_harm_good_ones(server: ServerProcess, rest: httpx.Client) -> None:
    good = plan(frames=[pixels(5)], goal=pixels(6))
    expected = rest.post("/plan", json=good).json()
    stop = threading.Event()

    def send_good_requests(driver: Driver) -> None:
        for _ in range(12):
            answer = driver.send("plan", good)
            assert answer.code == "ok", answer.detail
            actions = np.float32(answer.document["actions"])
            assert np.array_equal(actions, np.float32(expected["actions"]))

    def send_bad_requests(driver: Driver, seed: int) -> None:
        cases = random.Random(seed).sample(BAD_CASES, len(BAD_CASES))
        while not stop.is_set():
            for case in cases:
                if case.only not in (None, driver.name):
                    continue
                assert driver.send(case.method, case.request).code == case.code
                if stop.is_set():
                    break

    def abort_connections() -> None:
        while not stop.is_set():
            for port in (server.http_port, server.grpc_port):
                with socket.create_connection(
                    ("127.0.0.1", port), timeout=PATIENCE_S
                ) as connection:
                    linger = struct.pack("ii", 1, 0)  # the connection is reset, not closed
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    connection.sendall(b"POST /plan HTTP/1.1\r\nContent-Length: 9999\r\n\r\n{")

    with (
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as bad_rest,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as good_rest,
        PlannerClient(server.target) as bad_rpc,
        PlannerClient(server.target) as good_rpc,
        ThreadPoolExecutor(5) as pool,
    ):
        disturbances = [
            pool.submit(send_bad_requests, RestDriver(bad_rest), 1),
            pool.submit(send_bad_requests, GrpcDriver(bad_rpc), 2),
            pool.submit(abort_connections),
        ]
        try:
            for planning in [
                pool.submit(send_good_requests, RestDriver(good_rest)),
                pool.submit(send_good_requests, GrpcDriver(good_rpc)),
            ]:
                planning.result()
        finally:
            stop.set()
        for disturbance in disturbances:
            disturbance.result()
    assert "Traceback" not in server.errors()


def test_every_bad_case_has_a_known_code() -> None:
    assert {case.code for case in BAD_CASES} <= set(CODES)
