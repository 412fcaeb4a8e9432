"""The limits of a load, and the addresses it takes."""

from typing import Any

import pytest

from loadtests.spec import MAX_REQUESTS, MAX_SECONDS, MAX_USERS, Address, LoadSpec, parse_address

HTTP, GRPC = "127.0.0.1:8000", "127.0.0.1:50051"


def test_a_spec_survives_json() -> None:
    spec = LoadSpec(http=HTTP, grpc=GRPC, seconds=7, seed=3)
    assert LoadSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("localhost:1", Address("localhost", 1)),
        ("[::1]:8000", Address("::1", 8000)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address("--http", text) == address


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1", ":8000", "127.0.0.1:", "127.0.0.1:70000", "http://h:1", "h:1/x", "a@h:1"],
)
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="--grpc: expected HOST:PORT, got"):
        LoadSpec(http=HTTP, grpc=text)


def test_the_protocols_are_those_with_addresses() -> None:
    assert LoadSpec(http=HTTP).protocols == ("rest",)
    assert LoadSpec(grpc=GRPC, slow_readers=0).protocols == ("grpc",)
    assert LoadSpec(http=HTTP, grpc=GRPC).protocols == ("rest", "grpc")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seconds", MAX_SECONDS + 1, "--seconds: expected 1 to 14400, got 14401.0"),
        ("seconds", float("nan"), "--seconds: expected 1 to 14400, got nan"),
        ("requests", MAX_REQUESTS + 1, "--requests: expected 1 to 1e\\+06, got 1000001"),
        ("requests", 0, "--requests"),
        ("robots", -1, "--robots: expected 0 to 500, got -1"),
        ("robots", MAX_USERS, "expected at most 500 robots and clients, got 505"),
        ("robot_hz", 1000.0, "--robot-hz: expected 0.1 to 100, got 1000.0"),
        ("arrivals_per_s", 1e4, "--arrivals-per-s"),
        ("bad_clients", 501, "--bad-clients"),
        ("slow_readers", 501, "--slow-readers"),
        ("leaving_clients", 501, "--leaving-clients"),
        ("deadline_ms", 0.0, "--deadline-ms"),
        ("seed", -1, "--seed"),
    ],
)
def test_a_load_is_bounded(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadSpec(http=HTTP, **{field: value})  # type: ignore[arg-type]


def test_a_load_needs_an_address_and_users() -> None:
    with pytest.raises(ValueError, match="expected --http, --grpc or both"):
        LoadSpec()
    with pytest.raises(ValueError, match="--slow-readers: expected --http too"):
        LoadSpec(grpc=GRPC)
    clients = ("robots", "bad_clients", "slow_readers", "leaving_clients")
    nobody: dict[str, Any] = dict.fromkeys(clients, 0)
    with pytest.raises(ValueError, match="expected some robots, arrivals or clients"):
        LoadSpec(http=HTTP, arrivals_per_s=0, **nobody)
