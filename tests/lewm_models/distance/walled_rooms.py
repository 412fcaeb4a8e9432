"""Walks in two rooms with a door: the shortest ways are known."""

from __future__ import annotations

import heapq

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_models.distance.latents import PieceLatents

SIZE, WALL, DOOR = 7, 3, 0
"""Cells of a side; the column of the wall; the row of its only door."""


def neighbours(cell: tuple[int, int]) -> list[tuple[int, int]]:
    """The cells that are one step away, the cell itself included."""
    x, y = cell
    around = [(x, y), (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
    return [
        (a, b) for a, b in around if 0 <= a < SIZE and 0 <= b < SIZE and (a != WALL or b == DOOR)
    ]


def random_walks(walks: int, steps: int, seed: int) -> PieceLatents:
    """Walks of one block a step, from random cells."""
    generator = np.random.default_rng(seed)
    cells = [(x, y) for x in range(SIZE) for y in range(SIZE) if neighbours((x, y)) and x != WALL]
    positions: list[tuple[int, int]] = []
    for _ in range(walks):
        cell = cells[generator.integers(len(cells))]
        for _ in range(steps + 1):
            positions.append(cell)
            around = neighbours(cell)
            cell = around[generator.integers(len(around))]
    return PieceLatents(
        latents=latents_of(np.array(positions)),
        offsets=np.arange(walks + 1) * (steps + 1),
        times=np.tile(np.arange(steps + 1, dtype=np.float32), walks),
    )


def latents_of(positions: NDArray[np.int64]) -> torch.Tensor:
    """Positions (…, 2) as latents (…, SIZE²), of which one value is 1."""
    return torch.eye(SIZE * SIZE)[torch.as_tensor(positions @ [1, SIZE])]


def shortest_steps(start: tuple[int, int]) -> dict[tuple[int, int], int]:
    """The steps of the shortest way from a cell to each cell."""
    steps = {start: 0}
    queue = [(0, start)]
    while queue:
        count, cell = heapq.heappop(queue)
        for other in neighbours(cell):
            if other not in steps:
                steps[other] = count + 1
                heapq.heappush(queue, (count + 1, other))
    return steps
