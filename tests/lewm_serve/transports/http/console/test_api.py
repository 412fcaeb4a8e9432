"""What the console's pages ask for, and who may ask."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

from lewm_models.calibration.reference import sha256_of
from lewm_models.card import FrameDecoderCard, read_card
from lewm_models.checkpoint import CARD_FILE, DECODER_FILE, write_decoder
from lewm_models.decoder.network import FRAME_SIDE, FrameDecoder
from lewm_serve.transports.http.console.requests import PAGE_HEADER
from tests.lewm_serve.support.keys import bearer
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.transports.http.console.conftest import COOKIE, Console
from tests.patience import PATIENCE_S, wait_until

PNG = "data:image/png;base64,"


def test_a_plan_is_listed_and_shown_with_all_that_the_views_need(console: Console) -> None:
    request_id = console.plan("arm-1", deadline_ms=60_000)
    number = console.number_of(request_id)
    listed = console.get(f"plans?after={number - 1}").json()
    assert listed["newest"] >= number
    summary = listed["plans"][0]
    assert (summary["number"], summary["request_id"]) == (number, request_id)
    assert (summary["robot"], summary["protocol"]) == ("arm-1", "rest")
    assert (summary["status"], summary["health"]) == ("completed", "ok")
    assert summary["deadline_ms"] == 60_000

    shown = console.get(f"plans/{number}").json()
    solver = shown["solver"]
    assert (solver["name"], solver["samples"], solver["iterations"]) == ("icem", 16, 2)
    assert len(shown["frames"]) == 1
    assert all(url.startswith(PNG) for url in [*shown["frames"], shown["goal"]])
    assert shown["imagined_by"] == "decoder"
    assert len(shown["imagined"]) == solver["horizon"]
    assert len(set(shown["imagined"])) == solver["horizon"]  # the robot moves
    assert [part["scored"] for part in shown["costs"]] == [16, 12]
    assert min(part["costs"][0] for part in shown["costs"]) == pytest.approx(
        shown["cost"], rel=1e-4
    )
    plane = shown["plane"]
    assert plane["by"] == "probe"
    assert [len(part) for part in plane["iterations"]] == [16, 12]
    assert all(len(path) == solver["horizon"] for part in plane["iterations"] for path in part)
    assert len(plane["best"]) == solver["horizon"]
    # The best candidate of all iterations is the plan.
    best = min(shown["costs"], key=lambda part: part["costs"][0])
    assert plane["iterations"][shown["costs"].index(best)][0] == plane["best"]
    assert shown["limits"]["mahalanobis"] > shown["health"]["latent_mahalanobis"]
    assert shown["timing_ms"]["total"] >= shown["timing_ms"]["solve"] > 0
    assert shown["costs"][-1]["ended_ms"] <= shown["timing_ms"]["total"] + 0.01


def test_planning_again_gives_the_same_plan_or_another_one(console: Console) -> None:
    number = console.number_of(console.plan(committed_actions=[[0.1, 0.2]] * 5))
    before = console.get(f"plans/{number}").json()
    again = console.post(f"api/plans/{number}/replay", {})
    assert again.status_code == 200, again.text
    repeated = console.get(f"plans/{again.json()['number']}").json()
    assert repeated["replay_of"] == number
    for field in ("actions", "cost", "seed", "solver", "imagined"):
        assert repeated[field] == before[field], field
    assert repeated["plane"]["best"] == before["plane"]["best"]
    changed = {"solver": {"name": "mppi", "samples": 32, "iterations": 3}, "seed": "8"}
    other = console.post(f"api/plans/{number}/replay", changed).json()["number"]
    shown = console.get(f"plans/{other}").json()
    assert (shown["solver"]["name"], shown["seed"]) == ("mppi", "8")
    assert [part["scored"] for part in shown["costs"]] == [32, 32, 32]
    assert shown["actions"] != before["actions"]
    assert shown["deadline_ms"] is None


def test_a_search_that_was_not_recorded_is_recorded_by_planning_again(console: Console) -> None:
    missing: list[int] = []

    def finds_one() -> bool:
        with ThreadPoolExecutor(8) as robots:
            ids = list(robots.map(lambda _: console.plan(), range(16)))
        summaries = console.get("plans").json()["plans"]
        missing.extend(
            one["number"] for one in summaries if one["request_id"] in ids and not one["traced"]
        )
        return bool(missing)

    wait_until(finds_one)
    number = missing[0]
    shown = console.get(f"plans/{number}").json()
    assert shown["costs"] is None
    assert shown["imagined_by"] == "decoder"  # the best plan is rolled out all the same
    assert len(shown["plane"]["best"]) == shown["solver"]["horizon"]
    again = console.post(f"api/plans/{number}/replay", {}).json()["number"]
    repeated = console.get(f"plans/{again}").json()
    assert repeated["actions"] == shown["actions"]
    assert [part["scored"] for part in repeated["costs"]] == [16, 12]


def test_the_final_mean_is_no_iteration(console: Console) -> None:
    solver = {"name": "cem", "samples": 20, "iterations": 3}
    shown = console.get(f"plans/{console.number_of(console.plan(solver=solver))}").json()
    if shown["costs"] is None:  # two searches a second are recorded
        again = console.post(f"api/plans/{shown['number']}/replay", {}).json()["number"]
        shown = console.get(f"plans/{again}").json()
    assert shown["iterations"] == 3
    parts = [(part["scored"], part["is_final_mean"]) for part in shown["costs"]]
    assert parts == [(20, False), (20, False), (20, False), (1, True)]


def test_a_goal_by_states_and_regions_to_avoid_are_shown(console: Console) -> None:
    box = {"state": {"x": [100.0, 130.0], "y": [40.0, 60.0]}}
    disc = {"centre": {"x": 60.0, "y": 60.0}, "radius": 12.0}
    goal = {"state": {"x": 180.0, "y": 60.0}}
    number = console.number_of(console.plan(goal=goal, avoid=[box, disc]))
    again = console.post(f"api/plans/{number}/replay", {"solver": {"samples": 24}}).json()
    for one in (number, again["number"]):
        shown = console.get(f"plans/{one}").json()
        assert (shown["goal"], shown["goal_state"]) == (None, goal["state"])
        assert shown["avoid"] == [box, disc]
        assert shown["states"]["end"].keys() == {"x", "y"}
        assert shown["solver"]["objective"] == "state"
        assert shown["imagined_by"] == "decoder"
        plane = shown["plane"]
        assert (plane["by"], plane["goal"]) == ("probe", [180.0, 60.0])
        assert [region["kind"] for region in plane["regions"]] == ["box", "disc"]
        assert plane["regions"][0] | {"kind": ""} == {
            "kind": "",
            "centre": [115.0, 50.0],
            "sizes": [15.0, 10.0],
        }
    assert [part["scored"] for part in shown["costs"]] == [24, 19]


def test_the_form_of_replay_begins_with_settings_of_each_solver(console: Console) -> None:
    (model,) = console.get("server").json()["models"]
    assert model["card_solver"] == "icem"
    solvers = model["solvers"]
    # Those of the card for its own solver, and of LeWM's paper for another one.
    assert solvers["icem"] == {"samples": 16, "iterations": 2, "horizon": 5, "elites": 4}
    assert solvers["cem"] == {"samples": 300, "iterations": 30, "horizon": 5, "elites": 30}
    assert solvers["mppi"] == {"samples": 300, "iterations": 30, "horizon": 5}
    assert solvers["gradient"]["samples"] < 32


@pytest.mark.parametrize(
    ("document", "status", "field"),
    [
        ({"solver": {"name": "chess"}}, 422, "solver.name"),
        ({"solver": {"samples": 0}}, 422, "solver.samples"),
        ({"seed": "x"}, 422, "seed"),
        ({"sead": "1"}, 422, "sead"),
    ],
)
def test_wrong_settings_are_named(console: Console, document: Any, status: int, field: str) -> None:
    number = console.number_of(console.plan())
    refused = console.post(f"api/plans/{number}/replay", document)
    assert refused.status_code == status, refused.text
    assert refused.json()["errors"][0]["field"] == field


def test_plans_that_are_not_kept_are_unknown(console: Console) -> None:
    for path in ("plans/999999", "plans/x", f"plans/{'9' * 5000}", "plans?request_id=never"):
        answer = console.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_route"), path
    assert console.post("api/plans/999999/replay", {}).status_code == 404


def test_looking_changes_no_metric(console: Console) -> None:
    number = console.number_of(console.plan())

    def counted() -> list[str]:
        prefixes = ("lewm_requests_total", "lewm_health_total", "lewm_plan", "lewm_latent_norm_c")
        lines = console.process.get("/metrics").text.splitlines()
        return [line for line in lines if line.startswith(prefixes)]

    before = counted()
    for path in ("server", "plans", f"plans/{number}", "fleet", "drive"):
        assert console.get(path).status_code == 200, path
    assert counted() == before
    console.post(f"api/plans/{number}/replay", {})
    assert counted() != before  # a plan is a plan


def test_the_fleet_has_robots_and_the_server(console: Console) -> None:
    for _ in range(3):
        console.plan("arm-9")
    counted: dict[str, Any] = {}

    def names() -> list[str]:
        counted.update(console.get("fleet").json())
        return [robot["name"] for robot in counted["robots"]]

    wait_until(lambda: "arm-9" in names())  # the table is counted once a second
    (robot,) = (one for one in counted["robots"] if one["name"] == "arm-9")
    assert robot["plans"]["completed"] >= 1
    assert robot["p50_ms"] > 0
    assert counted["server"]["cache_requests_total:memory:hit"] > 0
    assert counted["server"]["queued_requests:plan"] == 0


def test_a_latent_has_no_picture_without_a_decoder(keyed_console: Console) -> None:
    operator = keyed_console.keys["operator"]
    headers = {**bearer(operator), "x-request-id": "latents"}
    document = plan(frames=[{"latent": [0.1] * 128}], goal={"latent": [0.2] * 128})
    answer = httpx.post(
        f"{keyed_console.process.url}/plan", json=document, headers=headers, timeout=PATIENCE_S
    )
    assert answer.status_code == 200
    (summary,) = keyed_console.get("plans?request_id=latents", key=operator).json()["plans"]
    shown = keyed_console.get(f"plans/{summary['number']}", key=operator).json()
    assert shown["frames"] == [None]
    assert shown["imagined"] is None
    assert shown["limits"] is None
    assert shown["plane"]["by"] == "components"


def test_without_a_decoder_the_nearest_frames_stand_for_latents(keyed_console: Console) -> None:
    operator = keyed_console.keys["operator"]
    headers = {**bearer(operator), "x-request-id": "pixels"}
    answer = httpx.post(
        f"{keyed_console.process.url}/plan", json=plan(), headers=headers, timeout=PATIENCE_S
    )
    assert answer.status_code == 200
    (summary,) = keyed_console.get("plans?request_id=pixels", key=operator).json()["plans"]
    shown = keyed_console.get(f"plans/{summary['number']}", key=operator).json()
    assert shown["imagined_by"] == "nearest"
    assert set(shown["imagined"]) <= {shown["goal"], *shown["frames"]}


def test_a_session_is_a_cookie_that_scripts_and_other_sites_cannot_use(
    keyed_console: Console,
) -> None:
    assert keyed_console.get("server").status_code == 401
    wrong = keyed_console.post("session", {"key": "lewm_AAAAAAAA_wrong"})
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    infer_alone = keyed_console.post("session", {"key": keyed_console.keys["robot"]})
    assert infer_alone.status_code == 403
    assert "has the roles infer, expected read" in infer_alone.json()["detail"]

    started = keyed_console.post("session", {"key": keyed_console.keys["viewer"]})
    assert started.status_code == 204
    cookie = started.headers["set-cookie"]
    name, value = cookie.partition(";")[0].split("=")
    assert name == COOKIE
    flags = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict"} <= flags
    # Without a path, the cookie belongs to the page's, with any prefix; it ends with the browser.
    assert not any(flag.startswith(("path", "max-age", "expires", "domain")) for flag in flags)

    server = keyed_console.get("server", key=value).json()
    assert (server["key"], server["may_plan"]) == ("viewer", False)
    operator = keyed_console.get("server", key=keyed_console.keys["operator"]).json()
    assert (operator["key"], operator["may_plan"]) == ("operator", True)
    start = {"environment": "two-room", "model": "random"}
    refused = keyed_console.post("api/drive", start, key=value)
    assert refused.status_code == 403
    with httpx.Client(cookies={COOKIE: value}, timeout=PATIENCE_S) as client:
        ended = client.delete(f"{keyed_console.page}/session", headers={PAGE_HEADER: "1"})
    assert "max-age=0" in ended.headers["set-cookie"].lower()


def test_what_other_sites_can_send_is_refused(keyed_console: Console) -> None:
    """A page of another site can send no header of its own, and no JSON."""
    operator = keyed_console.keys["operator"]
    for path in ("api/plans/1/replay", "api/drive", "api/drive/controls", "session"):
        refused = keyed_console.post(
            path, {}, key=operator, headers={"origin": "http://evil.example"}
        )
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
        with httpx.Client(cookies={COOKIE: operator}, timeout=PATIENCE_S) as client:
            form = client.post(
                f"{keyed_console.page}/{path}", data={"a": "b"}, headers={PAGE_HEADER: "1"}
            )
        assert form.status_code in (404, 415), path


def test_without_keys_there_is_nothing_to_keep(console: Console) -> None:
    answer = console.post("session", {"key": "any"})
    assert answer.status_code == 204
    assert "set-cookie" not in answer.headers


def test_the_page_and_its_files_need_no_key_and_allow_no_other_source(
    keyed_console: Console,
) -> None:
    page = httpx.get(keyed_console.page, timeout=PATIENCE_S)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", page.text)
    addresses = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
    assert len(addresses) == 3
    for address in addresses:
        file = httpx.get(f"{keyed_console.process.url}/{address}", timeout=PATIENCE_S)
        assert file.status_code == 200
        assert file.headers["x-content-type-options"] == "nosniff"
        assert "http" not in re.sub("http://www.w3.org/[a-z0-9/]+", "", file.text)
    for name in ("index.html", "nothing.js", "../pages.py", "%2e%2e/pages.py"):
        unknown = httpx.get(f"{keyed_console.page}/static/{name}", timeout=PATIENCE_S)
        assert unknown.status_code in (401, 404), name


def test_a_new_decoder_is_used_without_a_restart(keyed_console: Console) -> None:
    # A copy of the card comes back at the end: other tests want a model without a decoder.
    before = (keyed_console.model / CARD_FILE).read_bytes()
    card = read_card(keyed_console.model / CARD_FILE)
    frame = torch.full((3, FRAME_SIDE, FRAME_SIDE), 0.5)
    width = card.config.latent_dim
    decoder = FrameDecoder(torch.zeros(width), torch.ones(width), mean_frame=frame, width=8)
    network = sha256_of(decoder.to_bytes())
    described = FrameDecoderCard(network, 1, 1, error=0.5, mean_frame_error=0.5)
    operator = keyed_console.keys["operator"]

    def shown_by() -> Any:
        request_id = uuid.uuid4().hex
        answer = httpx.post(
            f"{keyed_console.process.url}/plan",
            json=plan(),
            headers={**bearer(operator), "x-request-id": request_id},
            timeout=PATIENCE_S,
        )
        assert answer.status_code == 200
        (summary,) = keyed_console.get(f"plans?request_id={request_id}", key=operator).json()[
            "plans"
        ]
        return keyed_console.get(f"plans/{summary['number']}", key=operator).json()["imagined_by"]

    assert shown_by() == "nearest"
    write_decoder(keyed_console.model, replace(card, decoder=described), decoder)
    try:
        assert shown_by() == "decoder"
        # A file that does not belong to the card is no reason to show nothing.
        (keyed_console.model / DECODER_FILE).write_bytes(b"something else")
        (keyed_console.model / CARD_FILE).touch()
        assert shown_by() == "nearest"
    finally:
        (keyed_console.model / CARD_FILE).write_bytes(before)
