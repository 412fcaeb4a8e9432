"""A model as it is served: loaded, on its backend, with its action statistics at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import ModelCard
from lewm_models.checkpoint import PRETRAINED, CheckpointError
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.choice import Choice, NoBackend, Wanted, choose_backend
from lewm_serve.backends.ranking import REQUIRED
from lewm_serve.engine.pace import Pace
from lewm_serve.fallbacks.controller import Controller, load_controllers
from lewm_serve.logs import log

FloatArray = NDArray[np.float32]


class ModelLoadError(RuntimeError):
    """A model cannot be served; the message says which and why."""


@dataclass(frozen=True)
class ServedModel:
    """One model of the server.

    Outside, actions are rows (R, action_dim) in the environment's units; inside, z-scored blocks
    (R / action_block, A). ``low`` and ``high`` (A,) are the bounds of a z-scored block.
    """

    card: ModelCard
    version: str
    backend: Backend
    pace: Pace
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    reference: LatentReference | None = None
    controllers: Mapping[str, Controller] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, device: torch.device, wanted: Wanted) -> ServedModel:
        """Load a model folder, choose what runs it and warm that up.

        Raises:
            ModelLoadError: the folder holds no usable model, or what is wanted cannot run it.
        """
        try:
            loaded = checkpoint.load(folder)
        except CheckpointError as error:
            raise ModelLoadError(f"{folder}: {error}") from error
        card = loaded.card
        try:
            choice = choose_backend(loaded.model, card, loaded.frames, device, wanted)
        except NoBackend as error:
            raise ModelLoadError(str(error)) from error
        try:
            controllers = load_controllers(card.name, card.controllers)
        except Exception as error:
            raise ModelLoadError(f"{card.name}: a controller in its card: {error!r}") from error
        _log_choice(card, choice, "the model's own" if loaded.frames is not None else "synthetic")
        mean, std, low, high = (
            torch.tensor(values, dtype=torch.float32)
            for values in (card.action_mean, card.action_std, card.action_low, card.action_high)
        )
        config = card.config
        block = config.action_block
        return cls(
            card,
            loaded.version,
            choice.backend,
            Pace(),
            mean,
            std,
            ((low - mean) / std).repeat(block),
            ((high - mean) / std).repeat(block),
            loaded.reference,
            controllers,
        )

    @property
    def name(self) -> str:
        """The name clients use."""
        return self.card.name

    def to_blocks(self, rows: FloatArray) -> Tensor:
        """Rows (…, R, action_dim) → z-scored blocks (…, R / action_block, A)."""
        zscored = (torch.tensor(rows) - self.mean) / self.std
        return zscored.reshape(*rows.shape[:-2], -1, self.card.config.block_width)

    def to_rows(self, blocks: Tensor) -> FloatArray:
        """Z-scored blocks (T, A) → rows (T · action_block, action_dim), inside the bounds."""
        rows = blocks.reshape(-1, self.card.config.action_dim)
        # Undoing the z-score rounds, and a bound is a bound.
        return self.clip((rows * self.std + self.mean).numpy())

    @property
    def neutral(self) -> FloatArray:
        """What a robot does that has no plan (action_dim,): the card's, or what is nearest to 0."""
        named = self.card.action_neutral
        at_rest = np.zeros(self.card.config.action_dim) if named is None else np.asarray(named)
        return self.clip(at_rest.astype(np.float32))

    def clip(self, actions: FloatArray) -> FloatArray:
        """Actions (…, action_dim) moved into the model's bounds."""
        low, high = self._bounds
        clipped: FloatArray = np.minimum(np.maximum(actions, low), high)
        return clipped

    @cached_property
    def _bounds(self) -> tuple[FloatArray, FloatArray]:
        low, high = self.card.action_low, self.card.action_high
        return np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)


def _log_choice(card: ModelCard, choice: Choice, frames: str) -> None:
    backend = choice.backend
    timed = {
        f"{way.backend.name} {way.backend.precision} on {way.threads}": round(1000 * way.plan_s, 1)
        for way in choice.ways
    }
    log.info(
        "backend chosen",
        model=card.name,
        backend=backend.name,
        precision=backend.precision,
        device=backend.device,
        threads=backend.threads,
        plan_ms=timed,
    )
    if choice.native_problem is not None:
        log.warning("no native backend", model=card.name, reason=choice.native_problem)
    if choice.overlap is None:
        return
    tell = log.info if backend.precision == "float32" or choice.overlap >= REQUIRED else log.warning
    tell(
        "bfloat16 ranks candidates like float32",
        model=card.name,
        top_30_overlap=round(choice.overlap, 3),
        required=REQUIRED,
        frames=frames,
    )


def resolve_device(wanted: str) -> torch.device:
    """The device that a setting names; `auto` is the GPU where there is one.

    Raises:
        ModelLoadError: it is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        wanted = "cuda" if count else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ModelLoadError(f"LEWM_DEVICE is {wanted}: there are {count} CUDA devices")
    return device


def load_models(
    paths: Iterable[Path], device: torch.device, wanted: Wanted
) -> dict[str, ServedModel]:
    """All models in these folders, by name; the embedded ones where none are named.

    Raises:
        ModelLoadError: a folder holds no model, a broken one, or two models share a name.
    """
    models: dict[str, ServedModel] = {}
    for path in tuple(paths) or (PRETRAINED,):
        try:
            folders = checkpoint.folders(path)
        except CheckpointError as error:
            raise ModelLoadError(str(error)) from error
        for folder in folders:
            model = ServedModel.load(folder, device, wanted)
            if model.name in models:
                raise ModelLoadError(f"{folder}: another model is called {model.name!r} too")
            models[model.name] = model
    return models
