"""A model on disk: a folder with `model.json` (the card), `model.safetensors` and what its
calibration measures by.

`frames.safetensors` may lie beside them: a few frames of what the model sees, by which a server
finds out whether a lower precision will do. They are no part of the version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from lewm_models.calibration.reference import LatentReference, digest
from lewm_models.card import CardError, ModelCard, read_card
from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM

CARD = "model.json"
WEIGHTS = "model.safetensors"
FRAMES = "frames.safetensors"
REFERENCE = "calibration.safetensors"
PRETRAINED = Path(__file__).parent / "pretrained"
"""The models that come with the project."""


class CheckpointError(ValueError):
    """A model that cannot be loaded; the message names the file, field or tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in ``eval()`` mode; ``version`` is a hash of weights and card.

    ``reference`` is there where the card's calibration names one; ``frames``
    (N, size, size, 3) uint8, N of at least 2, may be.
    """

    model: LeWM
    card: ModelCard
    version: str
    reference: LatentReference | None = None
    frames: Tensor | None = None


def save(
    folder: Path,
    model: LeWM,
    card: ModelCard,
    reference: LatentReference | None = None,
    frames: Tensor | None = None,
) -> str:
    """Write card, weights, float32, the calibration's reference and frames; give the version."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    _replace(folder / WEIGHTS, to_bytes(tensors))
    write_calibration(folder, card, reference)
    if frames is None:
        (folder / FRAMES).unlink(missing_ok=True)
    else:
        write_frames(folder, frames)
    return version(folder)


def write_calibration(folder: Path, card: ModelCard, reference: LatentReference | None) -> None:
    """Write what a calibration changes: the card, and the reference that it names."""
    if reference is None:
        (folder / REFERENCE).unlink(missing_ok=True)
    else:
        _replace(folder / REFERENCE, reference.to_bytes())
    write_card(folder, card)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write `model.json` alone, as after an evaluation."""
    _replace(folder / CARD, (json.dumps(card.to_json(), indent=2) + "\n").encode())


def write_frames(folder: Path, frames: Tensor) -> None:
    """Write `frames.safetensors` alone."""
    _replace(folder / FRAMES, to_bytes({"frames": frames.contiguous()}))


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, with the mode that the umask gives."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def version(folder: Path) -> str:
    """16 hexadecimal digits that change with any weight and any field of the card.

    The card holds a hash of its calibration's reference, which is thereby covered too.
    """
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes())
    digest.update(json.dumps(read_card(folder / CARD).to_json(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def load(folder: Path) -> Checkpoint:
    """Read a model folder.

    Raises:
        CheckpointError: a file is missing or broken, or a tensor unknown, missing or mis-shaped.
    """
    try:
        card = read_card(folder / CARD)
        tensors = load_file(folder / WEIGHTS)
        reference = _reference(folder, card)
    except CardError as error:
        raise CheckpointError(str(error)) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: there is no such file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read: {error}") from error
    frames = _read_frames(folder / FRAMES, card.config.image_size)
    return Checkpoint(assemble(card.config, tensors), card, version(folder), reference, frames)


def _read_frames(path: Path, size: int) -> Tensor | None:
    if not path.exists():
        return None
    try:
        frames = load_file(path)["frames"]
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    right = frames.ndim == 4 and len(frames) > 1 and tuple(frames.shape[1:]) == (size, size, 3)
    if not right or frames.dtype != torch.uint8:
        raise CheckpointError(
            f"{path}: expected at least 2 frames, uint8 of shape (N, {size}, {size}, 3), "
            f"got {frames.dtype} of shape {tuple(frames.shape)}"
        )
    return frames


def _reference(folder: Path, card: ModelCard) -> LatentReference | None:
    if card.calibration is None or card.calibration.reference is None:
        return None
    path = folder / REFERENCE
    try:
        content = path.read_bytes()
        if digest(content) != card.calibration.reference:
            raise ValueError("is not the one that the card was written with; calibrate again")
        return LatentReference.from_bytes(content, card.config.latent_dim)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: {reason}") from error


def assemble(
    config: LeWMConfig, tensors: Mapping[str, Tensor], spelling: Callable[[str], str] = str
) -> LeWM:
    """A model of these tensors, each checked by name, shape, kind and finiteness, in ``eval()``.

    ``spelling`` gives the name by which an error calls a tensor.

    Raises:
        CheckpointError: a tensor is unknown, missing, mis-shaped, no float, or not finite.
    """
    # Without memory, since a width read from a broken file may be anything.
    with torch.device("meta"):
        expected = LeWM(config).state_dict()
    if unknown := sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"{spelling(unknown[0])}: unknown tensor ({len(unknown)} in all)")
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"{spelling(missing[0])}: missing tensor ({len(missing)} in all)")
    for key, tensor in tensors.items():
        name, shape, kind = spelling(key), tuple(expected[key].shape), expected[key].dtype
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.is_floating_point() != kind.is_floating_point or tensor.is_complex():
            raise CheckpointError(f"{name}: expected {kind}, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name}: holds values that are not finite")
    model = LeWM(config)
    model.load_state_dict(tensors)
    return model.eval()


def folders(path: Path) -> list[Path]:
    """The model folders that a path names: itself, or those directly inside it.

    Raises:
        CheckpointError: it is neither.
    """
    if (path / CARD).is_file():
        return [path]
    inside = sorted(entry.parent for entry in path.glob(f"*/{CARD}")) if path.is_dir() else []
    if not inside:
        raise CheckpointError(f"{path}: is no model folder and holds none (no {CARD})")
    return inside
