"""The metrics: all are listed, explained and start at 0, and traffic adds no label values."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlannerError
from lewm_models.checkpoint import PRETRAINED
from lewm_serve.constants import (
    ANOMALY_KINDS,
    ASSESSED_STATUSES,
    BATCH_KINDS,
    ENDPOINTS,
    FALLBACK_REASONS,
    INFERENCE_ENDPOINTS,
    OK_CODE,
    PLAN_STATUSES,
    PROTOCOLS,
    RELOAD_RESULTS,
    STAGES,
)
from lewm_serve.errors import CODES
from lewm_serve.observability.metrics import REGISTERED, Metrics
from tests.lewm_serve.support.drivers import Driver, GrpcDriver, RestDriver, raw_call
from tests.lewm_serve.support.faulty_lewm import FAILING_HORIZON, FAULTY_LEWM
from tests.lewm_serve.support.frames import image, pixels
from tests.lewm_serve.support.inexpressible import Inexpressible
from tests.lewm_serve.support.inference_protocol import OipGrpcDriver, OipHttpDriver
from tests.lewm_serve.support.openpi import OpenpiDriver, openpi
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.redis_process import RedisProcess
from tests.lewm_serve.support.requests import HOLD, WAYPOINT, plan, predict, rows
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

MODELS = (MODEL_NAME, "two-room")
CONTROLLERS = {MODEL_NAME: ("hold", "tail"), "two-room": ("hold", "tail", "waypoint")}
CACHE_RESULTS = {"memory": ("hit", "miss"), "redis": ("hit", "miss", "unavailable")}

Labels = dict[str, str]
Series = frozenset[tuple[str, str]]


def combinations(**values: Any) -> list[Labels]:
    """Labels with every combination of their values."""
    return [
        dict(zip(values, combination, strict=True)) for combination in product(*values.values())
    ]


EXPECTED_LABELS: dict[str, list[Labels]] = {
    "lewm_requests_total": combinations(
        endpoint=ENDPOINTS, protocol=PROTOCOLS, code=(OK_CODE, *CODES)
    ),
    "lewm_request_duration_seconds": combinations(endpoint=ENDPOINTS, protocol=PROTOCOLS),
    "lewm_stage_duration_seconds": combinations(stage=STAGES),
    "lewm_batch_rows": combinations(kind=BATCH_KINDS),
    "lewm_engine_up": combinations(device=["cpu"]),
    "lewm_engine_memory_bytes": combinations(device=["cpu"]),
    "lewm_engine_processor_seconds": combinations(device=["cpu"]),
    "lewm_engine_restarts_total": combinations(device=["cpu"]),
    "lewm_queued_requests": combinations(endpoint=INFERENCE_ENDPOINTS),
    "lewm_model_reloads_total": combinations(result=RELOAD_RESULTS),
    "lewm_plan_status_total": combinations(status=PLAN_STATUSES),
    "lewm_latent_norm": combinations(model=MODELS),
    "lewm_latent_norm_zscore": combinations(model=MODELS),
    "lewm_latent_mahalanobis": combinations(model=MODELS),
    "lewm_latent_sigreg": combinations(model=MODELS),
    "lewm_surprise": combinations(model=MODELS),
    "lewm_anomalies_total": combinations(model=MODELS, kind=ANOMALY_KINDS),
    "lewm_health_total": combinations(model=MODELS, status=ASSESSED_STATUSES),
    "lewm_fallbacks_total": [
        labels
        for model, controllers in CONTROLLERS.items()
        for labels in combinations(model=(model,), controller=controllers, reason=FALLBACK_REASONS)
    ],
    "lewm_cache_requests_total": [
        labels
        for tier, results in CACHE_RESULTS.items()
        for labels in combinations(tier=(tier,), result=results)
    ],
    "lewm_cache_errors_total": combinations(tier=CACHE_RESULTS),
    "lewm_cache_up": combinations(tier=CACHE_RESULTS),
}
"""All labels that there may be. `lewm_model_info` has one series for each model. The others have no
labels."""

APPEARING_LATER = {"lewm_latent_norm_zscore", "lewm_latent_sigreg"}
"""Gauges that have no series before there is a value."""


@dataclass(frozen=True)
class Family:
    """One metric. ``series`` holds the value of each combination of labels; see `parse_metrics`."""

    kind: str
    help: str
    series: dict[Series, float]


def parse_metrics(text: str) -> dict[str, Family]:
    """The metrics by the names under which they are registered.

    The value of a histogram's series is that of its last sample.
    """
    families = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        series: dict[Series, float] = {}
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "le"}
            series[frozenset(labels.items())] = sample.value
        families[name] = Family(family.type, family.documentation, series)
    return families


def as_series(labels: list[Labels]) -> set[Series]:
    return {frozenset(one.items()) for one in labels}


def scrape(server: ServerProcess) -> dict[str, Family]:
    return parse_metrics(server.get("/metrics").text)


@pytest.fixture(scope="module")
def families() -> dict[str, Family]:
    """What a new registry shows. Only metrics without labels have a value."""
    return parse_metrics(Metrics().render().decode())


def test_all_metrics_are_listed(families: dict[str, Family]) -> None:
    assert set(families) == set(REGISTERED)
    assert list(REGISTERED) == sorted(set(REGISTERED))


def test_every_help_text_says_more_than_the_name(families: dict[str, Family]) -> None:
    texts = [family.help for family in families.values()]
    assert len(texts) == len(set(texts))
    for name, family in families.items():
        words = re.findall(r"[a-z]+", family.help.lower())
        assert len(words) >= 2, name
        assert set(words) - set(name.split("_")), name


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture(scope="module")
def faulty(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, redis: RedisProcess
) -> Iterator[ServerProcess]:
    """A faulty server of two models with both cache tiers."""
    folders = f"{model_folder}:{PRETRAINED / 'two-room'}"
    flags = ("--models", folders, "--default-model", MODEL_NAME)
    log = tmp_path_factory.mktemp("faulty") / "log.jsonl"
    with ServerProcess(log, *flags, program=FAULTY_LEWM, LEWM_REDIS_URL=redis.url) as server:
        server.wait_ready()
        wait_until(lambda: server.metric('lewm_cache_up{tier="redis"}') == 1)
        yield server


def new_seed() -> int:
    """The seed of a picture that no request has sent."""
    return uuid4().int % 2**32


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Good, bad, anomalous, late and failing requests. New names and frames in each call."""
    new_name = f"m-{uuid4()}"
    unusual = {"model": "two-room", "frames": [image("PNG", new_seed())], "goal": pixels(1)}
    failing = {"horizon": FAILING_HORIZON}
    return [
        ("encode", {"frames": [pixels(new_seed())]}),
        ("encode", {"frames": [pixels(0)]}),
        ("encode", {"frames": [pixels(new_seed())], "model": new_name}),
        ("encode", {"frames": [{"latent_id": uuid4().hex}]}),
        ("encode", {"frames": [{}]}),
        ("predict", predict()),
        ("predict", predict(model=new_name)),
        ("predict", predict(actions=rows(3))),
        ("plan", plan()),
        ("plan", plan(solver={"tolerance": 3.0})),
        ("plan", plan(model=new_name)),
        ("plan", plan(model=new_name, fallback={"controller": new_name})),
        ("plan", plan(fallback={"controller": new_name})),
        ("plan", plan(solver={"name": new_name})),
        ("plan", plan() | {new_name: 1}),
        ("plan", plan(deadline_ms=1e-6)),
        ("plan", plan(deadline_ms=1e-6, fallback=HOLD)),
        ("plan", plan(fallback={"controller": "tail"}, warm_start=rows(5), deadline_ms=1e-6)),
        ("plan", plan(solver=failing, fallback=HOLD)),
        ("plan", plan(solver=failing)),
        ("plan", plan(**unusual)),
        ("plan", plan(**unusual, fallback=WAYPOINT)),
    ]


def send_traffic(server: ServerProcess) -> None:
    """Send what clients may send, right and wrong, over both protocols."""
    with (
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
        PlannerClient(server.target) as rpc,
    ):
        drivers: list[Driver] = [RestDriver(rest), GrpcDriver(rpc)]
        for driver in drivers:
            for method, document in requests():
                driver.send(method, document)
        with openpi(server) as connection:
            others: tuple[Any, ...] = (
                OpenpiDriver(connection),
                OipHttpDriver(rest),
                OipGrpcDriver(rpc),
            )
            for other in others:
                for method, document in requests():
                    with suppress(Inexpressible):
                        other.send(method, document)
            connection.infer({uuid4().hex: 1})
        send_unusual_http(rest)
        send_unusual_grpc(rpc)


def send_unusual_http(rest: httpx.Client) -> None:
    """Routes, methods, headers and bodies with a name that never comes again."""
    name = uuid4().hex
    for method, path in (
        ("GET", "/models"),
        ("GET", f"/models/{MODEL_NAME}"),
        ("GET", f"/models/{name}"),
        ("POST", f"/admin/models/reload?{name}"),
        ("POST", f"/admin/{name}"),
        ("GET", f"/{name}"),
        ("GET", "/v2"),
        ("GET", "/v2/models/" + MODEL_NAME),
        ("GET", f"/v2/models/{name}/ready"),
        ("POST", f"/v2/models/{name}/versions/{name}/infer"),
        ("GET", f"/plan/{name}"),
        ("POST", f"/v1/models/{name}"),
        ("POST", f"/{name}/plan"),
        ("DELETE", "/plan"),
        ("PROPFIND", f"/encode?{name}"),
        (name.upper(), "/predict"),  # not a method at all, which ends the connection
    ):
        headers = dict.fromkeys(("x-request-id", "user-agent", "lewm-robot"), name)
        rest.request(method, path, headers=headers)
    for body in (b"{", b"[]", name.encode()):
        rest.post("/plan", content=body, headers={"content-type": "application/json"})
        rest.post("/plan", content=body, headers={"content-type": name})


def send_unusual_grpc(rpc: PlannerClient) -> None:
    """Methods and messages with a name that never comes again."""
    name = uuid4().hex
    rpc.models()
    rpc.stub.GetModel(pb.GetModelRequest(name=MODEL_NAME))
    for method, data in (
        (f"/lewm.v1.PlannerService/{name}", b""),
        (f"/{name}/Plan", b""),
        ("/lewm.v1.PlannerService/Plan", b"\xff"),
        ("/lewm.v1.PlannerService/GetModel", pb.GetModelRequest(name=name).SerializeToString()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            raw_call(rpc, method)(data, metadata=(("x-request-id", name), ("lewm-robot", name)))
        assert PlannerError(caught.value).code in CODES  # type: ignore[arg-type]


def test_traffic_adds_no_label_values(faulty: ServerProcess, redis: RedisProcess) -> None:
    before = scrape(faulty)
    for name, family in before.items():
        if family.kind == "counter" and name in EXPECTED_LABELS:
            assert family.series == dict.fromkeys(as_series(EXPECTED_LABELS[name]), 0.0), name
        elif name in EXPECTED_LABELS:
            expected = set() if name in APPEARING_LATER else as_series(EXPECTED_LABELS[name])
            assert set(family.series) == expected, name

    send_traffic(faulty)
    once = scrape(faulty)
    redis.kill()
    send_traffic(faulty)
    twice = scrape(faulty)

    for families in (once, twice):
        assert set(families) == set(REGISTERED)
        for name, family in families.items():
            if name in APPEARING_LATER:
                assert set(family.series) <= as_series(EXPECTED_LABELS[name]), name
            elif name == "lewm_model_info":
                assert {dict(labels)["model"] for labels in family.series} == set(MODELS)
                assert len(family.series) == len(MODELS)
            elif not name.startswith("lewm_"):  # of the process, by the library
                assert set(family.series) == set(before[name].series), name
            else:
                assert set(family.series) == as_series(EXPECTED_LABELS.get(name, [{}])), name
    assert_traffic_was_varied(twice)


def assert_traffic_was_varied(families: dict[str, Family]) -> None:
    """Check that the traffic reached many label values. Otherwise the test shows little."""
    seen: dict[str, dict[str, set[str]]] = {}
    for name, family in families.items():
        for labels, value in family.series.items():
            for key, label in labels:
                if value > 0:
                    seen.setdefault(name, {}).setdefault(key, set()).add(label)
    requests_seen = seen["lewm_requests_total"]
    assert requests_seen["endpoint"] == set(ENDPOINTS)
    assert requests_seen["protocol"] == set(PROTOCOLS)
    assert requests_seen["code"] >= {
        "ok",
        "unknown_model",
        "unknown_latent",
        "unknown_route",
        "unknown_field",
        "unknown_solver",
        "method_not_allowed",
        "invalid_choice",
        "missing_field",
        "shape_mismatch",
        "malformed_json",
        "malformed_message",
        "unsupported_media_type",
        "deadline_exceeded",
        "internal",
    }
    assert seen["lewm_plan_status_total"]["status"] >= {"completed", "converged", "fallback"}
    assert seen["lewm_fallbacks_total"]["reason"] == set(FALLBACK_REASONS)
    assert seen["lewm_fallbacks_total"]["controller"] == {"hold", "tail", "waypoint"}
    assert seen["lewm_cache_requests_total"]["result"] == {"hit", "miss", "unavailable"}
    assert seen["lewm_cache_errors_total"]["tier"] == {"redis"}
    assert seen["lewm_anomalies_total"]["kind"] >= {"norm", "mahalanobis"}
    assert seen["lewm_health_total"]["status"] >= {"anomalous", "uncalibrated"}
