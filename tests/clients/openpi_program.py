"""What a robot's program does with an unmodified openpi-client. It prints JSON.

It runs in the environment of the clients, which has neither the server nor this repository.
"""

import json
import sys
from pathlib import Path

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image


def main(port: int, frames: Path, key: str | None) -> None:
    """Connect, plan, make mistakes, and plan again."""
    policy = WebsocketClientPolicy("127.0.0.1", port, api_key=key)
    start, goal = (np.asarray(Image.open(frames / f"{name}.png")) for name in ("start", "goal"))
    observation = {
        "observation/image": start,
        "observation/state": np.zeros(4),
        "goal/image": goal,
        "prompt": "go",
        "seed": np.int64(7),
    }
    first = policy.infer(observation)
    del observation["goal/image"]
    again = policy.infer(observation)
    errors = []
    for wrong in (
        {"observation/image": start[:, :100]},
        {"observation/image": start / 255},
        {"observation/image": start, "observation/wrist_image": start},
        {"observation/image": start, "seed": -1},
        {"observation/image": start, "fallback": {"controller": "who"}},
    ):
        try:
            policy.infer(wrong)
        except RuntimeError as error:
            errors.append(str(error))
    broker = ActionChunkBroker(policy, action_horizon=5)
    chunks = [broker.infer(observation)["actions"].tolist() for _ in range(7)]
    fallback = {"controller": "waypoint"}
    late = policy.infer(
        observation
        | {
            "observation/state": np.array([50.0, 50.0, 60.0, 60.0]),
            "fallback": fallback,
            "deadline_ms": 1e-6,
        }
    )
    print(
        json.dumps(
            {
                "numpy": np.__version__,
                "metadata": policy.get_server_metadata(),
                "actions": first["actions"].tolist(),
                "dtype": str(first["actions"].dtype),
                "same": bool((first["actions"] == again["actions"]).all()),
                "timing": sorted(again["server_timing"]),
                "health": first["health"]["status"],
                "errors": errors,
                "chunks": chunks,
                "late": [late["status"], late["fallback"]],
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
