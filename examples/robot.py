"""A robot's control loop: take a frame, ask for a plan, run its first actions, and so on.

The robot is simulated. Yours has a camera in place of `env.render()` and motors in place of
`env.step()`; the rest stays.
"""

import argparse

import gymnasium

from lewm_client import Driver, PlannerClient

ENVIRONMENT = "lewm_models.environments.two_room_gym:lewm/TwoRoom-v0"


def main() -> None:
    """Drive one robot to its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051", help="host and port of gRPC")
    parser.add_argument("--seed", type=int, default=0, help="of the start and the goal")
    parser.add_argument("--max-steps", type=int, default=150)
    options = parser.parse_args()

    env = gymnasium.make(ENVIRONMENT, render_mode="rgb_array", max_episode_steps=options.max_steps)
    _, info = env.reset(seed=options.seed)
    with PlannerClient(options.server, robot="example") as client:
        # A plan that is late or fails is replaced by the rest of the last one.
        driver = Driver(client, goal=info["goal_frame"], steps=5, timeout_s=5.0, fallback="tail")
        reached = ended = False
        while not (reached or ended):
            move = driver.step(env.render())
            for action in move.actions:
                _, _, reached, ended, info = env.step(action)
                if reached or ended:
                    break
            print(f"{move.source}: {info['distance']:.1f} pixels to go")
    print("reached the goal" if reached else "did not reach the goal")


if __name__ == "__main__":
    main()
