"""What a program does with an unmodified tritonclient, over HTTP or gRPC. It prints JSON.

It runs in the environment of the clients, which has neither the server nor this repository.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tritonclient.utils import InferenceServerException

MODEL = "two-room"


def main(transport: str, address: str, frames: Path, key: str | None) -> None:
    """Ask for everything that the protocol has."""
    triton = importlib.import_module(f"tritonclient.{transport}")
    client = triton.InferenceServerClient(address)

    def headers() -> dict[str, str]:
        """The client writes into the headers that it gets."""
        return {} if key is None else {"authorization": f"Bearer {key}"}

    arrays = [np.asarray(Image.open(frames / f"{name}.png")) for name in ("start", "goal")]
    files = [(frames / f"{name}.png").read_bytes() for name in ("start", "goal")]

    def tensor(name: str, array: Any, datatype: str, **options: bool) -> Any:
        made = triton.InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array, **options)
        return made

    def infer(inputs: list[Any], names: tuple[str, ...] = (), **options: Any) -> Any:
        outputs = [triton.InferRequestedOutput(name) for name in names] or None
        return client.infer(MODEL, inputs, outputs=outputs, headers=headers(), **options)

    def metadata() -> dict[str, Any]:
        found = client.get_model_metadata(MODEL, headers=headers())
        if transport == "http":
            return dict(found)
        return {
            "versions": list(found.versions),
            "inputs": [{"name": item.name, "datatype": item.datatype} for item in found.inputs],
            "outputs": [{"name": item.name, "datatype": item.datatype} for item in found.outputs],
        }

    server = client.get_server_metadata(headers=headers())
    model = metadata()
    result: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL, headers=headers()),
        "version_ready": client.is_model_ready(MODEL, model["versions"][0], headers=headers()),
        "no_model_ready": client.is_model_ready("nothing", headers=headers()),
        "server": server["name"] if transport == "http" else server.name,
        "inputs": {item["name"]: item["datatype"] for item in model["inputs"]},
        "outputs": {item["name"]: item["datatype"] for item in model["outputs"]},
    }

    frames_and_goal = [
        tensor("frames", arrays[0][None, None], "UINT8"),
        tensor("goal", arrays[1][None], "UINT8"),
    ]
    one = infer(frames_and_goal, parameters={"seed": 7}, request_id="my-id")
    response = one.get_response()
    result["id"] = response["id"] if transport == "http" else response.id
    result["actions"] = one.as_numpy("actions")[0].tolist()
    result["one"] = {
        name: one.as_numpy(name)[0].item() for name in ("cost", "iterations", "seed", "total_ms")
    }
    result["status"] = one.as_numpy("status")[0].decode()
    result["goal_id"] = one.as_numpy("goal_id")[0].decode()
    result["no_trajectory"] = one.as_numpy("trajectory") is None

    pair = infer(
        [
            tensor("frames", np.array([[files[0]], [files[1]]], object), "BYTES"),
            tensor("goal", np.array([files[1], files[0]], object), "BYTES"),
            tensor("seed", np.array([7, 8]), "INT64"),
        ],
        ("trajectory", "actions", "health"),
        priority=9,
        timeout=60_000_000,
    )
    result["pair"] = [list(pair.as_numpy(name).shape) for name in ("actions", "trajectory")]
    result["pair_first"] = pair.as_numpy("actions")[0].tolist()
    result["pair_health"] = [value.decode() for value in pair.as_numpy("health")]

    ids = [
        tensor("frame_ids", one.as_numpy("frame_ids"), "BYTES"),
        tensor("goal_id", one.as_numpy("goal_id"), "BYTES"),
    ]
    by_id = infer(ids, parameters={"seed": 7})
    result["by_id"] = by_id.as_numpy("actions")[0].tolist() == result["actions"]

    encode: dict[str, Any] = {"parameters": {"operation": "encode"}}
    encoded = infer(frames_and_goal[:1], **encode)
    result["latents"] = list(encoded.as_numpy("latents").shape)
    predict: dict[str, Any] = {"parameters": {"operation": "predict"}}
    actions = np.array([result["actions"]], np.float32)
    predicted = infer([frames_and_goal[0], tensor("actions", actions, "FP32")], **predict)
    result["predicted"] = list(predicted.as_numpy("latents").shape)

    if transport == "http":
        listed = [tensor("frames", arrays[0][None, None], "UINT8", binary_data=False)]
        outputs = [triton.InferRequestedOutput("norms", binary_data=False)]
        in_json = client.infer(MODEL, listed, outputs=outputs, headers=headers(), **encode)
        result["norm_in_json"] = in_json.as_numpy("norms")[0].tolist()
        gzip = infer(frames_and_goal[:1], request_compression_algorithm="gzip", **encode)
        result["norm_of_gzip"] = gzip.as_numpy("norms")[0].tolist()
    result["norm"] = encoded.as_numpy("norms")[0].tolist()

    result["errors"] = []
    mistakes: list[Any] = [
        lambda: infer(frames_and_goal, parameters={"solver.samples": 0}),
        lambda: infer(frames_and_goal, parameters={"colour": "red"}),
        lambda: infer(frames_and_goal[:1]),
        lambda: infer(frames_and_goal, ("height",)),
        lambda: infer(frames_and_goal, timeout=1),
        lambda: client.infer("nothing", frames_and_goal, headers=headers()),
        lambda: client.get_model_metadata("nothing", headers=headers()),
    ]
    for wrong in mistakes:
        try:
            wrong()
        except InferenceServerException as error:
            result["errors"].append([error.status(), error.message()])
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
