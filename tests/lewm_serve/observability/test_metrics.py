"""The figures of `/metrics`: all listed, explained, from 0, and no more of them with traffic."""

import re
from collections.abc import Iterator
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
from lewm_serve.errors import CODES
from lewm_serve.observability.metrics import (
    BATCH_KINDS,
    ENDPOINTS,
    INFERENCE_ENDPOINTS,
    PLAN_STATUSES,
    PROTOCOLS,
    REGISTERED,
    STAGES,
    Metrics,
)
from lewm_serve.planner.fallback import REASONS
from lewm_serve.planner.health import JUDGEMENTS, KINDS
from tests.lewm_serve.support.requests import WAYPOINT, plan, predict
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.drivers import Driver, RestDriver, GrpcDriver, raw_call
from tests.lewm_serve.support.frames import image, pixels, rows
from tests.lewm_serve.support.server_process import ServerProcess
from tests.lewm_serve.support.redis_process import RedisProcess
from tests.lewm_serve.support.faulty_lewm import FAILING_HORIZON, FAULTY_LEWM
from tests.patience import PATIENCE_S, wait_until

MODELS = (MODEL_NAME, "two-room")
CONTROLLERS = {MODEL_NAME: ("hold", "tail"), "two-room": ("hold", "tail", "waypoint")}
RESULTS = {"memory": ("hit", "miss"), "redis": ("hit", "miss", "unavailable")}

Labels = dict[str, str]
Series = frozenset[tuple[str, str]]


def every(**values: Any) -> list[Labels]:
    """Labels with each combination of their values."""
    return [dict(zip(values, one, strict=True)) for one in product(*values.values())]


KNOWN: dict[str, list[Labels]] = {
    "lewm_requests_total": every(endpoint=ENDPOINTS, protocol=PROTOCOLS, code=("ok", *CODES)),
    "lewm_request_duration_seconds": every(endpoint=ENDPOINTS, protocol=PROTOCOLS),
    "lewm_stage_duration_seconds": every(stage=STAGES),
    "lewm_batch_rows": every(kind=BATCH_KINDS),
    "lewm_queued_requests": every(endpoint=INFERENCE_ENDPOINTS),
    "lewm_plan_status_total": every(status=PLAN_STATUSES),
    "lewm_latent_norm": every(model=MODELS),
    "lewm_latent_norm_zscore": every(model=MODELS),
    "lewm_latent_mahalanobis": every(model=MODELS),
    "lewm_latent_sigreg": every(model=MODELS),
    "lewm_surprise": every(model=MODELS),
    "lewm_anomalies_total": every(model=MODELS, kind=KINDS),
    "lewm_health_total": every(model=MODELS, status=JUDGEMENTS),
    "lewm_fallbacks_total": [
        labels
        for model, controllers in CONTROLLERS.items()
        for labels in every(model=(model,), controller=controllers, reason=REASONS)
    ],
    "lewm_cache_requests_total": [
        labels
        for tier, results in RESULTS.items()
        for labels in every(tier=(tier,), result=results)
    ],
    "lewm_cache_errors_total": every(tier=RESULTS),
    "lewm_cache_up": every(tier=RESULTS),
}
"""All the labels there may be: of `lewm_model_info`, one for each model, and of all others none."""
LATER = {"lewm_latent_norm_zscore", "lewm_latent_sigreg"}
"""Gauges, which show nothing before there is something to show."""


@dataclass(frozen=True)
class Family:
    """One metric: ``series`` holds its labels, and of counters and gauges the value."""

    kind: str
    help: str
    series: dict[Series, float]


def parsed(text: str) -> dict[str, Family]:
    """The metrics by the names under which they are registered."""
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
    return parsed(server.get("/metrics").text)


@pytest.fixture(scope="module")
def families() -> dict[str, Family]:
    """What a new registry shows; the names without labels come with a value."""
    return parsed(Metrics().render().decode())


def test_each_is_listed(families: dict[str, Family]) -> None:
    assert set(families) == set(REGISTERED)
    assert list(REGISTERED) == sorted(set(REGISTERED))


def test_each_says_what_it_is(families: dict[str, Family]) -> None:
    texts = [family.help for family in families.values()]
    assert len(texts) == len(set(texts))
    for name, family in families.items():
        words = re.findall(r"[a-z]+", family.help.lower())
        assert len(words) >= 2, name
        assert set(words) - set(name.split("_")), f"{name} says no more than its name"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture(scope="module")
def operated(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, redis: RedisProcess
) -> Iterator[ServerProcess]:
    """A server of two models and both tiers, whose engine fails where a test wants it to."""
    flags = ("--models", f"{model_folder}:{PRETRAINED / 'two-room'}", "--default-model", MODEL_NAME)
    log = tmp_path_factory.mktemp("operated") / "log.jsonl"
    with ServerProcess(log, *flags, program=FAULTY_LEWM, LEWM_REDIS_URL=redis.url) as server:
        server.wait_ready()
        wait_until(lambda: server.metric('lewm_cache_up{tier="redis"}') == 1)
        yield server


def seed() -> int:
    """Of a picture that nobody has seen."""
    return uuid4().int % 2**32


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Good, bad, anomalous, late and failing ones, with names and frames that never come again."""
    hold, new = {"controller": "hold"}, f"m-{uuid4()}"
    strange = {"model": "two-room", "frames": [image("PNG", seed())], "goal": pixels(1)}
    return [
        ("encode", {"frames": [pixels(seed())]}),
        ("encode", {"frames": [pixels(0)]}),
        ("encode", {"frames": [pixels(seed())], "model": new}),
        ("encode", {"frames": [{"latent_id": uuid4().hex}]}),
        ("encode", {"frames": [{}]}),
        ("predict", predict()),
        ("predict", predict(model=new)),
        ("predict", predict(actions=rows(3))),
        ("plan", plan()),
        ("plan", plan(solver={"tolerance": 3.0})),
        ("plan", plan(model=new)),
        ("plan", plan(model=new, fallback={"controller": new})),
        ("plan", plan(fallback={"controller": new})),
        ("plan", plan(solver={"name": new})),
        ("plan", plan() | {new: 1}),
        ("plan", plan(deadline_ms=1e-6)),
        ("plan", plan(deadline_ms=1e-6, fallback=hold)),
        ("plan", plan(fallback={"controller": "tail"}, warm_start=rows(5), deadline_ms=1e-6)),
        ("plan", plan(solver={"horizon": FAILING_HORIZON}, fallback=hold)),
        ("plan", plan(solver={"horizon": FAILING_HORIZON})),
        ("plan", plan(**strange)),
        ("plan", plan(**strange, fallback=WAYPOINT)),
    ]


def traffic(server: ServerProcess) -> None:
    """All that clients may do, right and wrong, over both protocols."""
    with (
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
        PlannerClient(server.target) as rpc,
    ):
        drivers: list[Driver] = [RestDriver(rest), GrpcDriver(rpc)]
        for driver in drivers:
            for method, document in requests():
                driver.send(method, document)
        name = uuid4().hex
        for method, path in (
            ("GET", "/models"),
            ("GET", f"/models/{MODEL_NAME}"),
            ("GET", f"/models/{name}"),
            ("GET", f"/{name}"),
            ("GET", f"/plan/{name}"),
            ("POST", f"/v1/models/{name}"),
            ("POST", f"/{name}/plan"),
            ("DELETE", "/plan"),
            ("PROPFIND", f"/encode?{name}"),
            (name.upper(), "/predict"),  # no method at all, which ends the connection
        ):
            rest.request(method, path, headers={"x-request-id": name, "user-agent": name})
        for body in (b"{", b"[]", name.encode()):
            rest.post("/plan", content=body, headers={"content-type": "application/json"})
            rest.post("/plan", content=body, headers={"content-type": name})
        rpc.models()
        rpc.stub.GetModel(pb.GetModelRequest(name=MODEL_NAME))
        for method, data in (
            (f"/lewm.v1.PlannerService/{name}", b""),
            (f"/{name}/Plan", b""),
            ("/lewm.v1.PlannerService/Plan", b"\xff"),
            ("/lewm.v1.PlannerService/GetModel", pb.GetModelRequest(name=name).SerializeToString()),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                raw_call(rpc, method)(data, metadata=(("x-request-id", name),))
            assert PlannerError(caught.value).code in CODES  # type: ignore[arg-type]


def test_no_traffic_makes_more_of_them(operated: ServerProcess, redis: RedisProcess) -> None:
    fresh = scrape(operated)
    for name, family in fresh.items():
        if family.kind == "counter" and name in KNOWN:
            assert family.series == dict.fromkeys(as_series(KNOWN[name]), 0.0), name
        elif name in KNOWN:
            assert set(family.series) == (set() if name in LATER else as_series(KNOWN[name])), name

    traffic(operated)
    once = scrape(operated)
    redis.kill()
    traffic(operated)
    twice = scrape(operated)

    for shown in (once, twice):
        assert set(shown) == set(REGISTERED)
        for name, family in shown.items():
            if name in LATER:
                assert set(family.series) <= as_series(KNOWN[name]), name
            elif name == "lewm_model_info":
                assert {dict(labels)["model"] for labels in family.series} == set(MODELS)
                assert len(family.series) == len(MODELS)
            else:
                assert set(family.series) == as_series(KNOWN.get(name, [{}])), name
    assert_seen(twice)


def assert_seen(shown: dict[str, Family]) -> None:
    """The traffic reached what it was to reach: else nothing was tried."""
    seen: dict[str, dict[str, set[str]]] = {}
    for name, family in shown.items():
        for labels, value in family.series.items():
            for key, label in labels:
                if value > 0:
                    seen.setdefault(name, {}).setdefault(key, set()).add(label)
    requests_seen = seen["lewm_requests_total"]
    assert requests_seen["endpoint"] == set(ENDPOINTS)
    assert requests_seen["protocol"] == set(PROTOCOLS)
    assert requests_seen["code"] >= {
        "ok", "unknown_model", "unknown_latent", "unknown_route", "unknown_field",
        "unknown_solver", "method_not_allowed", "invalid_choice", "missing_field",
        "shape_mismatch", "malformed_json", "malformed_message", "unsupported_media_type",
        "deadline_exceeded", "internal",
    }  # fmt: skip
    assert seen["lewm_plan_status_total"]["status"] >= {"completed", "converged", "fallback"}
    assert seen["lewm_fallbacks_total"]["reason"] == set(REASONS)
    assert seen["lewm_fallbacks_total"]["controller"] == {"hold", "tail", "waypoint"}
    assert seen["lewm_cache_requests_total"]["result"] == {"hit", "miss", "unavailable"}
    assert seen["lewm_cache_errors_total"]["tier"] == {"redis"}
    assert seen["lewm_anomalies_total"]["kind"] >= {"norm", "mahalanobis"}
    assert seen["lewm_health_total"]["status"] >= {"anomalous", "uncalibrated"}
