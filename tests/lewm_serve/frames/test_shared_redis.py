"""Two real servers over one real Redis, which is then hurt in every way under load."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.server_process import ServerProcess
from tests.lewm_serve.support.redis_process import PASSWORD, RedisProcess
from tests.patience import PATIENCE_S, wait_until

TIMEOUT_S = 3.0
"""Long, so that a busy machine hardly ever takes itself for a Redis that fails."""
CLIENTS = 3
REQUESTS = 16
"""Answered in each state before the next."""


@dataclass
class Servers:
    """Two servers of one model, their memories apart."""

    redis: RedisProcess
    first: ServerProcess
    second: ServerProcess

    def is_up(self, server: ServerProcess) -> bool:
        return server.metric('lewm_cache_up{tier="redis"}') == 1

    def errors(self) -> float:
        return self.first.metric('lewm_cache_errors_total{tier="redis"}')

    def through_redis(
        self, frames: dict[str, Any], endpoint: str, named: dict[str, Any]
    ) -> dict[str, Any]:
        """The second server's answer to names that the first gave, once it has heard of them."""
        answers: list[httpx.Response] = []

        def known() -> bool:
            ask(self.first, "encode", frames)  # and it tells a Redis that it lost sight of anew
            answers.append(post(self.second, endpoint, named))
            return answers[-1].status_code == 200

        wait_until(known, "the other server knows the names")
        answer: dict[str, Any] = answers[-1].json()
        return answer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Servers]:
    """The servers, connected to Redis."""
    folder = tmp_path_factory.mktemp("servers")
    flags = ("--models", str(model_folder), "--redis-timeout-ms", str(1000 * TIMEOUT_S))
    with RedisProcess() as redis:
        url = {"LEWM_REDIS_URL": redis.url}
        with (
            ServerProcess(folder / "first", *flags, **url) as first,
            ServerProcess(folder / "second", *flags, **url) as second,
        ):
            both = Servers(redis, first.wait_ready(), second.wait_ready())
            for server in (first, second):
                wait_until(lambda: both.is_up(server), "connected")  # noqa: B023
            yield both
            for server in (first, second):
                assert server.stop() == 0
                assert PASSWORD not in server.errors()
                assert "Traceback" not in server.errors()


def post(server: ServerProcess, endpoint: str, document: dict[str, Any]) -> httpx.Response:
    """Whatever comes back."""
    return httpx.post(f"{server.url}/{endpoint}", json=document, timeout=PATIENCE_S)


def ask(server: ServerProcess, endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
    """An answer, which must be there."""
    response = post(server, endpoint, document)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_latents_are_shared(servers: Servers) -> None:
    first, second = servers.first, servers.second
    frames = {"frames": [pixels(1), pixels(2)]}
    made = ask(first, "encode", frames)["latents"]
    assert [item["cached"] for item in made] == [False, False]
    # Named before it is shown: each name must have come by way of Redis.
    start, goal = ({"latent_id": item["latent_id"]} for item in made)
    named = servers.through_redis(frames, "plan", plan(frames=[start], goal=goal))
    found = ask(second, "encode", frames)["latents"]
    assert found == [item | {"cached": True} for item in made]
    shown = ask(first, "plan", plan(frames=[pixels(1)], goal=pixels(2)))
    assert named["actions"] == shown["actions"]


def test_latents_of_clients_are_shared(servers: Servers) -> None:
    mine = {"frames": [{"latent": [0.25] * 128}]}
    (made,) = ask(servers.first, "encode", mine)["latents"]
    named = {"frames": [{"latent_id": made["latent_id"]}]}
    (found,) = servers.through_redis(mine, "encode", named)["latents"]
    assert found["latent"] == [0.25] * 128


def test_an_unknown_name_is_still_unknown(servers: Servers) -> None:
    for name in ("0" * 32, "x", "*", "é\n"):
        document = {"frames": [{"latent_id": name}]}
        response = post(servers.first, "encode", document)
        assert (response.status_code, response.json()["code"]) == (404, "unknown_latent")


def test_frames_in_flight_are_encoded_once(servers: Servers) -> None:
    rows = 'lewm_batch_rows_sum{kind="encode"}'
    before = servers.second.metric(rows)
    asked = [{"frames": [pixels(200 + index % 3), pixels(200)]} for index in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda one: ask(servers.second, "encode", one), asked))
    assert servers.second.metric(rows) - before == 3
    assert len({answer["latents"][1]["latent_id"] for answer in answers}) == 1


class Load:
    """Clients in closed loops, each with frames of its own and a goal that all share."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.codes: Counter[int] = Counter()
        self.decode_s: list[float] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S) as client:
            seed = 1000 * (number + 1)
            while not self._stopping.is_set():
                seed += 1
                frames = [pixels(seed)]
                what, asked = (
                    ("plan", plan(frames=frames, goal=pixels(0)))
                    if seed % 4 == 0
                    else ("encode", {"frames": [*frames, pixels(0)]})
                )
                response = client.post(f"/{what}", json=asked)
                self.codes[response.status_code] += 1
                if response.status_code == 200:
                    self.decode_s.append(response.json()["timing_ms"]["decode"] / 1000)

    def run(self, what: str) -> list[float]:
        """Wait for answers; the seconds that naming, looking up and decoding took in each."""
        before = len(self.decode_s)
        wait_until(lambda: len(self.decode_s) >= before + REQUESTS, f"answers {what}")
        return self.decode_s[before:]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def test_no_request_fails_whatever_redis_does(servers: Servers) -> None:
    redis, server = servers.redis, servers.first
    hurts: list[tuple[str, Callable[[], None], Callable[[], None], bool]] = [
        ("killed", redis.kill, redis.start, False),
        ("frozen", redis.freeze, redis.thaw, False),
        ("full", lambda: redis.fill(True), lambda: redis.fill(False), True),
        (
            "locked",
            lambda: redis.set_password("changed"),
            lambda: redis.set_password(PASSWORD),
            False,
        ),
    ]
    with Load(server.url) as load:
        usual = median(load.run("well"))
        for what, hurt, heal, stays_up in hurts:
            errors = servers.errors()
            hurt()
            try:
                taken = load.run(what)
                wait_until(lambda: servers.errors() > errors, f"errors while {what}")  # noqa: B023
                seen = "up" if stays_up else "down"
                wait_until(lambda: servers.is_up(server) is stays_up, f"{seen} while {what}")  # noqa: B023
            finally:
                heal()
            # Only those wait who had asked before the failure was seen.
            assert median(taken) < usual + TIMEOUT_S, what
            wait_until(lambda: servers.is_up(server), f"back after {what}")
        load.run("well again")
    assert set(load.codes) == {200}
    assert PASSWORD not in httpx.get(f"{server.url}/metrics").text
