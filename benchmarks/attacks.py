"""Whether eight robots get their plans in time while one client attacks the server.

Eight robots send new 64 px frames with a goal over REST, five times a second each, with deadlines
of 100 ms. They run in a process of their own. An attacker in another process does one of `ATTACKS`
for `ATTACK_S` seconds. The benchmark reports which share of the robots' plans was complete and in
time, how far the server's memory grew, and how long a probe took at most.

Target: at least 95 % in time beside every attack. Six minutes.

    python -m benchmarks.attacks [NAME]… [--quick]

All traffic goes to 127.0.0.1. Every attack is bounded in time and in the number of its requests.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import multiprocessing
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.processes import forget_peaks, server_memory_mib
from lewm_serve.cli.local_server import HOST, LocalServer, local_server

ROBOTS = 8
ROBOT_PERIOD_S = 0.2
DEADLINE_MS = 100.0
REQUIRED_IN_TIME = 0.95
ATTACK_S = 12.0
QUICK_ATTACK_S = 3.0
SETTLE_S = 1.0
FRAME_SIZE = 64
BIG_SOLVER = {"samples": 4096, "iterations": 200, "horizon": 50}


def jpeg(size: int, seed: int, *, noise: bool = False, progressive: bool = False) -> bytes:
    """A JPEG image of random blots, or of noise."""
    generator = np.random.default_rng(seed)
    side = size if noise else 4
    pixels = generator.integers(0, 255, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, progressive=progressive)
    return buffer.getvalue()


def many_scans(size: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has this many."""
    data = jpeg(size, 1, noise=True, progressive=True)
    last = data.rindex(b"\xff\xda")
    body, scan = data[:last], data[last:-2]
    count = data.count(b"\xff\xda")
    return body + scan * max(1, scans - count + 1) + b"\xff\xd9"


def image(data: bytes) -> dict[str, str]:
    """A frame of a request."""
    return {"image": base64.b64encode(data).decode()}


def post(server: LocalServer, path: str, document: object) -> tuple[int, Any]:
    """Status and answer of one request on a connection of its own."""
    connection = http.client.HTTPConnection(HOST, server.http_port, timeout=60)
    try:
        body = json.dumps(document)
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def raw_request(server: LocalServer, path: str, document: object) -> bytes:
    """The bytes of a request."""
    body = json.dumps(document).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def connect(server: LocalServer) -> socket.socket:
    """A raw connection."""
    return socket.create_connection((HOST, server.http_port), timeout=30)


def small_plan(seed: int, **fields: Any) -> dict[str, Any]:
    """A plan request with small new frames."""
    return {
        "frames": [image(jpeg(FRAME_SIZE, seed))],
        "goal": image(jpeg(FRAME_SIZE, seed + 1)),
        **fields,
    }


# --- the attacks ------------------------------------------------------------------------------

Running = Callable[[], bool]


def until(running: Running, work: Callable[[int], object], pause_s: float = 0.0) -> None:
    """Repeat the work while the attack lasts; errors are the server's answers."""
    count = 0
    while running():
        with suppress(OSError, http.client.HTTPException, ValueError):
            work(count)
        count += 1
        time.sleep(pause_s)


def none(server: LocalServer, running: Running) -> None:
    """Nobody attacks."""
    until(running, lambda _: time.sleep(0.1))


def large_frames(server: LocalServer, running: Running) -> None:
    """/encode with 64 frames of 2,048 px each, twice; then nothing."""
    for seed in range(2):
        frames = [image(jpeg(2048, 100 * seed + index)) for index in range(64)]
        with suppress(OSError, http.client.HTTPException):
            post(server, "/encode", {"frames": frames})
    until(running, lambda _: time.sleep(0.1))


def long_plan(server: LocalServer, running: Running) -> None:
    """The largest plan that the limits allow, without a deadline, again and again."""
    until(running, lambda n: post(server, "/plan", small_plan(n, solver=BIG_SOLVER)), 0.1)


def longest_admitted_plan(server: LocalServer, running: Running) -> None:
    """Plans without a deadline that are as long as the server admits."""
    solver = dict(BIG_SOLVER, samples=512, iterations=200, horizon=5)

    def attack(count: int) -> None:
        status, _ = post(server, "/plan", small_plan(count, solver=solver))
        if status == 422:
            solver["iterations"] = max(1, solver["iterations"] // 2)

    until(running, attack)


def long_gradient(server: LocalServer, running: Running) -> None:
    """120 gradient plans of 8 kB at once."""
    solver = {"name": "gradient", **BIG_SOLVER}

    def attack(count: int) -> None:
        sockets = []
        for index in range(120):
            plan = small_plan(count, solver=solver, priority=index % 10)
            connection = connect(server)
            connection.sendall(raw_request(server, "/plan", plan))
            sockets.append(connection)
        time.sleep(2)
        for connection in sockets:
            connection.close()

    until(running, attack, 0.5)


def gradient_admitted(server: LocalServer, running: Running) -> None:
    """Gradient plans that the server admits, one after another."""
    solver = {"name": "gradient", "samples": 512, "iterations": 8, "horizon": 5}
    until(running, lambda n: post(server, "/plan", small_plan(n, solver=solver)))


def abandoned(server: LocalServer, running: Running) -> None:
    """A long plan, one pipelined GET, and the client goes away."""
    solver = {"samples": 512, "iterations": 100, "horizon": 5}

    def attack(count: int) -> None:
        with connect(server) as connection:
            plan = raw_request(server, "/plan", small_plan(count, solver=solver))
            connection.sendall(plan + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.2)

    until(running, attack, 0.1)


def made_up_latents(server: LocalServer, running: Running) -> None:
    """257 requests of 256 made-up latents."""

    def attack(count: int) -> None:
        if count < 257:
            values = np.random.default_rng(count).normal(size=(256, 128)).round(3).tolist()
            post(server, "/encode", {"frames": [{"latent": row} for row in values]})
        else:
            time.sleep(0.1)

    until(running, attack)


def trailers(server: LocalServer, running: Running) -> None:
    """A chunked body with 60 MB of trailer lines."""

    def attack(_count: int) -> None:
        with connect(server) as connection:
            connection.sendall(
                b"POST /plan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
            )
            for _ in range(60):
                connection.sendall(b"a:b\r\n" * 200_000)

    until(running, attack, 0.2)


def grpc_preface(path: bytes) -> bytes:
    """The start of an HTTP/2 connection with one gRPC call of an endless message."""

    # HPACK without Huffman coding, literal headers without indexing.
    def header(name: bytes, value: bytes) -> bytes:
        return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

    headers = (
        header(b":method", b"POST")
        + header(b":scheme", b"http")
        + header(b":path", path)
        + header(b":authority", b"x")
        + header(b"te", b"trailers")
        + header(b"content-type", b"application/grpc")
    )
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    frame = struct.pack(">I", len(headers))[1:] + b"\x01\x04" + struct.pack(">I", 1) + headers
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + frame


def send_whole(connection: socket.socket, frame: bytes) -> int:
    """Send a frame on a non-blocking connection, whole or not at all. Returns the bytes sent."""
    sent = connection.send(frame)
    if sent < len(frame):
        connection.settimeout(2)
        connection.sendall(frame[sent:])
        connection.setblocking(False)
    return len(frame)


def endless_messages(server: LocalServer, running: Running) -> None:
    """40 gRPC connections that send 50 MB of a message of 60 MB, and then wait."""

    def data(payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + b"\x00\x00" + struct.pack(">I", 1) + payload

    def attack(_count: int) -> None:
        sockets: list[socket.socket] = []
        for _ in range(40):
            connection = socket.create_connection((HOST, server.grpc_port), timeout=2)
            connection.sendall(grpc_preface(b"/lewm.v1.PlannerService/Plan"))
            connection.sendall(data(b"\x00" + struct.pack(">I", 60_000_000)))
            connection.setblocking(False)
            sockets.append(connection)
        left = dict.fromkeys(sockets, 50_000_000)
        chunk = data(bytes(16384))
        end = time.monotonic() + 6
        while time.monotonic() < end and running():
            for connection in sockets:
                if left[connection] > 0:
                    with suppress(OSError):
                        left[connection] -= send_whole(connection, chunk)
                with suppress(OSError):
                    connection.recv(65536)
            time.sleep(0.0005)
        for connection in sockets:
            connection.close()

    until(running, attack, 0.1)


def pipelining(server: LocalServer, running: Running) -> None:
    """13,500 GETs behind a long plan, on ten connections."""
    solver = {"samples": 512, "iterations": 100, "horizon": 5}

    def attack(count: int) -> None:
        sockets = []
        for index in range(10):
            connection = connect(server)
            plan = raw_request(server, "/plan", small_plan(10 * count + index, solver=solver))
            with suppress(OSError):
                connection.sendall(plan + b"GET / HTTP/1.1\r\n\r\n" * 13_500)
            sockets.append(connection)
        time.sleep(1)
        for connection in sockets:
            connection.close()

    until(running, attack, 0.1)


def endless_bodies(server: LocalServer, running: Running) -> None:
    """900 connections that have their answer and never end their body."""
    sockets = []
    for _ in range(900):
        with suppress(OSError):
            connection = connect(server)
            connection.sendall(
                b"POST /plan HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                b"Content-Length: 1000000\r\n\r\nabc"
            )
            sockets.append(connection)
    until(running, lambda _: time.sleep(0.1))
    for connection in sockets:
        connection.close()


def jpeg_scans(server: LocalServer, running: Running) -> None:
    """256 JPEG images of 100 scans in one body."""
    frame = many_scans(512, 100)
    comments = (bytes([255, 254, 0, 3, number]) for number in range(256))
    body = {"frames": [image(frame[:-2] + comment + b"\xff\xd9") for comment in comments]}
    until(running, lambda _: post(server, "/encode", body), 0.1)


def many_headers(server: LocalServer, running: Running) -> None:
    """95,000 headers in a request."""
    lines = b"".join(b"a:b\r\n" for _ in range(95_000))

    def attack(_count: int) -> None:
        with connect(server) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
            connection.recv(65536)

    until(running, attack)


def scrapes(server: LocalServer, running: Running) -> None:
    """Eight clients read /metrics without a pause."""

    def scrape() -> None:
        connection = http.client.HTTPConnection(HOST, server.http_port, timeout=30)

        def once(_count: int) -> None:
            connection.request("GET", "/metrics")
            connection.getresponse().read()

        until(running, once)

    threads = [threading.Thread(target=scrape, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


ATTACKS: dict[str, Callable[[LocalServer, Running], None]] = {
    attack.__name__: attack
    for attack in (
        none,
        large_frames,
        long_plan,
        longest_admitted_plan,
        long_gradient,
        gradient_admitted,
        abandoned,
        made_up_latents,
        trailers,
        endless_messages,
        pipelining,
        endless_bodies,
        jpeg_scans,
        many_headers,
        scrapes,
    )
}


# --- the robots -------------------------------------------------------------------------------


@dataclass
class Result:
    """What the robots, the probe and the memory showed."""

    plans: int = 0
    in_time: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    probe_ms: float = 0.0
    probe_failures: int = 0
    memory_growth_mib: int = 0
    memory_left_mib: int = 0


def drive_robots(server: LocalServer, seconds: float, results: Any) -> None:
    """Drive the robots and a probe for a while; put a `Result` into the queue."""
    result = Result()
    lock = threading.Lock()
    end = time.monotonic() + seconds
    goal = image(jpeg(FRAME_SIZE, 12345))

    def robot(number: int) -> None:
        connection = http.client.HTTPConnection(HOST, server.http_port, timeout=5)
        due = time.monotonic() + number * ROBOT_PERIOD_S / ROBOTS
        count = 0
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + ROBOT_PERIOD_S, time.monotonic())
            frame = image(jpeg(FRAME_SIZE, 1_000_000 + 10_000 * number + count))
            document = {"frames": [frame], "goal": goal, "deadline_ms": DEADLINE_MS}
            count += 1
            start = time.monotonic()
            try:
                headers = {"content-type": "application/json"}
                connection.request("POST", "/plan", json.dumps(document), headers)
                answer = json.loads(connection.getresponse().read())
                outcome = answer.get("code") or answer["status"]
                if "code" in answer:
                    outcome += ": " + answer["detail"][:60]
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = type(error).__name__
                connection.close()
                connection = http.client.HTTPConnection(HOST, server.http_port, timeout=5)
            took_ms = 1000 * (time.monotonic() - start)
            with lock:
                result.plans += 1
                good = outcome == "completed" and took_ms <= DEADLINE_MS
                result.in_time += good
                if outcome == "completed" and not good:
                    outcome = "late"
                result.outcomes[str(outcome)] = result.outcomes.get(str(outcome), 0) + 1

    def probe() -> None:
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                connection = http.client.HTTPConnection(HOST, server.http_port, timeout=5)
                connection.request("GET", "/healthz")
                if connection.getresponse().status != 200:
                    result.probe_failures += 1
                connection.close()
            except (OSError, http.client.HTTPException):
                result.probe_failures += 1
            result.probe_ms = max(result.probe_ms, 1000 * (time.monotonic() - start))
            time.sleep(0.25)

    threads = [threading.Thread(target=robot, args=(number,)) for number in range(ROBOTS)]
    threads.append(threading.Thread(target=probe))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(result)


def attack_process(name: str, server: LocalServer, seconds: float) -> None:
    """Run one attack for a while."""
    end = time.monotonic() + seconds
    ATTACKS[name](server, lambda: time.monotonic() < end)


def run_attack(name: str, seconds: float) -> Result:
    """Attack a server of its own."""
    context = multiprocessing.get_context("spawn")
    with local_server(log_level="error") as server:
        pid = server.pid
        for seed in range(5):
            post(server, "/plan", small_plan(seed))
        forget_peaks(pid)
        before = server_memory_mib(pid)
        results = context.Queue()
        attacker = context.Process(target=attack_process, args=(name, server, seconds + SETTLE_S))
        attacker.start()
        time.sleep(SETTLE_S)
        robots = context.Process(target=drive_robots, args=(server, seconds, results))
        robots.start()
        result: Result = results.get(timeout=seconds + 120)
        robots.join()
        result.memory_growth_mib = server_memory_mib(pid, peak=True) - before
        attacker.join(30)
        if attacker.is_alive():
            attacker.kill()
        time.sleep(3)
        result.memory_left_mib = server_memory_mib(pid) - before
        return result


def main() -> int:
    """Run the attacks and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    failed = []
    print(f"{'attack':24}  in time  plans     probe      peak      left  outcomes")
    for name in arguments.names or ATTACKS:
        result = run_attack(name, QUICK_ATTACK_S if arguments.quick else ATTACK_S)
        share = result.in_time / max(1, result.plans)
        print(
            f"{name:24} {share:8.1%} {result.plans:6} {result.probe_ms:6.0f} ms"
            f" {result.memory_growth_mib:5} MiB {result.memory_left_mib:5} MiB"
            f"  {result.outcomes} probe failures {result.probe_failures}",
            flush=True,
        )
        if share < REQUIRED_IN_TIME:
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
