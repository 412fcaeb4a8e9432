"""Requests to protobuf messages, and messages to responses."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lewm.v1 import planner_pb2 as pb
from lewm_client.responses import (
    EncodedLatent,
    EncodeResponse,
    FallbackReason,
    FallbackReport,
    FloatArray,
    GoalDistance,
    Health,
    HealthStatus,
    LatentIds,
    PlanResponse,
    PlanStates,
    PlanStatus,
    PredictResponse,
    Timing,
)

FrameSource = NDArray[Any] | bytes | bytearray | memoryview | mmap.mmap | str
FrameLike = FrameSource | tuple[FrameSource, ArrayLike]
"""Pixels (H, W, 3) of uint8, the bytes of a PNG or JPEG, a latent (D,), or a `latent_id`.

The bytes may be in any object that shares its memory, such as a `mmap`, and in an array (n,) or
(n, 1) of uint8, as `cv2.imencode` returns them.

For a model with a state input, pixels or an image may come in a tuple with the robot's states (X,),
in their units and in the order of `state_input` on the model's card: ``(image, [40, 120])``.
"""

GoalLike = FrameLike | Mapping[str, float]
"""A frame of the goal, or some of the states there by name, such as ``{"x": 40, "y": 120}``."""

BYTE_TYPES = (np.dtype(np.uint8), np.dtype("S1"))
"""The types of numpy arrays of single bytes; the second is that of C's characters."""

NOT_IN_LATENT_IDS = re.compile(r"[^\w-]")


def tensor(values: ArrayLike) -> pb.Tensor:
    """Make a message of numbers: little-endian float32, row-major."""
    array = np.asarray(values, "<f4")
    return pb.Tensor(shape=array.shape, data=array.tobytes())


def optional_tensor(values: ArrayLike | None) -> pb.Tensor | None:
    """Make a message of numbers, or None of None."""
    return None if values is None else tensor(values)


def frame_list(sources: Iterable[FrameLike], jpeg_quality: int | None = None) -> Iterator[pb.Frame]:
    """Make messages of frames, as `frame` does.

    Raises:
        TypeError: this is one frame instead of several, or a frame is of another kind.
        ValueError: an array has another shape than a frame.
    """
    if (kind := _kind_of_one_frame(sources)) is not None:
        raise TypeError(f"frames: expected a list of frames, got one {kind}: write [frame]")
    return (frame(source, jpeg_quality) for source in sources)


def _kind_of_one_frame(sources: Any) -> str | None:
    """What the object is if it is one frame, or nothing that could hold frames."""
    if isinstance(sources, str):
        return f"string, {sources[:40]!r}"
    if isinstance(sources, np.ndarray):
        # Rows of pixels and of bytes look like encoded images, and numbers like latents.
        is_one = sources.ndim in (0, 1, 3) or (sources.ndim == 2 and sources.dtype == np.uint8)
        return f"array of shape {sources.shape}" if is_one else None
    if isinstance(sources, (os.PathLike, Mapping)) or _shares_memory(sources):
        return type(sources).__name__
    return None if isinstance(sources, Iterable) else type(sources).__name__


def _shares_memory(source: object) -> bool:
    """Whether the object is bytes or like bytes."""
    try:
        memoryview(source).release()  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def frame(source: FrameLike, jpeg_quality: int | None = None) -> pb.Frame:
    """Make a message of a frame.

    Args:
        source: the frame.
        jpeg_quality: compress pixels to JPEG of this quality; None leaves them as they are.

    Raises:
        TypeError: the frame is of another kind, such as a path, or of another number type.
        ValueError: an array has another shape than a frame.
    """
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ValueError(
                f"the frame is a tuple of {len(source)}, expected an image and its vector"
            )
        image, vector = source
        message = frame(image, jpeg_quality)
        message.vector.CopyFrom(tensor(vector))
        return message
    if isinstance(source, str):
        return pb.Frame(latent_id=_latent_id(source))
    if isinstance(source, (bytes, bytearray)):
        return pb.Frame(image=bytes(source))
    if isinstance(source, os.PathLike):
        raise TypeError(f"the frame is the path {source}, expected the bytes: path.read_bytes()")
    array = np.asarray(source)
    if array.dtype == object:
        raise TypeError(f"the frame is a {type(source).__name__}, expected pixels or bytes")
    if array.dtype in BYTE_TYPES and (array.ndim == 1 or array.shape[1:] == (1,)):
        return pb.Frame(image=array.tobytes())
    if array.ndim == 1:
        return pb.Frame(latent=tensor(_numbers(array)))
    pixels = _pixels(array)
    if jpeg_quality is not None:
        return pb.Frame(image=_jpeg(pixels, jpeg_quality))
    return pb.Frame(pixels=pb.Pixels(shape=pixels.shape, data=pixels.tobytes()))


def goal_frame(goal: GoalLike, jpeg_quality: int | None = None) -> pb.Frame:
    """Make a message of a goal, as `frame` does of a frame.

    Raises:
        TypeError, ValueError: as `frame`; or a state is no number.
    """
    if isinstance(goal, Mapping):
        return pb.Frame(state=_states(goal, "goal"))
    return frame(goal, jpeg_quality)


def region(described: Mapping[str, Any]) -> pb.Region:
    """Make a message of a region to avoid.

    Args:
        described: a box ``{"state": {"x": [60, 90]}}``, or a disc ``{"centre": {"x": 60, "y": 90},
            "radius": 20}``; both may have a ``weight``.

    Raises:
        TypeError: a key is unknown, or a value is no number.
    """
    message = pb.Region(radius=described.get("radius"), weight=described.get("weight"))
    for key, value in described.items():
        if key == "state":
            message.state.SetInParent()
            for name, (low, high) in _mapping(value, "avoid: state").items():
                message.state.ranges[name].low, message.state.ranges[name].high = low, high
        elif key == "centre":
            message.centre.CopyFrom(_states(value, "avoid: centre"))
        elif key not in ("radius", "weight"):
            raise TypeError(f"avoid: got {key!r}, expected state, or centre and radius; and weight")
    return message


def _states(values: object, field: str) -> pb.States:
    numbers = _mapping(values, field)
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            raise TypeError(f"{field}: {name} is a mapping, expected names with numbers")
    return pb.States(values={name: float(value) for name, value in numbers.items()})


def _mapping(values: object, field: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{field}: got {type(values).__name__}, expected a mapping of states")
    return values


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A JPEG image of pixels (H, W, 3), with the colours at full resolution."""
    import simplejpeg  # of the extra `lewm-client[jpeg]`

    image: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444"
    )
    return image


def _latent_id(text: str) -> str:
    """The text, unless it is obviously the name of a file, a data URL or base64."""
    if NOT_IN_LATENT_IDS.search(text):
        raise TypeError(
            f"the frame is the string {text[:40]!r}, which is no latent_id; "
            "expected the bytes of an image, such as Path(name).read_bytes()"
        )
    return text


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    """The array, if it can be a latent."""
    if array.dtype.kind not in "fiu" or array.dtype.itemsize == 1:
        raise TypeError(f"the latent has dtype {array.dtype}, expected floats")
    return array


def _pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array, if it holds pixels as the server reads them."""
    if array.dtype.kind == "f":
        raise TypeError(
            f"the frame has dtype {array.dtype}, expected uint8 pixels; "
            "values from 0 to 1 become uint8 by (255 * frame).round().astype(numpy.uint8)"
        )
    if array.dtype != np.uint8:
        raise TypeError(f"the frame has dtype {array.dtype}, expected uint8 pixels")
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"the frame has shape {array.shape}, expected (H, W, 3){_advice(array)}")
    return array


def _advice(array: NDArray[Any]) -> str:
    """How an array of another shape becomes (H, W, 3)."""
    if array.ndim == 4 and len(array) == 1:
        return "; it is a batch of one frame: frame[0]"
    if array.ndim == 3 and array.shape[0] == 3:
        return "; its channels come first: frame.transpose(1, 2, 0)"
    if array.ndim == 3 and array.shape[2] == 4:
        return "; without the alpha channel: frame[:, :, :3]"
    if array.ndim == 2:
        return "; grey pixels: numpy.stack([frame] * 3, axis=2); PIL: image.convert('RGB')"
    return ""


def encode_response(message: pb.EncodeResponse) -> EncodeResponse:
    """Read the response to Encode."""
    return EncodeResponse(
        request_id=message.request_id,
        model=message.model,
        model_version=message.model_version,
        latents=tuple(_encoded_latent(latent) for latent in message.latents),
        health=_health(message.health),
        timing_ms=_timing(message.timing_ms),
    )


def predict_response(message: pb.PredictResponse) -> PredictResponse:
    """Read the response to Predict."""
    return PredictResponse(
        request_id=message.request_id,
        model=message.model,
        model_version=message.model_version,
        latents=_array(message.latents),
        health=_health(message.health),
        timing_ms=_timing(message.timing_ms),
    )


def plan_response(message: pb.PlanResponse) -> PlanResponse:
    """Read the response to Plan."""
    has = message.HasField
    return PlanResponse(
        request_id=message.request_id,
        model=message.model,
        model_version=message.model_version,
        backend=message.backend,
        precision=message.precision,
        actions=_array(message.actions),
        action_block=message.action_block,
        cost=message.cost if has("cost") else None,
        status=cast(PlanStatus, message.status),
        iterations=message.iterations,
        candidates=message.candidates,
        solver={field.name: value for field, value in message.solver.ListFields()},
        seed=message.seed,
        latent_ids=_latent_ids(message.latent_ids) if has("latent_ids") else None,
        health=_health(message.health),
        fallback=_fallback_report(message.fallback) if has("fallback") else None,
        timing_ms=_timing(message.timing_ms),
        trajectory=_array(message.trajectory) if has("trajectory") else None,
        distance=_goal_distance(message.distance) if has("distance") else None,
        states=_plan_states(message.states) if has("states") else None,
        violations=tuple(message.violations),
    )


def _array(message: pb.Tensor) -> FloatArray:
    """Copy the message's numbers, so that the caller may write to the array."""
    return np.frombuffer(message.data, "<f4").reshape(tuple(message.shape)).astype(np.float32)


def _encoded_latent(message: pb.EncodedLatent) -> EncodedLatent:
    return EncodedLatent(
        latent=_array(message.latent),
        latent_id=message.latent_id,
        norm=message.norm,
        cached=message.cached,
        norm_zscore=message.norm_zscore if message.HasField("norm_zscore") else None,
    )


def _health(message: pb.Health) -> Health:
    optional = ("latent_norm", "latent_norm_zscore", "surprise", "sigreg", "latent_mahalanobis")
    return Health(
        status=cast(HealthStatus, message.status),
        reasons=tuple(message.reasons),
        **{name: getattr(message, name) for name in optional if message.HasField(name)},
    )


def _timing(message: pb.Timing) -> Timing:
    return Timing(
        queue=message.queue,
        decode=message.decode,
        encode=message.encode,
        solve=message.solve,
        total=message.total,
    )


def _latent_ids(message: pb.LatentIds) -> LatentIds:
    return LatentIds(frames=tuple(message.frames), goal=message.goal)


def _plan_states(message: pb.PlanStates) -> PlanStates:
    return PlanStates(start=dict(message.start), end=dict(message.end))


def _goal_distance(message: pb.GoalDistance) -> GoalDistance:
    return GoalDistance(start=message.start, end=message.end)


def _fallback_report(message: pb.FallbackReport) -> FallbackReport:
    reason = cast(FallbackReason, message.reason)
    return FallbackReport(controller=message.controller, reason=reason)
