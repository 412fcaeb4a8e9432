"""The servers of a fleet are restarted one after the other under load, and no request fails."""

import itertools
import json
from contextlib import closing
from pathlib import Path

import pytest

from tests.fleet.fleet import Fleet
from tests.fleet.load import ROBOTS, Load
from tests.patience import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

CALLS = 10_000
ROUNDS = 2
DRAIN_LAG_S = 4.0
"""Longer than nginx leaves a server alone that has failed, and than Envoy's health checks take."""


def test_no_request_fails_while_the_servers_are_restarted(tmp_path: Path) -> None:
    with Fleet(tmp_path, drain_lag_s=DRAIN_LAG_S) as fleet:
        with Load.through_proxies(fleet) as load:
            for restarts in itertools.count():
                if restarts >= ROUNDS * len(fleet.servers) and len(load.calls) >= CALLS:
                    break
                fleet.servers[restarts % len(fleet.servers)].restart()
        print(f"{restarts} restarts\n{load.report()}")
        assert load.failed == [], load.report()
        counts = load.counts()
        assert max(counts.values()) - min(counts.values()) <= ROBOTS, counts
        assert fleet.redis.admin.info("stats")["keyspace_hits"] > 0
        lines = map(json.loads, fleet.nginx.access_log.read_text().splitlines())
        assert {address for line in lines for address in line["servers"].split(", ")} == {
            f"127.0.0.1:{server.http_port}" for server in fleet.servers
        }


def test_without_a_drain_lag_requests_fail(tmp_path: Path) -> None:
    with Fleet(tmp_path, drain_lag_s=0) as fleet:
        with Load.through_proxies(fleet) as load:
            for server in fleet.servers:  # the proxies do not know yet that the first one is back
                server.restart()
        print(load.report())
        # A proxy that loses the server in the middle of a call over gRPC cancels the call.
        assert {call.code for call in load.failed} <= {"unavailable", "draining", "cancelled"}
        assert load.failed


def test_requests_of_a_server_that_is_killed_go_to_the_other(tmp_path: Path) -> None:
    with Fleet(tmp_path, drain_lag_s=0) as fleet:
        first, second = fleet.servers
        with Load.through_proxies(fleet) as load:
            for server in (first, second):
                wait_for_calls(load, 300)
                server.kill()
                wait_for_calls(load, 300)
                server.start()
                server.process.wait_ready()
                wait_for_calls(load, 300)
        print(load.report())
        assert load.failed == [], load.report()

        # The robots would notice: with no server at all, their requests fail.
        with closing(fleet.rest()) as rest, closing(fleet.grpc()) as rpc:
            first.kill()
            second.kill()
            assert rest.encode(b"") == "unavailable"
            assert rpc.encode(b"") == "unavailable"


def wait_for_calls(load: Load, count: int) -> None:
    """Wait for this many further calls."""
    enough = len(load.calls) + count
    wait_until(lambda: len(load.calls) >= enough, f"{count} calls")
