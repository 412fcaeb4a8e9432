"""Whether the servers of two checkouts give the same answers, bit for bit.

Both get the same seeded requests in the same order. Every field of the answers is compared, except
for the id and the timing of the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from benchmarks.clients import (
    Document,
    RestClient,
    image_document,
    new_jpegs,
    new_pngs,
    two_room_pictures,
)
from benchmarks.processes import checkout_server
from lewm_client import PlannerClient, PlannerError
from lewm_models.environments import two_room
from lewm_serve.cli.local_server import LocalServer, LocalServerError
from lewm_serve.solvers import SOLVERS

BACKENDS = ("native", "onnx")
"""Backends whose bits do not depend on the machine's load, on one thread."""

TIMEOUT_S = 600.0
SEED = 7
SMALL_SEARCH = {"samples": 64, "iterations": 4}
LARGE_SEARCH = {"name": "cem", "samples": 600, "iterations": 2}
"""Larger than one step of the engine."""

CONVERGING_SEARCH = {"name": "cem", "samples": 64, "iterations": 50, "tolerance": 0.3}

NOT_COMPARED = ("request_id", "timing_ms")

Answer = dict[str, Any]
"""The fields of a response by name; fields of nested objects are joined with dots."""


@dataclass(frozen=True)
class Request:
    """One request: a method of `PlannerClient`, its arguments, and a name for people."""

    name: str
    method: Literal["encode", "predict", "plan"]
    arguments: dict[str, Any] = field(default_factory=dict)


def compare_answers(
    old: Path, new: Path, backend: str, *, flags: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Start a server of each checkout on one thread of a backend and compare their answers.

    Returns:
        The number of requests, and a line for each difference.

    Raises:
        LocalServerError: neither server runs the backend here.
    """
    flags = ["--backend", backend, "--threads", "1", *flags]
    with ExitStack() as stack:
        servers: list[LocalServer] = []
        errors: list[LocalServerError] = []
        for checkout in (old, new):
            try:
                servers.append(stack.enter_context(checkout_server(checkout, flags)))
            except LocalServerError as error:
                errors.append(error)
        if len(errors) == 2:
            raise errors[0]
        if errors:
            return 0, [f"only one of the two checkouts runs the backend {backend}: {errors[0]}"]
        old_server, new_server = servers
        names, old_answers = ask_all(old_server)
        _, new_answers = ask_all(new_server)
        differences = [
            f"{name}: {difference}"
            for name, old_answer, new_answer in zip(names, old_answers, new_answers, strict=True)
            for difference in differing_fields(old_answer, new_answer)
        ]
        return len(names), differences


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """A text for each field that differs between two answers, by name."""
    for name in dict.fromkeys((*old, *new)):
        if name not in old or name not in new:
            yield f"{name} is only in the {'new' if name in new else 'old'} answer"
            continue
        before, after = old[name], new[name]
        if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
            if before.shape != after.shape or before.dtype != after.dtype:
                yield f"{name} was {before.shape} {before.dtype}, is {after.shape} {after.dtype}"
            elif before.tobytes() != after.tobytes():
                distance = np.abs(before.astype(float) - after.astype(float)).max()
                yield f"{name} differs by up to {distance:.3g}"
        elif repr(before) != repr(after):  # tells 0.0 from -0.0, and two NaN are the same
            yield f"{name} was {before!r}, is {after!r}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Answer:
    """The fields of an answer by dotted name, without those that always differ."""
    fields: Answer = {}
    for name, value in values.items():
        if name in NOT_COMPARED:
            continue
        if isinstance(value, Mapping):
            fields |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            for index, one in enumerate(value):
                fields |= flatten(one, f"{prefix}{name}[{index}].")
        else:
            fields[prefix + name] = value
    return fields


def ask_all(server: LocalServer) -> tuple[list[str], list[Answer]]:
    """The names of the requests, over gRPC and over REST, and the answers of a server to them."""
    names: list[str] = []
    answers: list[Answer] = []
    with PlannerClient(server.target) as client, closing(RestClient(server)) as rest:
        (model,) = client.models()
        card = MessageToDict(model.card)
        for request in grpc_requests(card):
            names.append(f"gRPC, {request.name}")
            call = partial(getattr(client, request.method), **request.arguments)
            try:
                answers.append(flatten(asdict(call(timeout_s=TIMEOUT_S))))
            except PlannerError as error:
                answers.append({"error": error.code})
        for path, document in rest_requests(card):
            names.append(f"REST, {path}")
            answers.append(flatten(rest.post(path, document)[1]))
    return names, answers


def grpc_requests(card: Mapping[str, Any]) -> Iterator[Request]:
    """Requests for a model of Two-Room, always the same ones.

    They have all solvers, numbers of context frames, kinds of frames, warm starts and fallbacks.
    """
    block, history = int(card["action_block"]), int(card["history"])
    generator = np.random.default_rng(SEED)
    robot = _Robot(generator, block)
    goals = new_jpegs(two_room_pictures())

    def plan(name: str, frame_count: int = 1, **arguments: Any) -> Request:
        fixed = {"goal": next(goals), "seed": SEED, "include": ("trajectory",)}
        return Request(f"plan, {name}", "plan", {**robot.look(frame_count), **fixed, **arguments})

    yield plan("default solver")
    for solver in SOLVERS:
        for frame_count in range(1, history + 1):
            settings = {"name": solver, **SMALL_SEARCH}
            name = f"{solver}, {frame_count} frames"
            yield plan(name, frame_count, solver=settings)
            warm_start = robot.random_actions(2 * block)
            yield plan(f"{name}, warm start", frame_count, solver=settings, warm_start=warm_start)
    yield plan("600 candidates", history, solver=LARGE_SEARCH)
    yield plan("horizon 3", solver={**SMALL_SEARCH, "horizon": 3})
    yield plan("early stop", solver=CONVERGING_SEARCH)
    tail = robot.random_actions(block)
    yield plan("fallback hold", history, fallback={"controller": "hold"})
    yield plan("fallback tail", history, fallback={"controller": "tail"}, warm_start=tail)
    unrelated_frames = list(islice(goals, history))
    yield plan("anomalous frames", history, frames=unrelated_frames)
    yield plan(
        "anomalous frames, fallback hold",
        history,
        frames=unrelated_frames,
        fallback={"controller": "hold"},
    )
    pixels = two_room_pictures()
    yield plan("frames as pixels", frames=[pixels[0]], goal=pixels[1])
    latents = generator.standard_normal((2, int(card["latent_dim"])), np.float32)
    yield plan("frames as latents", frames=[latents[0]], goal=latents[1])
    for frame_count in range(1, history + 1):
        name = f"predict, {frame_count} frames"
        actions = {"actions": robot.random_actions(3 * block)}
        candidates = {"candidates": robot.random_actions(5, 2 * block)}
        yield Request(name, "predict", robot.look(frame_count) | actions)
        yield Request(f"{name}, candidates", "predict", robot.look(frame_count) | candidates)
    yield Request("encode", "encode", {"frames": [*islice(goals, 2), pixels[2]]})


class _Robot:
    """A robot in Two-Room that moves at random, and what it sends of it."""

    def __init__(self, generator: np.random.Generator, block: int) -> None:
        self._generator = generator
        self._block = block

    def random_actions(self, *shape: int) -> NDArray[np.float32]:
        """Actions (*shape, 2) inside the bounds."""
        return self._generator.uniform(-1, 1, (*shape, 2)).astype(np.float32)

    def look(self, frame_count: int) -> dict[str, Any]:
        """Frames one action block apart, as PNG or JPEG in turn, and the actions between them."""
        position = torch.from_numpy(self._generator.uniform(30, 90, (1, 2)).astype(np.float32))
        room = two_room.VectorTwoRoom(position, position)
        past_actions = self.random_actions((frame_count - 1) * self._block)
        pictures = [room.frames()[0].numpy()]
        for index, action in enumerate(torch.from_numpy(past_actions), start=1):
            room.step(action[None])
            if index % self._block == 0:
                pictures.append(room.frames()[0].numpy())
        images = new_jpegs(pictures) if frame_count % 2 else new_pngs(pictures)
        return {
            "frames": list(islice(images, frame_count)),
            "past_actions": past_actions if frame_count > 1 else None,
        }


def rest_requests(card: Mapping[str, Any]) -> Iterator[tuple[str, Document]]:
    """One request for each path of REST, always the same."""
    jpegs = new_jpegs(two_room_pictures())
    frames = [image_document(image) for image in islice(jpegs, 2)]
    block, action_dim = int(card["action_block"]), int(card["action_dim"])
    actions = np.full((block, action_dim), 0.25).tolist()
    context = {"frames": frames, "past_actions": actions}
    yield "/plan", {**context, "goal": frames[0], "seed": SEED, "include": ["trajectory"]}
    yield "/predict", {**context, "actions": actions}
    yield "/encode", {"frames": frames}
