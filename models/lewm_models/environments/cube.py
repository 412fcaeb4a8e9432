"""OGBench's Cube: a robot arm has to bring a cube to where a goal frame shows it.

Simulator and data policy are those of OGBench (package `ogbench`) with a single cube; noise,
success test and protocol are those of `stable_worldmodel`. A state holds the positions (21,) and
the velocities (20,) of MuJoCo: six joints of the arm, eight of the gripper, and the cube. An action
is a move of the gripper along x, y and z, its turn, and its closing, (5,) in [-1, 1], and holds
for 0.05 s.

The frames are not OGBench's: its meshes of 185,000 triangles and its shadows take nearly half a
second a frame on a CPU. The camera is the same, the robot is drawn by the shapes that collisions
are computed with, and there are no shadows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments.environment import (
    Environment,
    FloatArray,
    Frame,
    RecordedEpisode,
    load_simulator,
)
from lewm_models.environments.mujoco_library import load_mujoco

FRAME_SIZE = 224
CAMERA = "front_pixels"

POSITIONS = 21
"""The numbers of a state that are positions; velocities follow."""
CUBE_POSITION = slice(14, 17)
"""The numbers of a state that are the place of the cube's centre, in metres."""

TOLERANCE = 0.04
"""A goal is reached if the cube's centre is at most this far from the goal's, in metres."""

MAX_NOISE = 0.1
"""The noise of an episode's actions has a deviation between 0 and this, times `NOISE_SHAPE`."""
NOISE_SHAPE = (1.0, 1.0, 1.0, 3.0, 10.0)

DRAWN_GROUPS = (1, 1, 0, 1, 0, 0)
"""The groups of shapes that are drawn: floor and cube, and those of collisions, not the meshes."""
HIDDEN_GROUP = 5


class CubeSimulation:
    """One robot, and one cube."""

    def __init__(self) -> None:
        self._mujoco = load_mujoco(Cube.name)
        library = load_simulator("ogbench.manipspace.envs.cube_env", Cube.name)
        self.world = library.CubeEnv(
            "single",
            mode="data_collection",
            terminate_at_goal=False,
            visualize_info=False,
            width=FRAME_SIZE,
            height=FRAME_SIZE,
        )
        self.info: dict[str, Any] = self.world.reset(seed=0)[1]
        self._renderer: Any = None

    def start(self, seed: int) -> None:
        """Put arm, cube and the cube's target of the data policy to random places."""
        self.info = self.world.reset(seed=seed)[1]

    def reset(self, state: FloatArray) -> None:
        model, data = self.world.model, self.world.data
        self._mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = state[:POSITIONS], state[POSITIONS:]
        self._mujoco.mj_forward(model, data)

    def step(self, action: FloatArray) -> None:
        self.info = self.world.step(np.clip(action, -1, 1))[-1]
        # Otherwise the next action and frame would be computed with the places of 2 ms before.
        self._mujoco.mj_forward(self.world.model, self.world.data)

    def frame(self) -> Frame:
        if self._renderer is None:
            self._renderer = self._make_renderer()
        options = self._mujoco.MjvOption()
        options.geomgroup[:] = DRAWN_GROUPS
        options.flags[self._mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = True
        self._renderer.update_scene(self.world.data, camera=CAMERA, scene_option=options)
        picture: Frame = self._renderer.render()
        return picture

    def state(self) -> FloatArray:
        return np.concatenate((self.world.data.qpos, self.world.data.qvel))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _make_renderer(self) -> Any:
        model, flags = self.world.model, self._mujoco.mjtRndFlag
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        for geom in range(model.ngeom):
            if model.geom(geom).name.startswith("wall"):  # nearly transparent planes at the border
                model.geom_group[geom] = HIDDEN_GROUP
        try:
            renderer = self._mujoco.Renderer(model, FRAME_SIZE, FRAME_SIZE)
        except Exception as error:  # each kind of OpenGL fails in its own way
            raise ValueError(
                f"--env {Cube.name}: frames need OpenGL ({error}); without a display it comes with "
                "the Debian packages libegl1 and libgl1-mesa-dri"
            ) from error
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX):
            renderer.scene.flags[flag] = False
        return renderer


class Cube(Environment):
    """A cube that OGBench's Markov oracle takes from one random target to the next.

    Starts with the cube within 4 cm of the goal's are left out of the protocols. The field counts
    them as reached.
    """

    name = "cube"
    action_low = (-1.0,) * 5
    action_high = (1.0,) * 5
    state_dim = 41
    trajectory_steps = 200

    def simulation(self) -> CubeSimulation:
        return CubeSimulation()

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        simulation = CubeSimulation()
        try:
            for number in range(episodes):
                frames = []
                actions = np.empty((steps, self.action_dim), np.float32)
                states = np.empty((steps + 1, self.state_dim), np.float32)
                for step, action in enumerate(_data_policy(simulation, steps, (seed, number))):
                    states[step] = simulation.state()
                    if step % frame_every == 0:
                        frames.append(simulation.frame())
                    if action is not None:
                        actions[step] = action
                yield RecordedEpisode(np.stack(frames), actions, states)
        finally:
            simulation.close()

    def trajectories(self, episodes: int, steps: int, seed: int) -> FloatArray:
        simulation = CubeSimulation()
        return np.stack(
            [
                [
                    simulation.state().astype(np.float32)
                    for _ in _data_policy(simulation, steps, (seed, number))
                ]
                for number in range(episodes)
            ]
        )

    def reached(self, state: FloatArray, goal: FloatArray) -> bool:
        apart = np.asarray(state, np.float64)[CUBE_POSITION] - goal[CUBE_POSITION]
        return bool(np.linalg.norm(apart) <= TOLERANCE)


CUBE = Cube()


def _data_policy(
    simulation: CubeSimulation, steps: int, seed: tuple[int, int]
) -> Iterator[NDArray[np.float32] | None]:
    """Start an episode, and yield the action (5,) before each of its steps, and None at its end.

    The oracle grasps the cube, brings it to a target and goes elsewhere. Then it gets a new target.
    """
    generator = np.random.default_rng(seed)
    world = simulation.world
    simulation.start(int(generator.integers(2**31)))
    library = load_simulator("ogbench.manipspace.oracles.markov.cube_markov", Cube.name)
    oracle = library.CubeMarkovOracle(env=world)

    def begin_task() -> None:
        oracle.reset(None, simulation.info)
        # OGBench draws these from NumPy's global generator, which has no seed here.
        oracle._final_pos = generator.uniform(*world._arm_sampling_bounds)
        oracle._final_yaw = generator.uniform(-np.pi, np.pi)

    begin_task()
    noise = generator.uniform(0, MAX_NOISE) * np.array(NOISE_SHAPE)
    for _ in range(steps):
        action = oracle.select_action(None, simulation.info) + generator.normal(0, noise)
        action = np.clip(action, -1, 1).astype(np.float32)
        yield action
        simulation.step(action)
        if oracle.done:
            simulation.info = world.set_new_target(p_stack=0.0)[1]
            begin_task()
    yield None
