"""What happens to a robot in the closed loop with faults, and how its figures are kept."""

from dataclasses import asdict

import pytest
import torch

from benchmarks.fallbacks import FROZEN, Cell, Drive, hits_wall, merged, see, table
from lewm_models.environments import two_room

RAN = "onnx, float32"
WELL = Drive(reached=True, steps=10, wall_hits=1, fallback_steps=0)
LOST = Drive(reached=False, steps=30, wall_hits=4, fallback_steps=20)


def room(x: float, y: float) -> two_room.VectorTwoRoom:
    return two_room.VectorTwoRoom(torch.tensor([[x, y]]), torch.tensor([[180.0, 180.0]]))


def test_the_camera_shows_what_its_fault_makes_of_the_room() -> None:
    here, generator = room(60.0, 60.0), torch.Generator().manual_seed(0)
    before = room(30.0, 30.0).frames()
    assert torch.equal(see(here, before, "none", generator), here.frames())
    assert torch.equal(see(here, before, FROZEN, generator), before)
    assert not see(here, before, "black", generator).any()


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
def test_hitting_a_wall_is_being_stopped_short(
    position: tuple[float, float], action: tuple[float, float], hit: bool
) -> None:
    assert hits_wall(torch.tensor([position]), torch.tensor([action])) == hit


def test_a_cell_sums_its_episodes_up() -> None:
    cell = Cell.of("paper", "black", "hold", RAN, [WELL, LOST])
    assert (cell.ran, cell.episodes, cell.reached) == (RAN, 2, 1)
    assert (cell.steps, cell.wall_hits, cell.fallback_steps) == (40, 5, 20)
    assert cell.interval_95[0] < 0.5 < cell.interval_95[1]


def test_fresh_cells_replace_those_of_their_fault_alone() -> None:
    known = [
        asdict(Cell.of(protocol, fault, "hold", RAN, [WELL]))
        for protocol in ("paper", "cross-room")
        for fault in ("none", "black")
    ]
    cells = merged(known, [Cell.of("paper", "none", "hold", RAN, [LOST, LOST])])
    kept = [(cell["protocol"], cell["fault"], cell["episodes"]) for cell in cells]
    assert kept == [
        ("paper", "none", 2),
        ("paper", "black", 1),
        ("cross-room", "none", 1),
        ("cross-room", "black", 1),
    ]


def test_the_table_has_a_row_for_each_fault() -> None:
    drives = {"none": [WELL], "hold": [LOST], "tail": [WELL, LOST], "waypoint": [WELL]}
    cells = [asdict(Cell.of("paper", "black", name, RAN, those)) for name, those in drives.items()]
    row = table(cells).splitlines()[-1]
    assert row == (
        "| paper | black | 1 of 1; 1; 0 % | 0 of 1; 4; 67 % | 1 of 2; 5; 50 % | 1 of 1; 1; 0 % |"
    )
