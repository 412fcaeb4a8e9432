"""Robots in closed loop under faults: what the camera shows, and how results are kept."""

from dataclasses import asdict

import pytest
import torch

from benchmarks.fallbacks import (
    CONTROLLERS,
    FROZEN,
    NO_FAULT,
    Episode,
    camera_frame,
    hits_wall,
    markdown_table,
    replace_summaries,
    summarise,
)
from lewm_models.environments import two_room

RAN = "onnx, float32"
REACHED = Episode(reached=True, steps=10, wall_hits=1, fallback_steps=0)
LOST = Episode(reached=False, steps=30, wall_hits=4, fallback_steps=20)


def room(x: float, y: float) -> two_room.VectorTwoRoom:
    """A room with a robot at this position."""
    return two_room.VectorTwoRoom(torch.tensor([[x, y]]), torch.tensor([[180.0, 180.0]]))


def test_the_camera_shows_the_room_under_a_fault() -> None:
    here, generator = room(60.0, 60.0), torch.Generator().manual_seed(0)
    last_frame = room(30.0, 30.0).frames()
    assert torch.equal(camera_frame(here, last_frame, NO_FAULT, generator), here.frames())
    assert torch.equal(camera_frame(here, last_frame, FROZEN, generator), last_frame)
    assert not camera_frame(here, last_frame, "black", generator).any()


@pytest.mark.parametrize(
    ("position", "action", "hit"),
    [
        ((60.0, 60.0), (1.0, -1.0), False),
        ((60.0, 60.0), (3.0, 0.0), False),  # clipped, as every action is
        ((98.0, 150.0), (1.0, 0.0), True),
        ((98.0, 49.0), (1.0, 0.0), False),  # through the door
        ((22.0, 60.0), (-1.0, 0.0), True),
    ],
)
def test_a_move_that_ends_early_hits_a_wall(
    position: tuple[float, float], action: tuple[float, float], hit: bool
) -> None:
    assert hits_wall(torch.tensor([position]), torch.tensor([action])) == hit


def test_a_summary_sums_up_episodes() -> None:
    summary = summarise([REACHED, LOST], protocol="paper", fault="black", fallback="hold", ran=RAN)
    assert (summary.ran, summary.episodes, summary.reached) == (RAN, 2, 1)
    assert (summary.steps, summary.wall_hits, summary.fallback_steps) == (40, 5, 20)
    assert summary.interval_95[0] < 0.5 < summary.interval_95[1]


def test_new_summaries_replace_those_of_their_protocol_and_fault() -> None:
    known = [
        asdict(summarise([REACHED], protocol=protocol, fault=fault, fallback="hold", ran=RAN))
        for protocol in ("paper", "cross-room")
        for fault in ("none", "black")
    ]
    new = summarise([LOST, LOST], protocol="paper", fault="none", fallback="hold", ran=RAN)
    summaries = replace_summaries(known, [new])
    kept = [(one["protocol"], one["fault"], one["episodes"]) for one in summaries]
    assert kept == [
        ("paper", "none", 2),
        ("paper", "black", 1),
        ("cross-room", "none", 1),
        ("cross-room", "black", 1),
    ]


def test_the_table_has_a_row_for_each_fault() -> None:
    episodes = dict(zip(CONTROLLERS, ([REACHED], [LOST], [REACHED, LOST], [REACHED]), strict=True))
    summaries = [
        asdict(summarise(some, protocol="paper", fault="black", fallback=controller, ran=RAN))
        for controller, some in episodes.items()
    ]
    row = markdown_table(summaries).splitlines()[-1]
    assert row == (
        "| paper | black | 1 of 1; 1; 0 % | 0 of 1; 4; 67 % | 1 of 2; 5; 50 % | 1 of 1; 1; 0 % |"
    )
