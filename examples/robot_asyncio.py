"""Several robots in one asyncio program. While one of them waits for its plan, the others move."""

import argparse
import asyncio

import gymnasium

from lewm_client import AsyncPlannerClient, PlannerError

ENVIRONMENT = "lewm_models.environments.two_room_gym:lewm/TwoRoom-v0"
STEPS = 5
"""How many actions of a plan are run before the next one."""


async def drive(client: AsyncPlannerClient, seed: int, max_steps: int) -> bool:
    """Drive one robot. True: it reached its goal."""
    env = gymnasium.make(ENVIRONMENT, render_mode="rgb_array", max_episode_steps=max_steps)
    _, info = env.reset(seed=seed)
    warm_start = None
    while True:
        try:
            plan = await client.plan(
                [env.render()], info["goal_frame"], warm_start=warm_start, timeout_s=5.0
            )
        except PlannerError as error:
            print(f"robot {seed} waits: {error}")
            await asyncio.sleep(0.1)
            continue
        for action in plan.actions[:STEPS]:
            _, _, reached, ended, info = env.step(action)
            if reached or ended:
                print(f"robot {seed}: {info['distance']:.1f} pixels from its goal")
                return reached
        warm_start = plan.actions[STEPS:]  # the next search starts at the rest of this plan
        await asyncio.sleep(0)  # a real robot takes its time here


async def main() -> None:
    """Drive the robots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051", help="host and port of gRPC")
    parser.add_argument("--robots", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=150)
    options = parser.parse_args()
    async with AsyncPlannerClient(options.server) as client:
        seeds = range(options.robots)
        results = await asyncio.gather(*(drive(client, seed, options.max_steps) for seed in seeds))
    print(f"{sum(results)} of {options.robots} robots reached their goals")


if __name__ == "__main__":
    asyncio.run(main())
