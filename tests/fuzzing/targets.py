"""What is fuzzed: readers of bytes that come from outside, each with valid examples to begin with.

A reader may refuse bytes by the errors that its documentation names. Anything else that it raises
is a fault: `python -m tests.fuzzing.program NAME`.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from google.protobuf.message import Message
from PIL import Image

from lewm.v1 import planner_pb2 as pb
from lewm_client import frame
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import CardError, read_card
from lewm_models.distance.network import GoalDistance
from lewm_models.importing.unpickling import load_without_running
from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.errors import ServiceError
from lewm_serve.frames.decode import frame_from_image
from lewm_serve.frames.redis_tier import InvalidCacheValue, pack, unpack
from lewm_serve.transports.grpc.messages import to_document
from lewm_serve.transports.grpc.methods import parse_message
from lewm_serve.transports.http.bodies import parse_json
from lewm_serve.transports.openpi import messages as openpi
from tests.lewm_models.examples import example_card, tiny_model

LATENT_DIM = 8
KEY = "lewm:latent:version:id"
MAX_PIXELS = 1 << 16
FOLDER = Path(tempfile.mkdtemp(prefix="lewm-fuzzing-"))
CARD = example_card(tiny_model())


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: reads bytes.
        refusals: the errors by which it may refuse them.
        examples: valid bytes.
        memory_mib: the most memory of the process.
    """

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    examples: Callable[[], Sequence[bytes]]
    memory_mib: int = 2048


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    pictures = []
    for mode in ("RGB", "L", "P", "RGBA", "I;16"):
        for kind in ("PNG", "JPEG"):
            file = io.BytesIO()
            if kind == "JPEG" and mode not in ("RGB", "L"):
                continue
            image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
            (image.convert("I").convert(mode) if mode == "I;16" else image).save(file, kind)
            pictures.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", progressive=True)
    return [*pictures, file.getvalue()]


def _read_picture(data: bytes) -> object:
    return frame_from_image(data, CARD, max_pixels=MAX_PIXELS, field="frames[0].image")


def _through_file(read: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    def read_bytes(data: bytes) -> object:
        path = FOLDER / name
        path.write_bytes(data)
        return read(path)

    return read_bytes


def _networks() -> list[bytes]:
    torch.manual_seed(0)
    distance = GoalDistance(torch.zeros(LATENT_DIM), torch.ones(LATENT_DIM), width=4)
    return [distance.to_bytes(), LatentReference.fit(torch.randn(64, LATENT_DIM)).to_bytes()]


def _read_networks(data: bytes) -> None:
    refused = 0
    for read in (GoalDistance.from_bytes, LatentReference.from_bytes):
        try:
            read(data, LATENT_DIM)
        except ValueError:
            refused += 1
    if refused == 2:
        raise ValueError("neither")


def _checkpoints() -> list[bytes]:
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2, 2)}, "step": 3, "names": ["x"]}, file)
    return [file.getvalue()]


REQUESTS: Sequence[type[RequestModel]] = (EncodeRequest, PredictRequest, PlanRequest)
MESSAGES: dict[type[Message], type[RequestModel]] = {
    pb.EncodeRequest: EncodeRequest,
    pb.PredictRequest: PredictRequest,
    pb.PlanRequest: PlanRequest,
}


def _documents() -> list[bytes]:
    latent = {"latent": [0.0] * LATENT_DIM}
    documents: list[dict[str, object]] = [
        {"frames": [latent]},
        {"frames": [latent], "actions": [[0.1, 0.2]]},
        {
            "frames": [{"latent_id": "0" * 32}],
            "goal": {"image": "AAAA"},
            "solver": {"name": "cem", "samples": 8, "iterations": 1},
            "deadline_ms": 100,
            "fallback": {"controller": "hold"},
            "seed": 1,
        },
        {"frames": [{"pixels": {"data": "AAAA", "shape": [1, 1, 3]}}], "goal": latent},
    ]
    return [json.dumps(document).encode() for document in documents]


def _read_document(data: bytes) -> None:
    document = parse_json(bytearray(data))
    errors = []
    for request in REQUESTS:
        try:
            parse(request, document)
        except ServiceError as error:
            errors.append(error)
    if len(errors) == len(REQUESTS):
        raise errors[0]


def _messages() -> list[bytes]:
    picture = np.zeros((2, 2, 3), np.uint8)
    plan = pb.PlanRequest(
        frames=[frame(picture)],
        goal=frame(picture),
        solver=pb.SolverSettings(name="cem", samples=4),
        seed=3,
    )
    return [plan.SerializeToString(), pb.EncodeRequest(frames=[frame(picture)]).SerializeToString()]


def _read_message(data: bytes) -> None:
    errors = []
    for kind, request in MESSAGES.items():
        try:
            parse(request, to_document(parse_message(kind, data)))
        except ServiceError as error:
            errors.append(error)
    if len(errors) == len(MESSAGES):
        raise errors[0]


def _observations() -> list[bytes]:
    image = np.zeros((2, 2, 3), np.uint8)
    return [openpi.pack({"image": image, "state": np.zeros(3), "prompt": "x", "n": [1, None]})]


TARGETS: dict[str, Target] = {
    "pictures": Target(_read_picture, (ServiceError,), _pictures),
    "cards": Target(
        _through_file(read_card, "model.json"),
        (CardError,),
        lambda: [json.dumps(CARD.to_json()).encode()],
    ),
    "networks": Target(_read_networks, (ValueError,), _networks),
    "checkpoints": Target(
        _through_file(load_without_running, "weights.pt"), (Exception,), _checkpoints
    ),
    "redis": Target(
        lambda data: unpack(KEY, data, LATENT_DIM),
        (InvalidCacheValue,),
        lambda: [pack(KEY, torch.arange(float(LATENT_DIM)))],
    ),
    "documents": Target(_read_document, (ServiceError,), _documents),
    "messages": Target(_read_message, (ServiceError,), _messages),
    "observations": Target(openpi.unpack, (ServiceError,), _observations),
}
