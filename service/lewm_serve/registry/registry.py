"""The models of the server, by name and version, and what each of them needs to be served."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.calibration.reference import LatentReference
from lewm_models.card import ModelCard
from lewm_serve.api.responses import ModelDescription, ModelList, OldVersion
from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.errors import InvalidRequest, UnknownModel, shorten
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.objectives.states import StateReader
from lewm_serve.registry.controllers import Controller
from lewm_serve.solvers import SOLVERS

FloatArray = NDArray[np.float32]

MAX_LOGGED_NAME_CHARACTERS = 40
"""How much of a model name that is unknown to the server a log line repeats."""

VERSION_MARK = "@"
"""Stands between name and version. No model's name has it."""

MAX_SEARCH_S = 10.0
"""By default a request may take about this much of the engine's time."""

ROUNDINGS = 8
"""How many times the difference of two actions is rounded between the search and the answer."""


class ModelLoadError(RuntimeError):
    """A model cannot be loaded. The message says which and why."""


class OldModel(NamedTuple):
    """A model that a reload has replaced or removed; ``until`` is a `time.monotonic()`."""

    model: LoadedModel
    until: float


class Registry:
    """The loaded models, and which of them answers requests that name none. It never changes.

    A reload makes another registry, and the planner exchanges the two between two requests. Each
    request looks up its model once.

    Args:
        by_folder: the current models, by the folder of each. Their names differ.
        default: which of them answers requests that name none. None: the only model there is.
        old: models that answer only requests that name their version, ``name@version``.

    Raises:
        ModelLoadError: the default is not among the models.
    """

    def __init__(
        self,
        by_folder: Mapping[Path, LoadedModel],
        default: str | None,
        old: Sequence[OldModel] = (),
    ) -> None:
        models = {model.name: model for model in by_folder.values()}
        if default is not None and default not in models:
            known = ", ".join(models)
            raise ModelLoadError(f"LEWM_DEFAULT_MODEL is {default}: the models are {known}")
        if default is None and len(models) == 1:
            default = next(iter(models))
        self.by_folder = by_folder
        self.default = default
        self._models = models
        self.old = tuple(old)
        self._by_version = {
            model.pin: model for model in (*(model for model, _ in old), *models.values())
        }

    def all(self) -> list[LoadedModel]:
        """All current models."""
        return list(self._models.values())

    @property
    def loaded(self) -> list[LoadedModel]:
        """All models, current and old."""
        return list(self._by_version.values())

    def get(self, name: str | None) -> LoadedModel:
        """The model of a request: the current one of a name, or the version ``name@version``.

        Raises:
            UnknownModel: there is no such model or version.
            InvalidRequest: the request names no model and there is no default.
        """
        name = self.default if name is None else name
        if name is None:
            raise InvalidRequest.missing("model", f"one of {', '.join(self._models)}")
        model = self._models.get(name) or self._by_version.get(name)
        if model is None:
            raise UnknownModel(name, self._similar(name))
        return model

    def current(self, name: str) -> LoadedModel | None:
        """The current model of a name, if there is one."""
        return self._models.get(name)

    def log_label(self, requested: object) -> str | None:
        """What log lines call the model that a request names; None means the default model.

        Names of models and of their versions appear as they are. Other names are the client's own
        text: they are quoted and shortened. The result is None if there is no name.
        """
        name = self.default if requested is None else requested
        if not isinstance(name, str):
            return None
        is_known = name in self._models or name in self._by_version
        return name if is_known else shorten(name, MAX_LOGGED_NAME_CHARACTERS)

    def replaced(
        self, by_folder: Mapping[Path, LoadedModel], default: str | None, *, old_until: float
    ) -> Registry:
        """A registry with other current models. Those before stay among the old ones for a time.

        Args:
            by_folder: the current models, by folder.
            default: see `Registry`; None: the present default, if it is still there.
            old_until: until when the models of this registry stay, a `time.monotonic()`.

        Raises:
            ModelLoadError: the default is not among the models.
        """
        current = list(by_folder.values())
        if default is None and self.default in [model.name for model in current]:
            default = self.default
        replaced = [OldModel(model, old_until) for model in self.all() if model not in current]
        old = [old for old in self.old if old.model not in current]
        return Registry(by_folder, default, [*old, *replaced])

    def without_expired(self, now: float) -> Registry:
        """The registry without the old models whose time has come."""
        old = [old for old in self.old if old.until > now]
        return Registry(self.by_folder, self.default, old)

    def describe(self, model: LoadedModel) -> ModelDescription:
        """A model as clients see it, with the old versions of its name."""
        backend = model.backend
        is_current = self._models.get(model.name) is model
        described = [_describe_old(old) for old in self.old if old.model.name == model.name]
        left_s = [old.seconds_left for old in described if old.version == model.version]
        return ModelDescription(
            name=model.name,
            version=model.version,
            default=is_current and model.name == self.default,
            backend=backend.name,
            device=backend.device,
            precision=backend.precision,
            card=model.card.to_json(),
            old_versions=described,
            seconds_left=None if is_current else max(left_s, default=0.0),
        )

    def describe_all(self) -> ModelList:
        """All current models as clients see them, and the versions of removed ones."""
        removed = [old for old in self.old if old.model.name not in self._models]
        return ModelList(
            models=[self.describe(model) for model in self.all()],
            removed=[_describe_old(old) for old in removed],
        )

    def _similar(self, name: str) -> list[str]:
        """What a client may have meant: versions of the same name if it names one, or names."""
        model_name, mark, _ = name.rpartition(VERSION_MARK)
        versions = [pin for pin, model in self._by_version.items() if model.name == model_name]
        return versions if mark and versions else list(self._models)


def _describe_old(old: OldModel) -> OldVersion:
    left_s = max(0.0, old.until - time.monotonic())
    return OldVersion(old.model.name, old.model.version, seconds_left=round(left_s, 1))


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """One model, ready to be served.

    Clients use rows of actions (R, action_dim) in the environment's units. The model uses z-scored
    action blocks (R / action_block, A) with A = action_dim · action_block.

    Attributes:
        card: the model's card.
        version: a hash of weights and card.
        backend: what runs the model.
        latency: how long its work takes.
        action_mean, action_std: (action_dim,) in the environment's units.
        low, high: the bounds (A,) of a z-scored action block.
        reference: the distribution of usual latents; None without a calibration.
        distance: the learned distance; None if the model has none.
        probe: reads states from latents; None if the model has no probe.
        controllers: the model's fallback controllers by name.
    """

    card: ModelCard
    version: str
    backend: ThreadedBackend
    latency: LatencyModel
    action_mean: Tensor
    action_std: Tensor
    low: Tensor
    high: Tensor
    reference: LatentReference | None = None
    distance: DistanceObjective | None = None
    probe: StateReader | None = None
    controllers: Mapping[str, Controller] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.card.name

    @property
    def pin(self) -> str:
        """The name by which clients ask for this version alone."""
        return f"{self.name}{VERSION_MARK}{self.version}"

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """What plans of this model can minimise, by name."""
        objectives: dict[str, Objective] = {LATENT.name: LATENT}
        if self.distance is not None:
            objectives[self.distance.name] = self.distance
        return objectives

    def to_blocks(self, rows: FloatArray) -> Tensor:
        """Rows (…, R, action_dim) → z-scored blocks (…, R / action_block, A)."""
        zscored = (torch.tensor(rows) - self.action_mean) / self.action_std
        return zscored.reshape(*rows.shape[:-2], -1, self.card.config.block_width)

    def to_rows(self, blocks: Tensor) -> FloatArray:
        """Z-scored blocks (T, A) → rows (T · action_block, action_dim), inside the bounds."""
        rows = blocks.reshape(-1, self.card.config.action_dim)
        # The inverse of the z-score rounds, which may exceed a bound by a little.
        return self.clip((rows * self.action_std + self.action_mean).numpy())

    @cached_property
    def max_candidate_steps(self) -> int:
        """The candidate-steps that this machine does in `MAX_SEARCH_S`, but at least one plan.

        A candidate-step is one candidate over one step of the horizon.
        """
        solver = self.card.solver
        solver_class = SOLVERS[solver.name]
        shape = RolloutShape(solver.horizon, gradients=solver_class.needs_gradients)
        own_steps = sum(solver_class.candidates_per_ask(solver)) * self.steps_per_candidate(shape)
        return max(self.latency.steps_within(MAX_SEARCH_S), own_steps)

    def steps_per_candidate(self, shape: RolloutShape) -> int:
        """The candidate-steps of one candidate. With gradients they count several times."""
        return math.ceil(shape.horizon * self.latency.cost(shape))

    @property
    def max_surprise(self) -> float | None:
        """The limit of the surprise; None if the model is not calibrated for it."""
        calibration = self.card.calibration
        return None if calibration is None else calibration.surprise_limit

    @property
    def neutral_action(self) -> FloatArray:
        """The action (action_dim,) of a robot without a plan: the card's, or the nearest to 0."""
        neutral = self.card.action_neutral
        values = np.zeros(self.card.config.action_dim) if neutral is None else np.asarray(neutral)
        return self.clip(values.astype(np.float32))

    def clip(self, actions: FloatArray) -> FloatArray:
        """Actions (…, action_dim) moved into the model's bounds."""
        low, high = self._bounds
        clipped: FloatArray = np.minimum(np.maximum(actions, low), high)
        return clipped

    @cached_property
    def max_change(self) -> Tensor | None:
        """The largest change (action_dim,) of a z-scored action from one step to the next.

        It is a little less than the card's, because the inverse of the z-score rounds.
        """
        if self.card.action_rate_limit is None:
            return None
        limit = torch.tensor(self.card.action_rate_limit, dtype=torch.float64)
        low, high = (torch.from_numpy(bound).abs() for bound in self._bounds)
        magnitude = torch.maximum(low, high) + self.action_mean.abs()
        rounding = ROUNDINGS * torch.finfo(torch.float32).eps * magnitude
        return (torch.maximum(limit - rounding, limit / 2) / self.action_std).float()

    @cached_property
    def _bounds(self) -> tuple[FloatArray, FloatArray]:
        low, high = self.card.action_low, self.card.action_high
        return np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
