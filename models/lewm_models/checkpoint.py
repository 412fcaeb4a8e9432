"""Model folders: how a model, its card and its calibration are kept on disk.

A folder holds `model.json` (the card) and `model.safetensors` (the weights, float32). A calibrated
model has `calibration.safetensors` too, a model with a learned distance `distance.safetensors`, a
model with a probe `probe.safetensors`, and one with a decoder `decoder.safetensors`.
`frames.safetensors` may hold a few frames that the model typically sees; a server uses them to find
out whether a lower precision is accurate enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from lewm_models.calibration.reference import LatentReference, sha256_of
from lewm_models.card import CardError, ModelCard, read_card
from lewm_models.config import LeWMConfig
from lewm_models.decoder.network import FrameDecoder
from lewm_models.distance.network import GoalDistance
from lewm_models.file_kinds import SAFETENSORS, kind_of_file, safetensors_problem
from lewm_models.file_names import natural_key
from lewm_models.lewm import LeWM
from lewm_models.probe.network import StateProbe

CARD_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
FRAMES_FILE = "frames.safetensors"
REFERENCE_FILE = "calibration.safetensors"
DISTANCE_FILE = "distance.safetensors"
PROBE_FILE = "probe.safetensors"
DECODER_FILE = "decoder.safetensors"

T = TypeVar("T")

UNFINISHED_RUN_FILES = ("checkpoint.pt", "data/prepared.json", "data/preparing.json")
"""What the folder of a training run holds before there is a model."""

LAYER_PREFIXES = {
    "encoder_depth": "encoder.layers.",
    "predictor_depth": "predictor.transformer.layers.",
}
"""What the names of the tensors of each layer begin with, up to its number."""

PRETRAINED = Path(__file__).parent / "pretrained"
"""The folder of the models that come with the project."""

EMBEDDED_MODEL = PRETRAINED / "two-room"
"""The model that is served if none is named."""


class CheckpointError(ValueError):
    """A model that cannot be loaded; the message names the file, the field or the tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, in ``eval()`` mode.

    Args:
        model: float32, on the CPU.
        card: its card.
        version: the hash that `version` computes.
        reference: what Mahalanobis distances are measured with, if the card's calibration names it.
        frames: (N, H, H, 3) uint8, N ≥ 2, H the model's image size; None if the folder has none.
        distance: the learned distance, if the card names one; without gradients.
        probe: the probe of states, if the card names one; without gradients.
        decoder: the decoder of frames, if the card names one; without gradients.
    """

    model: LeWM
    card: ModelCard
    version: str
    reference: LatentReference | None = None
    frames: Tensor | None = None
    distance: GoalDistance | None = None
    probe: StateProbe | None = None
    decoder: FrameDecoder | None = None


def save(
    folder: Path,
    model: LeWM,
    card: ModelCard,
    *,
    reference: LatentReference | None = None,
    frames: Tensor | None = None,
    distance: GoalDistance | None = None,
    probe: StateProbe | None = None,
    decoder: FrameDecoder | None = None,
) -> str:
    """Write a complete model folder and return the model's version.

    Each file is replaced as a whole. The files of a reference, of frames, of a distance, of a probe
    or of a decoder that are None are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    replace_file(folder / WEIGHTS_FILE, to_bytes(tensors))
    networks = ((DISTANCE_FILE, distance), (PROBE_FILE, probe), (DECODER_FILE, decoder))
    for name, network in networks:
        if network is None:
            (folder / name).unlink(missing_ok=True)
        else:
            replace_file(folder / name, network.to_bytes())
    write_calibration(folder, card, reference)
    if frames is None:
        (folder / FRAMES_FILE).unlink(missing_ok=True)
    else:
        replace_file(folder / FRAMES_FILE, to_bytes({"frames": frames.contiguous()}))
    return version(folder)


def write_calibration(folder: Path, card: ModelCard, reference: LatentReference | None) -> None:
    """Write the card and the reference that its calibration names, and no other file."""
    if reference is None:
        (folder / REFERENCE_FILE).unlink(missing_ok=True)
    else:
        replace_file(folder / REFERENCE_FILE, reference.to_bytes())
    write_card(folder, card)


def write_distance(folder: Path, card: ModelCard, distance: GoalDistance) -> None:
    """Write the card and the distance that it names, and no other file."""
    replace_file(folder / DISTANCE_FILE, distance.to_bytes())
    write_card(folder, card)


def write_probe(folder: Path, card: ModelCard, probe: StateProbe) -> None:
    """Write the card and the probe that it names, and no other file."""
    replace_file(folder / PROBE_FILE, probe.to_bytes())
    write_card(folder, card)


def write_decoder(folder: Path, card: ModelCard, decoder: FrameDecoder) -> None:
    """Write the card and the decoder that it names, and no other file."""
    replace_file(folder / DECODER_FILE, decoder.to_bytes())
    write_card(folder, card)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write `model.json`, and no other file."""
    replace_file(folder / CARD_FILE, (json.dumps(card.to_json(), indent=2) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all. A process that has the old file open keeps it."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def version(folder: Path) -> str:
    """The model's version, 16 hexadecimal digits: a hash of the weights and the card.

    The card holds the hashes of the calibration's reference, of the learned distance and of the
    probe, so the version depends on them too. It does not depend on the frames and the decoder,
    which change no answer, nor on the layout of `model.json`.
    """
    return _version((folder / WEIGHTS_FILE).read_bytes(), read_card(folder / CARD_FILE))


def _version(weights: bytes, card: ModelCard) -> str:
    content = hashlib.sha256(weights)
    answering = replace(card, decoder=None, provenance=_without_decoder(card.provenance))
    content.update(json.dumps(answering.to_json(), sort_keys=True).encode())
    return content.hexdigest()[:16]


def _without_decoder(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in provenance.items() if name != "decoder"}


def load(folder: Path) -> Checkpoint:
    """Read a model folder.

    Raises:
        CheckpointError: a file is missing or broken, or a tensor is missing, unknown or wrong.
    """
    try:
        card = read_card(folder / CARD_FILE)
        weights = _read_bytes(folder / WEIGHTS_FILE)
        tensors = _tensors_of(weights, folder / WEIGHTS_FILE)
        reference = _read_reference(folder / REFERENCE_FILE, card)
        distance = _read_distance(folder / DISTANCE_FILE, card)
        probe = _read_probe(folder / PROBE_FILE, card)
        decoder = _read_decoder(folder / DECODER_FILE, card)
    except CardError as error:
        raise CheckpointError(str(error)) from error
    frames = _read_frames(folder / FRAMES_FILE, card.config.image_size)
    try:
        model = model_of_tensors(card.config, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: {error}") from error
    return Checkpoint(
        model=model,
        card=card,
        version=_version(weights, card),
        reference=reference,
        frames=frames,
        distance=distance,
        probe=probe,
        decoder=decoder,
    )


@dataclass(frozen=True)
class ViewingParts:
    """What helps people to see what a model computes; None where the folder has it not."""

    probe: StateProbe | None
    decoder: FrameDecoder | None


def load_viewing_parts(folder: Path, latent_dim: int) -> ViewingParts:
    """Read the probe and the decoder of a model folder, without the model.

    Raises:
        CheckpointError: a file is missing or broken, or is not that of a model of this width.
    """
    try:
        card = read_card(folder / CARD_FILE)
    except CardError as error:
        raise CheckpointError(str(error)) from error
    if card.config.latent_dim != latent_dim:
        raise CheckpointError(f"{folder / CARD_FILE}: is that of another model now")
    return ViewingParts(
        probe=_read_probe(folder / PROBE_FILE, card),
        decoder=_read_decoder(folder / DECODER_FILE, card),
    )


def _read_bytes(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "is a folder, expected a file" if path.is_dir() else f"cannot be read: {error}"
        raise CheckpointError(f"{path}: {reason}") from error


def _tensors_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors in the content of a safetensors file, by name."""
    try:
        return dict(sorted(from_bytes(content).items()))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {safetensors_problem(path, error)}") from error


def _read_frames(path: Path, size: int) -> Tensor | None:
    if not path.exists():
        return None
    tensors = _tensors_of(_read_bytes(path), path)
    if "frames" not in tensors:
        raise CheckpointError(f"{path}: expected a tensor frames, got {sorted(tensors)}")
    frames = tensors["frames"]
    has_shape = frames.ndim == 4 and len(frames) > 1 and frames.shape[1:] == (size, size, 3)
    if not has_shape or frames.dtype != torch.uint8:
        raise CheckpointError(
            f"{path}: expected at least 2 frames, uint8 of shape (N, {size}, {size}, 3), "
            f"got {frames.dtype} of shape {tuple(frames.shape)}"
        )
    return frames


def _read_reference(path: Path, card: ModelCard) -> LatentReference | None:
    if card.calibration is None or card.calibration.reference is None:
        return None
    return _read_named(
        path,
        card.calibration.reference,
        lambda content: LatentReference.from_bytes(content, card.config.latent_dim),
        mismatch="does not belong to the card's calibration; calibrate again",
    )


def _read_distance(path: Path, card: ModelCard) -> GoalDistance | None:
    if card.distance is None:
        return None
    return _read_named(
        path,
        card.distance.network,
        lambda content: GoalDistance.from_bytes(content, card.config.latent_dim),
        mismatch="does not belong to the card's distance; train it again (lewm models distance)",
    )


def _read_probe(path: Path, card: ModelCard) -> StateProbe | None:
    if (described := card.probe) is None:
        return None
    return _read_named(
        path,
        described.network,
        lambda content: StateProbe.from_bytes(
            content, card.config.latent_dim, len(described.states)
        ),
        mismatch="does not belong to the card's probe; fit it again (lewm models probe)",
    )


def _read_decoder(path: Path, card: ModelCard) -> FrameDecoder | None:
    if card.decoder is None:
        return None
    return _read_named(
        path,
        card.decoder.network,
        lambda content: FrameDecoder.from_bytes(content, card.config.latent_dim),
        mismatch="does not belong to the card's decoder; train it again (lewm models decoder)",
    )


def _read_named(path: Path, sha256: str, parse: Callable[[bytes], T], *, mismatch: str) -> T:
    """Parse the content of a file that the card names by its hash.

    Raises:
        CheckpointError: the file is missing, is another one, or cannot be parsed.
    """
    try:
        content = path.read_bytes()
        if sha256_of(content) != sha256:
            if (kind := kind_of_file(path)) not in (None, SAFETENSORS):
                raise ValueError(f"is {kind}; expected {SAFETENSORS}")
            raise ValueError(mismatch)
        return parse(content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: {reason}") from error


def model_of_tensors(
    config: LeWMConfig, tensors: Mapping[str, Tensor], name_for_errors: Callable[[str], str] = str
) -> LeWM:
    """Make a model with these weights, in ``eval()`` mode, after checking each tensor.

    Args:
        config: the hyper-parameters.
        tensors: the complete state dict.
        name_for_errors: gives the name that an error message uses for a key of the state dict.

    Raises:
        CheckpointError: a tensor is missing, unknown, not finite, or has another shape or type.
    """
    _check_depths(config, tensors, name_for_errors)
    # The meta device allocates nothing: a width from a broken file may be huge.
    with torch.device("meta"):
        expected = LeWM(config).state_dict()
    if unknown := sorted(set(tensors) - set(expected)):
        name = name_for_errors(unknown[0])
        raise CheckpointError(f"{name}: unknown tensor ({len(unknown)} in all)")
    if missing := sorted(set(expected) - set(tensors)):
        name = name_for_errors(missing[0])
        raise CheckpointError(f"{name}: missing tensor ({len(missing)} in all)")
    for key, tensor in tensors.items():
        name, shape, dtype = name_for_errors(key), tuple(expected[key].shape), expected[key].dtype
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.is_floating_point() != dtype.is_floating_point or tensor.is_complex():
            raise CheckpointError(f"{name}: expected {dtype}, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor.to(dtype)).all()):
            raise CheckpointError(f"{name}: holds values that are not finite in {dtype}")
        if key.endswith(".running_var") and bool((tensor < 0).any()):
            raise CheckpointError(f"{name}: holds variances below 0")
    model = LeWM(config)
    model.load_state_dict(tensors)
    return model.eval()


def _check_depths(
    config: LeWMConfig, tensors: Mapping[str, Tensor], name_for_errors: Callable[[str], str]
) -> None:
    """Compare the numbers of layers first: to make a thousand layers too many takes seconds."""
    for field, prefix in LAYER_PREFIXES.items():
        layers = {
            name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)
        }
        depth = getattr(config, field)
        if depth > len(layers):
            missing = name_for_errors(f"{prefix}{len(layers)}")
            raise CheckpointError(
                f"{missing}: missing tensors; {field} is {depth}, but the weights have "
                f"{len(layers)} layers"
            )


def resolve_folder(path: Path) -> Path:
    """The path itself, or the embedded model of this name if there is no such path.

    Raises:
        CheckpointError: there is neither, or the path is a file.
    """
    if path.is_file():
        raise CheckpointError(f"{path}: is a file, expected a model folder")
    if path.exists():
        return path
    if not _is_embedded(path):
        embedded = ", ".join(sorted(folder.name for folder in model_folders(PRETRAINED)))
        raise CheckpointError(f"{path}: is no folder and no embedded model ({embedded})")
    return PRETRAINED / path


def model_of_environment(name: str) -> Path:
    """The folder of the embedded model of an environment; `EMBEDDED_MODEL` if it has none."""
    return PRETRAINED / name if _is_embedded(Path(name)) else EMBEDDED_MODEL


def _is_embedded(name: Path) -> bool:
    return (PRETRAINED / name / CARD_FILE).is_file()


def model_folders(path: Path) -> list[Path]:
    """The model folders at a path: the path itself, or those directly inside it.

    A path that does not exist may be the name of an embedded model.

    Raises:
        CheckpointError: the path is not a model folder and holds none, or it holds a folder with
            weights and without a card.
    """
    folders = possible_model_folders(path)
    for folder in (path, *folders):
        if (folder / WEIGHTS_FILE).exists() and not (folder / CARD_FILE).exists():
            raise CheckpointError(f"{folder / CARD_FILE}: is missing, but there are weights")
    return folders


def possible_model_folders(path: Path) -> list[Path]:
    """Like `model_folders`, with folders that have only a card or only weights.

    Raises:
        CheckpointError: the path is not a model folder and holds none.
    """
    if not path.exists() and _is_embedded(path):
        return [PRETRAINED / path]
    if (path / CARD_FILE).is_file():
        return [path]
    if not path.is_dir():
        reason = "it is a file" if path.exists() else "there is no such folder"
        raise CheckpointError(f"{path}: is not a model folder and holds none: {reason}")
    files = [*path.glob(f"*/{CARD_FILE}"), *path.glob(f"*/{WEIGHTS_FILE}")]
    inside = sorted({file.parent for file in files}, key=natural_key)
    if (path / WEIGHTS_FILE).exists():
        return [path, *inside]
    if not inside:
        hint = ""
        if any((path / name).exists() for name in UNFINISHED_RUN_FILES):
            hint = (
                "; it holds a training run that is not finished, which the same command continues"
            )
        raise CheckpointError(
            f"{path}: is not a model folder and holds none (no {CARD_FILE}){hint}"
        )
    return inside


def name_and_version(folder: Path) -> tuple[str, str]:
    """The name of a folder's model, and its `version`, without making the model.

    Raises:
        CheckpointError: the card or the weights cannot be read.
    """
    try:
        card = read_card(folder / CARD_FILE)
    except CardError as error:
        raise CheckpointError(str(error)) from error
    return card.name, _version(_read_bytes(folder / WEIGHTS_FILE), card)
