"""Random and damaged requests: how the server answers them, and whether its memory stays flat.

Each request is a valid one of `/encode`, `/predict` or `/plan`, of which some values are replaced
by odd ones, or whose bytes are damaged. Every answer must be below 500, or 504 `deadline_exceeded`
for a plan with a tiny deadline. The memory is compared after each quarter of the requests.

    python -m benchmarks.fuzz [--requests 20000] [--seed 0]

All traffic goes to 127.0.0.1. Five minutes.
"""

from __future__ import annotations

import argparse
import copy
import http.client
import json
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from benchmarks.attacks import FRAME_SIZE, image, jpeg
from benchmarks.processes import server_memory_mib
from lewm_serve.cli.local_server import HOST, LocalServer, local_server

CLIENTS = 4
QUARTERS = 4
MAX_GROWTH_MIB = 64
"""How far the memory may grow from the end of the first quarter to the end of the last."""

DAMAGED_SHARE = 0.1
"""The share of the requests whose bytes are damaged instead of their values."""

ODD_VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda _: None,
    lambda _: [],
    lambda _: {},
    lambda _: "",
    lambda _: True,
    lambda _: "\ud800",
    lambda chance: "x" * chance.choice([1, 100, 10_000]),
    lambda chance: chance.choice([0, -1, 2**31, 2**63, 2**64, 10**400]),
    lambda chance: chance.choice([0.5, -0.0, 1e-320, 1e308, -1e38, 3e38, 1e39]),
    lambda chance: [[chance.uniform(-1, 1)] * chance.randint(0, 3)] * chance.randint(0, 30),
    lambda chance: [chance.choice([None, "a", 1e30, [1]]) for _ in range(chance.randint(1, 5))],
    lambda chance: {chance.choice(["image", "latent", "latent_id", "pixels", "x"]): "AAAA"},
    lambda chance: {"image": "/9j/" + "A" * chance.randint(0, 300)},
    lambda chance: {"latent": [chance.choice([0.1, 1e30, -1e4])] * chance.choice([1, 128])},
)


def documents() -> dict[str, dict[str, Any]]:
    """One valid document of each endpoint."""
    frame = image(jpeg(FRAME_SIZE, 1))
    actions = [[0.1, 0.2]] * 10
    return {
        "/encode": {"frames": [frame, frame]},
        "/predict": {"frames": [frame], "actions": actions},
        "/plan": {
            "frames": [frame, frame],
            "past_actions": actions[:5],
            "goal": frame,
            "solver": {"name": "icem", "samples": 16, "iterations": 2, "horizon": 3},
            "warm_start": actions,
            "seed": 1,
            "deadline_ms": 1000,
            "min_iterations": 1,
            "priority": 5,
            "include": ["trajectory"],
            "fallback": {"controller": "hold"},
        },
    }


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a document with every key or index in it."""
    keys: Any = document if isinstance(document, dict) else range(len(document))
    for key in list(keys):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])


def mutate(document: dict[str, Any], chance: random.Random) -> bytes:
    """A document with one to three odd values, as JSON."""
    document = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        container, key = chance.choice(list(places(document)) or [(document, "x")])
        if chance.random() < 0.2 and isinstance(container, dict):
            container.pop(key, None)
        else:
            with suppress(IndexError):
                container[key] = chance.choice(ODD_VALUES)(chance)
    body = json.dumps(document)
    return body.replace("1e+308", chance.choice(["1e309", "NaN", "1e+308"])).encode()


def damage(data: bytes, chance: random.Random) -> bytes:
    """Bytes with some of them changed, left out or repeated."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 20)):
        at = chance.randrange(len(changed))
        end = min(len(changed), at + chance.randint(1, 50))
        match chance.randint(0, 2):
            case 0:
                changed[at] = chance.randrange(256)
            case 1 if len(changed) > 100:
                del changed[at:end]
            case _:
                changed[at:at] = changed[at:end]
    return bytes(changed)


def send_document(server: LocalServer, path: str, body: bytes) -> str:
    """Send a request, and return its status and code."""
    connection = http.client.HTTPConnection(HOST, server.http_port, timeout=60)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        return f"{response.status} {answer.get('code', answer.get('status', 'ok'))}"
    finally:
        connection.close()


def send_damaged(server: LocalServer, path: str, body: bytes, chance: random.Random) -> str:
    """Send a request whose bytes are damaged, and return the status if there is one."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = damage(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, chance)
    with socket.create_connection((HOST, server.http_port), timeout=60) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    return answer[9:12].decode("ascii", "replace") if answer else "closed"


def run_quarter(server: LocalServer, requests: int, seed: int) -> Counter[str]:
    """Send requests from several clients, and count the answers."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def run_client(number: int) -> None:
        chance = random.Random(f"{seed}:{number}")
        for _ in range(requests // CLIENTS):
            path, document = chance.choice(list(documents().items()))
            body = mutate(document, chance)
            try:
                if chance.random() < DAMAGED_SHARE:
                    outcome = send_damaged(server, path, body, chance)
                else:
                    outcome = send_document(server, path, body)
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
            with lock:
                counts[outcome] += 1

    threads = [threading.Thread(target=run_client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def main() -> int:
    """Send the requests and print what came of them. The exit status is 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    memory = []
    with local_server(log_level="error") as server:
        pid = server.pid
        for quarter in range(QUARTERS):
            seed = QUARTERS * arguments.seed + quarter
            counts += run_quarter(server, arguments.requests // QUARTERS, seed)
            memory.append(server_memory_mib(pid))
            print(f"{sum(counts.values())} requests, {memory[-1]} MiB", flush=True)
    for outcome, count in counts.most_common():
        print(f"{count:7} {outcome}")
    faults = [name for name in counts if name[0] == "5" and "deadline_exceeded" not in name]
    is_flat = memory[-1] - memory[0] <= MAX_GROWTH_MIB
    print(f"faults: {faults or 'none'}; memory {'flat' if is_flat else 'GROWS'}")
    return 0 if not faults and is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
