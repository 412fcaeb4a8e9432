"""A user's gymnasium environment as an environment: states, frames, replay, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from lewm_models.environments import registry, two_room_gym
from lewm_models.environments.environment import EvaluationProtocol, FloatArray, Frame
from lewm_models.environments.gymnasium_environment import Act, GymnasiumEnvironment
from lewm_models.environments.registry import find_environment
from lewm_models.environments.two_room_gym import ENV_ID
from lewm_models.evaluation.episode import Actions, run_episodes
from lewm_models.evaluation.protocol import sample_episodes

ARM = 0.1


class Puck(gymnasium.Env[Any, Any]):
    """A puck at a position in [-1, 1]²; actions are its velocity, with a hidden drift."""

    observation_space = Box(-1, 1, shape=(2,), dtype=np.float64)
    action_space: Any = Box(-2, np.array([2, 1.5]), dtype=np.float64)
    render_mode: Any = "rgb_array"
    open_puck = 0

    def __init__(self) -> None:
        type(self).open_puck += 1
        self.position = np.zeros(2)
        self.drift = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        self.drift = self.np_random.uniform(-0.01, 0.01, 2)
        return self.observation(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.position = np.clip(self.position + 0.1 * action + self.drift, -1, 1)
        return self.observation(), 0.0, False, False, self.info()

    def observation(self) -> Any:
        return self.position.copy()

    def info(self) -> dict[str, Any]:
        return {}

    def render(self) -> Any:
        frame = np.zeros((40, 60, 3), np.uint8)
        row, column = ((self.position + 1) / 2 * (39, 59)).astype(int)
        frame[row, column] = 255
        return frame

    def close(self) -> None:
        type(self).open_puck -= 1


def test_what_is_not_given_has_a_default() -> None:
    environment = GymnasiumEnvironment(Puck)
    assert environment.name == "Puck"
    assert (environment.action_low, environment.action_high) == ((-2, -2), (2, 1.5))
    assert environment.neutral_action.tolist() == [0, 0]
    assert (environment.state_dim, list(environment.protocols)) == (2, ["paper"])
    [episode] = environment.record(1, 200, seed=5)
    assert episode.states.shape == (201, 2)
    assert episode.actions.dtype == episode.states.dtype == np.float32
    assert episode.actions.min(axis=0) == pytest.approx([-2, -2], abs=0.1)
    assert episode.actions.max(axis=0) == pytest.approx([2, 1.5], abs=0.1)


def test_frames_are_square_and_belong_to_the_states() -> None:
    complete, sparse = (
        next(GymnasiumEnvironment(Puck).record(1, 12, seed=5, frame_every=every))
        for every in (1, 5)
    )
    assert complete.frames.shape == (13, 60, 60, 3)
    assert np.array_equal(sparse.frames, complete.frames[::5])
    assert np.array_equal(sparse.states, complete.states)
    assert np.array_equal(sparse.actions, complete.actions)
    for frame, state in zip(complete.frames, complete.states, strict=True):
        [(row, column)] = np.argwhere(frame[..., 0])
        assert (row, column) == (int((state[0] + 1) / 2 * 39) + 10, int((state[1] + 1) / 2 * 59))


def test_large_frames_are_reduced() -> None:
    class Large(Puck):
        def render(self) -> Any:
            return np.full((300, 400, 3), 200, np.uint8)

    [episode] = GymnasiumEnvironment(Large).record(1, 1, seed=0)
    assert episode.frames.shape == (2, 224, 224, 3)
    assert episode.frames[0, :, 0, 0].tolist() == [0] * 28 + [200] * 168 + [0] * 28


def test_states_may_come_from_info() -> None:
    class Pictured(Puck):
        def observation(self) -> Any:
            return self.render()

        def info(self) -> dict[str, Any]:
            return {"state": [*self.position, *self.drift]}

    environment = GymnasiumEnvironment(Pictured)
    assert environment.state_dim == 4
    assert environment.trajectories(2, 7, seed=1).shape == (2, 8, 4)


def test_episodes_depend_on_the_seed_only() -> None:
    first, again = (GymnasiumEnvironment(Puck).trajectories(3, 9, 7) for _ in range(2))
    assert np.array_equal(first, again)
    other = GymnasiumEnvironment(Puck).trajectories(3, 9, 8)
    assert not np.isin(first[:, 0], other[:, 0]).any()
    assert len(np.unique(first[:, 0], axis=0)) == 3
    recorded = [episode.states for episode in GymnasiumEnvironment(Puck).record(3, 9, 7)]
    np.testing.assert_allclose(recorded, first, rtol=1e-6)


def test_a_state_is_reached_again_by_its_seed_and_actions() -> None:
    """What does not show in the state, here the drift, is as it was."""
    environment = GymnasiumEnvironment(Puck)
    states = environment.trajectories(2, 9, seed=1)
    simulation = environment.simulation()
    simulation.reset(states[1, 4])
    assert np.array_equal(simulation.state(), states[1, 4])
    origin, steps = environment.origin(states[1, 4])
    assert steps == 4
    for step in range(4, 9):
        simulation.step(origin.actions[step])
        assert np.array_equal(simulation.state(), states[1, step + 1])
    with pytest.raises(ValueError, match="Puck: has no set_state, so only states of its own"):
        simulation.reset(states[1, 4] + 0.01)
    simulation.close()


def test_states_may_be_set() -> None:
    def set_state(env: Any, state: FloatArray) -> None:
        env.position, env.drift = np.array(state), np.zeros(2)

    environment = GymnasiumEnvironment(Puck, set_state=set_state)
    simulation = environment.simulation()
    simulation.reset(np.array([0.5, -0.5]))
    simulation.step(np.array([1.0, -9.0]))
    assert simulation.state() == pytest.approx([0.6, -0.7])


def test_the_user_s_policy_goal_test_name_and_protocols() -> None:
    def eastwards(generator: np.random.Generator) -> Act:
        speed = generator.uniform(0.5, 1)
        return lambda state: [0, speed]

    far = EvaluationProtocol(offset=5, budget=30)
    environment = GymnasiumEnvironment(
        Puck,
        name="my-puck",
        policy=eastwards,
        reached=lambda state, goal: abs(state[1] - goal[1]) < ARM,
        protocols={"far": far},
        has_fast_frames=True,
    )
    assert (environment.name, environment.has_fast_frames) == ("my-puck", True)
    assert environment.protocols["far"] == far
    states = environment.trajectories(4, 10, seed=2)
    assert (np.diff(states[..., 1], axis=1)[:, 0] >= 0).all()
    assert np.allclose(np.diff(states[..., 0], axis=1), np.diff(states[..., 0], axis=1)[:, :1])
    assert environment.reached(np.array([0, 0.05]), np.array([5, 0.0]))


def test_without_a_goal_test_states_must_nearly_be_equal() -> None:
    environment = GymnasiumEnvironment(Puck)
    deviation = environment.trajectories(200, 100, seed=3).std(axis=(0, 1))
    goal = np.zeros(2)
    assert environment.reached(goal + 0.07 * deviation, goal)
    assert not environment.reached(goal + 0.14 * deviation, goal)
    assert environment.reached(goal + [0.11, 0] * deviation, goal)


def test_an_evaluation_starts_and_ends_its_simulations() -> None:
    class Counted(Puck):
        open_puck = 0

    environment = GymnasiumEnvironment(Counted)
    episodes = sample_episodes(environment, "paper", 4, seed=0, offset=5)

    def straight(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        (row, column), (goal_row, goal_column) = (
            np.argwhere(shown[..., 0])[0] for shown in (frame, goal_frame)
        )
        action = 10 * np.array([2 * (goal_row - row) / 39, 2 * (goal_column - column) / 59])
        return action[None].astype(np.float32), 0.0

    episodes = replace(episodes, plan_steps=1, budget=50)
    outcomes = run_episodes(lambda: straight, episodes, seed=0, robots=2)
    assert all(outcome.reached for outcome in outcomes)
    assert Counted.open_puck == 0


def test_an_environment_that_ended_stands_still_and_cannot_be_recorded() -> None:
    class Ending(Puck):
        def step(self, action: Any) -> Any:
            observation, reward, _, truncated, info = super().step(action)
            return observation, reward, bool(self.position.max() > 0.99), truncated, info

    environment = GymnasiumEnvironment(Ending)
    with pytest.raises(ValueError, match=r"Ending: terminated after \d+ of 300 steps; make it"):
        environment.trajectories(3, 300, seed=0)
    simulation = environment.simulation()
    simulation.start(seed=0)
    for _ in range(50):
        simulation.step(np.ones(2))
    assert simulation.terminated
    state = simulation.state()
    simulation.step(-np.ones(2))
    assert np.array_equal(simulation.state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"render_mode": None}, "render_mode='rgb_array', got None"),
        ({"render_mode": "human"}, "render_mode='rgb_array', got 'human'"),
        ({"action_space": Discrete(4)}, r"numbers in one row, .*, got Discrete\(4\)"),
        ({"action_space": Box(-1, 1, shape=(2, 2))}, "numbers in one row"),
        ({"action_space": Box(-np.inf, 1, shape=(2,))}, "actions with finite bounds"),
        ({"render": lambda self: None}, r"render\(\) to return \(H, W, 3\) of uint8, got NoneType"),
        ({"render": lambda self: np.zeros((4, 4, 3))}, r"got \(4, 4, 3\) of float64"),
        ({"observation": lambda self: np.zeros((4, 4))}, r"info\['state'\].*got ndarray \(4, 4\)"),
        ({"observation": lambda self: {"a": np.zeros(2)}}, "got dict"),
    ],
)
def test_an_environment_that_lacks_something_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^Lacking: .*{message}"):
        GymnasiumEnvironment(type("Lacking", (Puck,), changes))


def test_an_environment_that_is_not_deterministic_is_refused() -> None:
    class Noisy(Puck):
        def step(self, action: Any) -> Any:
            self.drift = np.random.default_rng().normal(0, 0.1, 2)
            return super().step(action)

    with pytest.raises(ValueError, match="Noisy: is not deterministic: two runs"):
        GymnasiumEnvironment(Noisy)


def test_a_policy_with_wrong_actions_is_refused() -> None:
    environment = GymnasiumEnvironment(Puck, policy=lambda generator: lambda state: [1.0])
    with pytest.raises(ValueError, match=r"Puck: expected 2 finite numbers as action, got \[1.0\]"):
        environment.trajectories(1, 3, seed=0)


def test_a_factory_makes_a_gymnasium_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = f"{__name__}:Puck"
    monkeypatch.setattr(registry, "_load", lambda asked: {reference: Puck}[asked])
    environment = find_environment(reference)
    assert isinstance(environment, GymnasiumEnvironment)
    assert environment.name == "Puck"


def test_environments_of_gymnasium_itself() -> None:
    environment = GymnasiumEnvironment(
        lambda: gymnasium.make(f"{two_room_gym.__name__}:{ENV_ID}", render_mode="rgb_array")
    )
    assert environment.name == "TwoRoom-v0"
    assert environment.state_dim == 4
