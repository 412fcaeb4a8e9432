"""A server under load while what it depends on fails: 10,000 requests, a part for each fault.

In each test all requests must end as they should, the server must show that the fault has reached
it, and afterwards it must plan as fast as a server that nothing has happened to.
"""

import os
import resource
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadtests.calls import REFUSALS
from loadtests.load import running_load
from loadtests.server_metrics import increases, scrape
from loadtests.spec import Address, LoadSpec
from loadtests.speed import compare
from tests.lewm_serve.support.redis_process import PASSWORD, RedisProcess
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

REQUESTS = 1250
"""Requests of one fault. Eight faults make 10,000."""

QUARTER = REQUESTS // 4
POLL_S = 0.25

COMPARED_PLANS = 200
MAX_SLOWDOWN = 1.5
"""The median latency afterwards relative to that of a server that nothing has happened to."""

PROMISED = {"ok", "cancelled", *REFUSALS} | {
    "malformed_json",
    "malformed_message",
    "missing_field",
    "unsupported_media_type",
    "body_too_large",
    "method_not_allowed",
    "unknown_route",
    "unknown_field",
    "invalid_image",
    "shape_mismatch",
    "unknown_latent",
    "unknown_model",
    "unknown_solver",
    "out_of_range",
    "wrong_type",
}
"""The codes that the requests of the load deserve. A slow machine may refuse some of them."""

DROPPED = "lewm_log_lines_dropped_total"
REDIS_UP, REDIS_ERRORS = (f'lewm_cache_{name}{{tier="redis"}}' for name in ("up", "errors_total"))

CLOCK_SOURCE = Path(__file__).parent / "support" / "jumping_clock.cpp"
DAY_S = 86_400


def spec_of(server: ServerProcess, **changes: float) -> LoadSpec:
    """Robots without a pause between their requests, and clients of all other kinds."""
    fields = {
        "http": f"127.0.0.1:{server.http_port}",
        "grpc": server.target,
        "requests": REQUESTS,
        "seconds": 600.0,
        "robots": 8,
        "robot_hz": 50.0,
        "arrivals_per_s": 0.0,
        "deadline_ms": 30_000.0,
    }
    return LoadSpec(**fields | changes)  # type: ignore[arg-type]


@contextmanager
def under_load(
    server: ServerProcess, undisturbed: ServerProcess
) -> Iterator[Callable[[int], None]]:
    """Put the load on a server while the block disturbs it, then check that it did no harm.

    The block gets a function that waits until so many requests have been answered.
    """
    before = scrape(server.url)

    def answered() -> float:
        grown = increases(before, scrape(server.url))
        return sum(value for (name, _), value in grown.items() if name == "lewm_requests_total")

    def wait_answered(count: int) -> None:
        end = time.monotonic() + PATIENCE_S
        while answered() < count:
            assert time.monotonic() < end, f"fewer than {count} requests were answered"
            time.sleep(POLL_S)

    with running_load(spec_of(server)) as load:
        wait_answered(QUARTER)
        yield wait_answered
        calls = load.wait().calls
    assert len(calls) == REQUESTS
    failed = Counter((call.kind, call.code) for call in calls if call.is_failed)
    assert not failed
    codes = {
        dict(labels)["code"]
        for name, labels in increases(before, scrape(server.url))
        if name == "lewm_requests_total"
    }
    assert codes <= PROMISED
    assert server.get("/healthz").status_code == server.get("/readyz").status_code == 200
    after_fault, usual = (Address("127.0.0.1", one.http_port) for one in (server, undisturbed))
    assert compare(after_fault, usual, COMPARED_PLANS).ratio(50) <= MAX_SLOWDOWN


@dataclass
class WithRedis:
    """A server and its Redis."""

    server: ServerProcess
    redis: RedisProcess

    def is_up(self) -> bool:
        """Whether the server uses Redis."""
        return self.server.metric(REDIS_UP) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that nothing happens to."""
    with ServerProcess(tmp_path_factory.mktemp("undisturbed") / "log") as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def with_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithRedis]:
    log = tmp_path_factory.mktemp("redis") / "log"
    with RedisProcess() as redis, ServerProcess(log, LEWM_REDIS_URL=redis.url) as server:
        pair = WithRedis(server.wait_ready(), redis)
        wait_until(pair.is_up, "connected")
        yield pair
        assert server.stop() == 0
        assert "Traceback" not in server.errors()
        assert PASSWORD not in server.errors()


def check_redis_fault(
    pair: WithRedis,
    undisturbed: ServerProcess,
    begin: Callable[[], None],
    end: Callable[[], None],
    *,
    stays_up: bool = False,
) -> None:
    """Redis fails during half of the load."""
    with under_load(pair.server, undisturbed) as wait_answered:
        errors = pair.server.metric(REDIS_ERRORS)
        begin()
        try:
            wait_answered(3 * QUARTER)
            assert pair.server.metric(REDIS_ERRORS) > errors
            wait_until(lambda: pair.is_up() is stays_up, f"up is {stays_up}")
        finally:
            end()
        wait_until(pair.is_up, "Redis is used again")


def test_redis_is_killed(with_redis: WithRedis, undisturbed: ServerProcess) -> None:
    check_redis_fault(with_redis, undisturbed, with_redis.redis.kill, with_redis.redis.start)


def test_redis_is_frozen(with_redis: WithRedis, undisturbed: ServerProcess) -> None:
    check_redis_fault(with_redis, undisturbed, with_redis.redis.freeze, with_redis.redis.thaw)


def test_redis_is_full(with_redis: WithRedis, undisturbed: ServerProcess) -> None:
    redis = with_redis.redis
    check_redis_fault(
        with_redis,
        undisturbed,
        begin=lambda: redis.set_full(True),
        end=lambda: redis.set_full(False),
        stays_up=True,
    )


def test_all_clients_of_a_process_vanish(with_redis: WithRedis, undisturbed: ServerProcess) -> None:
    server = with_redis.server
    descriptors = Path("/proc", str(server.process.pid), "fd")
    before = len(list(descriptors.iterdir()))
    with under_load(server, undisturbed) as wait_answered:
        for count in (2 * QUARTER, 4 * QUARTER, 6 * QUARTER):
            with running_load(spec_of(server, robots=20, leaving_clients=10)) as others:
                others.wait_started()
                wait_answered(count)
            # The process has been killed, with requests in progress.
    wait_until(lambda: server.metric("lewm_active_plans") == 0, "no plan is left")
    wait_until(lambda: len(list(descriptors.iterdir())) <= before + 8, "connections are closed")
    cancelled = [
        server.metric(
            f'lewm_requests_total{{code="cancelled",endpoint="plan",protocol="{protocol}"}}'
        )
        for protocol in ("rest", "grpc")
    ]
    assert min(cancelled) > 0


def test_the_disk_of_the_log_fills(tmp_path: Path, undisturbed: ServerProcess) -> None:
    with ServerProcess(tmp_path / "log").wait_ready() as server:
        pid = server.process.pid
        unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        with under_load(server, undisturbed) as wait_answered:
            # No file of the process may grow beyond this size.
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (server.log.stat().st_size, unlimited[1]))
            wait_answered(3 * QUARTER)
            wait_until(lambda: server.metric(DROPPED) > 0, "lines are dropped")
            full = server.log.stat().st_size
            resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        wait_until(lambda: server.log.stat().st_size > full, "lines are written again")
        assert server.stop() == 0
        assert "Traceback" not in server.errors()


def test_the_reader_of_the_log_dies(tmp_path: Path, undisturbed: ServerProcess) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with reader_of(fifo):
        server = ServerProcess(fifo)
        server.wait_ready()
    # Nobody reads the log now; the pipe is broken.
    with server, under_load(server, undisturbed) as wait_answered:
        wait_answered(2 * QUARTER)
        wait_until(lambda: server.metric(DROPPED) > 0, "lines are dropped")
        with reader_of(fifo) as lines:
            wait_answered(3 * QUARTER)
            wait_until(lambda: any('"event":"request"' in line for line in lines), "lines arrive")
        # The second reader dies too.


@contextmanager
def reader_of(fifo: Path) -> Iterator[list[str]]:
    """A reader of a named pipe, and the lines it has read. At the end of the block it is gone."""
    lines: list[str] = []
    gone = threading.Event()
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def read() -> None:
        while not gone.wait(0.01):
            with suppress(BlockingIOError):
                lines.extend(os.read(descriptor, 1 << 20).decode(errors="replace").splitlines())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield lines
    finally:
        gone.set()
        thread.join()
        os.close(descriptor)


@dataclass
class Clock:
    """A server, and another one like it, whose time of day can be set.

    libfaketime (0.9.10) cannot do this for Python: where it leaves monotonic clocks alone,
    `time.sleep` fails, and elsewhere locks never time out.
    """

    server: ServerProcess
    undisturbed: ServerProcess
    file: Path

    def jump(self, seconds: int) -> None:
        """Set the server's clock to this many seconds from the real time."""
        with self.file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clock]:
    folder = tmp_path_factory.mktemp("clock")
    library = folder / "jumping_clock.so"
    compiler = [os.environ.get("CXX", "c++"), "-std=c++17", "-shared", "-fPIC", "-O2"]
    subprocess.run([*compiler, "-o", library, CLOCK_SOURCE], check=True)

    def start(name: str) -> ServerProcess:
        file = folder / f"{name}.offset"
        file.write_bytes(struct.pack("q", 0))
        log = folder / f"{name}.log"
        return ServerProcess(log, LD_PRELOAD=str(library), JUMPING_CLOCK=str(file))

    with start("jumping") as server, start("undisturbed") as undisturbed:
        yield Clock(server.wait_ready(), undisturbed.wait_ready(), folder / "jumping.offset")
        assert server.stop() == 0
        assert "Traceback" not in server.errors()


@pytest.mark.parametrize("seconds", [400 * DAY_S, -400 * DAY_S], ids=["forward", "back"])
def test_the_clock_jumps(clock: Clock, seconds: int) -> None:
    server = clock.server
    before, started = scrape(server.url), time.monotonic()
    with under_load(server, clock.undisturbed) as wait_answered:
        clock.jump(seconds)
        wait_answered(3 * QUARTER)
        there = time.gmtime(time.time() + seconds).tm_year
        clock.jump(0)
    dates = {line["timestamp"][:4] for line in server.log_lines()}
    assert str(there) in dates
    # The server's durations are those of a clock that did not jump.
    took_s = time.monotonic() - started
    after = scrape(server.url)
    name = "lewm_request_duration_seconds_sum"
    growth = [
        value - before.counters.get(series, 0)
        for series, value in after.counters.items()
        if series[0] == name
    ]
    assert all(value >= 0 for value in growth)
    assert sum(growth) < 100 * took_s
