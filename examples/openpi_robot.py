"""A robot that speaks to openpi's policies, unchanged but for the keys of its observations.

It needs only `openpi-client`. The frames are files; yours come from a camera.
"""

import argparse
from pathlib import Path

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image

FRAMES = Path(__file__).parents[1] / "docs" / "frames"


def main() -> None:
    """Connect, and ask for actions one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="the server's HTTP port")
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--start", type=Path, default=FRAMES / "start.png")
    parser.add_argument("--goal", type=Path, default=FRAMES / "goal.png")
    options = parser.parse_args()

    policy = WebsocketClientPolicy(options.host, options.port, options.api_key)
    metadata = policy.get_server_metadata()
    horizon = metadata["action_horizon"]
    print(f"{metadata['server']}: {metadata['model']} plans {horizon} actions")

    # The broker asks for a new plan when five actions of the last one have been run.
    broker = ActionChunkBroker(policy, action_horizon=metadata["action_block"])
    start, goal = (
        np.asarray(Image.open(path).convert("RGB")) for path in (options.start, options.goal)
    )
    observation = {
        "observation/image": start,
        "observation/state": np.zeros(2, np.float32),  # for a fallback controller
        "goal/image": goal,  # later observations may leave it out: the server keeps it
        "prompt": "drive to the goal",  # other policies need it; this one looks at the goal
    }
    for step in range(2 * metadata["action_block"]):
        answer = broker.infer(observation)
        observation.pop("goal/image", None)
        print(f"step {step}: {np.round(answer['actions'], 3)} ({answer['status']})")
    print(f"{answer['server_timing']['infer_ms']:.1f} ms for the last plan")


if __name__ == "__main__":
    main()
