"""Triton's client: what the server has, a batch of plans over HTTP, and one plan over gRPC.

It needs only `tritonclient[grpc,http]`. All tensors have the batch as their first axis.
"""

import argparse
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http

FRAMES = Path(__file__).parents[1] / "docs" / "frames"


def to_input(client: object, name: str, array: np.ndarray, datatype: str) -> object:
    """An input tensor of one of the two clients."""
    tensor = client.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def main() -> None:
    """Ask for health and metadata, then for plans."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", default="127.0.0.1:8000", help="host and port of HTTP")
    parser.add_argument("--grpc", default="127.0.0.1:50051", help="host and port of gRPC")
    parser.add_argument("--model", default="two-room")
    options = parser.parse_args()

    # Files of PNG or JPEG are of type BYTES; arrays of pixels would be UINT8.
    start, goal = ((FRAMES / name).read_bytes() for name in ("start.png", "goal.png"))

    with tritonclient.http.InferenceServerClient(options.http) as client:
        assert client.is_server_ready()
        metadata = client.get_model_metadata(options.model)
        print("inputs:", *(tensor["name"] for tensor in metadata["inputs"]))
        there_and_back = [
            # two plans of one frame each
            to_input(tritonclient.http, "frames", np.array([[start], [goal]], object), "BYTES"),
            to_input(tritonclient.http, "goal", np.array([goal, start], object), "BYTES"),
        ]
        result = client.infer(
            options.model, there_and_back, parameters={"seed": 7}, timeout=10_000_000
        )
        print("actions of both plans:", result.as_numpy("actions").shape)
        print("status:", *(status.decode() for status in result.as_numpy("status")))

    with tritonclient.grpc.InferenceServerClient(options.grpc) as client:
        inputs = [
            to_input(tritonclient.grpc, "frames", np.array([[start]], object), "BYTES"),
            to_input(tritonclient.grpc, "goal", np.array([goal], object), "BYTES"),
        ]
        again = client.infer(options.model, inputs, parameters={"seed": 7})
        same = np.array_equal(again.as_numpy("actions")[0], result.as_numpy("actions")[0])
        print("the same plan over gRPC:", same)
        latents = client.infer(options.model, inputs[:1], parameters={"operation": "encode"})
        print("latents:", latents.as_numpy("latents").shape)


if __name__ == "__main__":
    main()
