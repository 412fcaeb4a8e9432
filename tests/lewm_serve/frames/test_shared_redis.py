"""Two real servers with one real Redis, which then fails in every way under load."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import pytest

from tests.lewm_serve.support.frames import LATENT_DIM, latent, pixels
from tests.lewm_serve.support.redis_process import PASSWORD, RedisProcess
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

TIMEOUT_S = 3.0
"""Long, so that the servers hardly ever blame Redis for what a busy machine delays."""

CLIENTS = 3
ANSWERS_PER_STATE = 16
"""How many requests are answered in each state of Redis before the next."""


@dataclass
class Servers:
    """Two servers of one model, each with a memory of its own."""

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
        """The second server's answer to a request whose latents only the first server encoded."""
        answers: list[httpx.Response] = []

        def is_known() -> bool:
            # If Redis was away for a moment, this makes the first server write again.
            answer_of(self.first, "encode", frames)
            answers.append(post(self.second, endpoint, named))
            return answers[-1].status_code == 200

        wait_until(is_known, "the second server knows the latent ids")
        answer: dict[str, Any] = answers[-1].json()
        return answer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Servers]:
    """The servers, both connected to Redis."""
    folder = tmp_path_factory.mktemp("servers")
    flags = ("--models", str(model_folder), "--redis-timeout-ms", str(1000 * TIMEOUT_S))
    with RedisProcess() as redis:
        url = {"LEWM_REDIS_URL": redis.url}
        with (
            ServerProcess(folder / "first", *flags, **url) as first,
            ServerProcess(folder / "second", *flags, **url) as second,
        ):
            servers = Servers(redis, first.wait_ready(), second.wait_ready())
            for server in (first, second):
                wait_until(lambda: servers.is_up(server), "connected")  # noqa: B023
            yield servers
            for server in (first, second):
                assert server.stop() == 0
                assert PASSWORD not in server.errors()
                assert "Traceback" not in server.errors()


def post(server: ServerProcess, endpoint: str, document: dict[str, Any]) -> httpx.Response:
    """The response, whatever its status."""
    return httpx.post(f"{server.url}/{endpoint}", json=document, timeout=PATIENCE_S)


def answer_of(server: ServerProcess, endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request that must succeed."""
    response = post(server, endpoint, document)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_latents_are_shared(servers: Servers) -> None:
    first, second = servers.first, servers.second
    frames = {"frames": [pixels(1), pixels(2)]}
    encoded = answer_of(first, "encode", frames)["latents"]
    assert [item["cached"] for item in encoded] == [False, False]
    # The second server has not seen the frames yet, so it must get the latents from Redis.
    start, goal = ({"latent_id": item["latent_id"]} for item in encoded)
    by_ids = servers.through_redis(frames, "plan", plan(frames=[start], goal=goal))
    found = answer_of(second, "encode", frames)["latents"]
    assert found == [item | {"cached": True} for item in encoded]
    by_frames = answer_of(first, "plan", plan(frames=[pixels(1)], goal=pixels(2)))
    assert by_ids["actions"] == by_frames["actions"]


def test_latents_of_clients_are_shared(servers: Servers) -> None:
    frames = {"frames": [latent(0.25)]}
    (sent,) = answer_of(servers.first, "encode", frames)["latents"]
    by_id = {"frames": [{"latent_id": sent["latent_id"]}]}
    (found,) = servers.through_redis(frames, "encode", by_id)["latents"]
    assert found["latent"] == [0.25] * LATENT_DIM


def test_an_unknown_id_is_unknown_with_redis_too(servers: Servers) -> None:
    for latent_id in ("0" * 32, "x", "*", "é\n"):
        document = {"frames": [{"latent_id": latent_id}]}
        response = post(servers.first, "encode", document)
        assert (response.status_code, response.json()["code"]) == (404, "unknown_latent")


def test_frames_in_flight_are_encoded_once(servers: Servers) -> None:
    rows = 'lewm_batch_rows_sum{kind="encode"}'
    before = servers.second.metric(rows)
    asked = [{"frames": [pixels(200 + index % 3), pixels(200)]} for index in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda one: answer_of(servers.second, "encode", one), asked))
    assert servers.second.metric(rows) - before == 3
    assert len({answer["latents"][1]["latent_id"] for answer in answers}) == 1


class Load:
    """Clients in closed loops. Each sends frames of its own and a goal that all share."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.statuses: Counter[int] = Counter()
        self.decode_s: list[float] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_requests, args=(number,))
            for number in range(CLIENTS)
        ]

    def _send_requests(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S) as client:
            seed = 1000 * (number + 1)
            while not self._stopping.is_set():
                seed += 1
                frames, goal = [pixels(seed)], pixels(0)
                if seed % 4 == 0:
                    response = client.post("/plan", json=plan(frames=frames, goal=goal))
                else:
                    response = client.post("/encode", json={"frames": [*frames, goal]})
                self.statuses[response.status_code] += 1
                if response.status_code == 200:
                    self.decode_s.append(response.json()["timing_ms"]["decode"] / 1000)

    def run(self, state: str) -> list[float]:
        """Wait for answers. Returns the seconds that naming, looking up and decoding took."""
        before = len(self.decode_s)
        wait_until(
            lambda: len(self.decode_s) >= before + ANSWERS_PER_STATE, f"answers while {state}"
        )
        return self.decode_s[before:]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


class Failure(NamedTuple):
    """One way in which Redis fails, how it recovers, and whether it counts as up meanwhile."""

    state: str
    begin: Callable[[], None]
    end: Callable[[], None]
    stays_up: bool = False


def test_no_request_fails_whatever_redis_does(servers: Servers) -> None:
    redis, server = servers.redis, servers.first
    failures = (
        Failure("killed", redis.kill, redis.start),
        Failure("frozen", redis.freeze, redis.thaw),
        Failure("full", lambda: redis.set_full(True), lambda: redis.set_full(False), stays_up=True),
        Failure(
            "locked", lambda: redis.set_password("changed"), lambda: redis.set_password(PASSWORD)
        ),
    )
    with Load(server.url) as load:
        usual_s = median(load.run("well"))
        for state, begin, end, stays_up in failures:
            errors = servers.errors()
            begin()
            try:
                decode_s = load.run(state)
                wait_until(lambda: servers.errors() > errors, f"errors while {state}")  # noqa: B023
                wait_until(
                    lambda: servers.is_up(server) is stays_up,  # noqa: B023
                    f"{'up' if stays_up else 'down'} while {state}",
                )
            finally:
                end()
            # Only requests that came before the failure was noticed wait for Redis.
            assert median(decode_s) < usual_s + TIMEOUT_S, state
            wait_until(lambda: servers.is_up(server), f"up after {state}")
        load.run("well again")
    assert set(load.statuses) == {200}
    assert PASSWORD not in httpx.get(f"{server.url}/metrics").text
