"""Evaluate the planner in a gymnasium environment, through the API as a robot uses it.

The environment has to show the goal as a frame, here in `info["goal_frame"]`. `lewm evaluate` does
more: confidence intervals, baselines, the published protocols.
"""

import argparse
import statistics
import time

import gymnasium

from lewm_client import Driver, PlannerClient

ENVIRONMENT = "lewm_models.environments.two_room_gym:lewm/TwoRoom-v0"


def run_episode(
    env: gymnasium.Env, client: PlannerClient, seed: int, plan_ms: list[float]
) -> tuple[bool, int]:
    """One episode: whether the goal was reached, and after how many steps."""
    _, info = env.reset(seed=seed)
    driver = Driver(client, goal=info["goal_frame"], steps=5, timeout_s=30.0)
    steps = 0
    while True:
        started = time.perf_counter()
        move = driver.step(env.render())
        plan_ms.append(1000 * (time.perf_counter() - started))
        for action in move.actions:
            _, _, terminated, truncated, _ = env.step(action)
            steps += 1
            if terminated or truncated:
                return terminated, steps


def main() -> None:
    """Run the episodes and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051", help="host and port of gRPC")
    parser.add_argument("--env", default=ENVIRONMENT, help="the id of a gymnasium environment")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--max-steps", type=int, default=150)
    options = parser.parse_args()

    env = gymnasium.make(options.env, render_mode="rgb_array", max_episode_steps=options.max_steps)
    plan_ms: list[float] = []
    with PlannerClient(options.server) as client:
        results = [run_episode(env, client, seed, plan_ms) for seed in range(options.episodes)]
    reached = [steps for success, steps in results if success]
    print(f"success: {len(reached)} of {options.episodes}")
    if reached:
        print(f"steps to the goal: {statistics.median(reached):g} (median)")
    print(f"plan: {statistics.median(plan_ms):.1f} ms (median of {len(plan_ms)})")


if __name__ == "__main__":
    main()
