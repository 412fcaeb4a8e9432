"""Two-Room as an `Environment`: a state is the agent's position (x, y) in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.environment import (
    PAPER,
    Environment,
    EvaluationProtocol,
    FloatArray,
    Frame,
    Pairs,
    RecordedEpisode,
)
from lewm_models.environments.two_room_policy import simulate_trajectories
from lewm_models.environments.two_room_ways import shortest_way, travelled

CROSS_ROOM = "cross-room"


class TwoRoomSimulation:
    """One agent; see `lewm_models.environments.environment.Simulation`."""

    def __init__(self) -> None:
        self._position = torch.empty(1, 2)

    def reset(self, state: FloatArray) -> None:
        self._position = _points(state[None])

    def step(self, action: FloatArray) -> None:
        self._position = two_room.move(self._position, _points(action[None]))

    def frame(self) -> Frame:
        frame: Frame = two_room.render(self._position)[0].numpy()
        return frame

    def state(self) -> FloatArray:
        state: NDArray[np.float32] = self._position[0].numpy().copy()
        return state

    def close(self) -> None:
        """There is nothing to free."""


class TwoRoom(Environment):
    """An agent that has to go through a door to goals in another room."""

    name = "two-room"
    action_low = (-1.0, -1.0)
    action_high = (1.0, 1.0)
    state_dim = 2
    state_names = ("x", "y")
    controllers = ("waypoint",)
    protocols: Mapping[str, EvaluationProtocol] = {
        "paper": PAPER,
        CROSS_ROOM: EvaluationProtocol(budget=150),
    }
    demo_protocol = CROSS_ROOM
    has_fast_frames = True
    trajectories_per_draw = 256

    def simulation(self) -> TwoRoomSimulation:
        return TwoRoomSimulation()

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        """Simulate all episodes together, which is cheap, then draw one after another."""
        positions, actions = simulate_trajectories(episodes, steps, _generator(seed))
        for episode in range(episodes):
            states = positions[:, episode].contiguous()
            yield RecordedEpisode(
                frames=two_room.render(states[::frame_every]).numpy(),
                actions=actions[:, episode].numpy(),
                states=states.numpy(),
            )

    def trajectories(self, episodes: int, steps: int, seed: int) -> FloatArray:
        positions, _ = simulate_trajectories(episodes, steps, _generator(seed))
        states: NDArray[np.float32] = positions.transpose(0, 1).numpy()
        return states

    def reached(self, state: FloatArray, goal: FloatArray) -> bool:
        distance = two_room.distance(_points(state[None]), _points(goal[None]))
        return bool(distance < two_room.GOAL_RADIUS)

    def detour(self, states: FloatArray, goal: FloatArray) -> float | None:
        """From the start to the disc in which the goal counts as reached."""
        path = [(float(x), float(y)) for x, y in states]
        centre = (float(goal[0]), float(goal[1]))
        shortest = shortest_way(path[0], centre, radius=two_room.GOAL_RADIUS)
        if shortest == 0 or len(path) < 2:
            return None
        return travelled(path, centre, radius=two_room.GOAL_RADIUS) / shortest

    def state_at(self, x: float, y: float) -> FloatArray | None:
        """The agent at this point; beside border and wall if the point is in one of them."""
        low, high = two_room.REACH_MIN, two_room.REACH_MAX
        point = np.clip(np.array([x, y]) * (two_room.IMAGE_SIZE - 1), low, high)
        left, right = two_room.WALL_LEFT, two_room.WALL_RIGHT
        if left < point[0] < right and not two_room.DOOR_TOP < point[1] < two_room.DOOR_BOTTOM:
            point[0] = left if point[0] < (left + right) / 2 else right
        state: NDArray[np.float32] = point.astype(np.float32)
        return state

    def pairs_on_trajectories(self, offset: int, seed: int) -> Iterator[Pairs]:
        # One generator draws everything, so that seeds give the episodes of published figures.
        generator = _generator(seed)
        count, steps = self.trajectories_per_draw, max(self.trajectory_steps, offset)
        while True:
            trajectories, _ = simulate_trajectories(count, steps, generator)
            first = torch.randint(steps - offset + 1, (count,), generator=generator)
            agents = torch.arange(count)
            starts, goals = trajectories[first, agents], trajectories[first + offset, agents]
            yield self.apart(starts.numpy(), goals.numpy())

    def draw_pairs(self, protocol: str, seed: int) -> Iterator[Pairs]:
        """Random starts and goals in different rooms."""
        if protocol != CROSS_ROOM:
            yield from super().draw_pairs(protocol, seed)
        generator, count = _generator(seed), self.trajectories_per_draw
        while True:
            starts = two_room.sample_positions(count, generator)
            goals = two_room.sample_goals(count, generator)
            is_across = ~two_room.same_room(starts, goals)
            yield starts[is_across].numpy(), goals[is_across].numpy()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _points(values: FloatArray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


TWO_ROOM = TwoRoom()
