"""The models of the server, by name, and what each of them needs to be served."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import ModelCard, SolverConfig
from lewm_models.checkpoint import EMBEDDED_MODEL, CheckpointError
from lewm_serve.api.fields import parse
from lewm_serve.api.requests import SolverSettings
from lewm_serve.api.responses import ModelDescription
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.choice import (
    REQUIRED_OVERLAP,
    BackendChoice,
    BackendSettings,
    NoBackend,
    choose_backend,
)
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.errors import InvalidRequest, UnknownModel, shorten
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.observability.logging import log
from lewm_serve.registry.controllers import Controller, load_controllers
from lewm_serve.settings import Settings
from lewm_serve.solvers import SOLVERS

FloatArray = NDArray[np.float32]

MAX_LOGGED_NAME_CHARACTERS = 40
"""How much of a model name that is unknown to the server a log line repeats."""


MAX_SEARCH_S = 10.0
"""By default a request may take about this much of the engine's time."""

ROUNDINGS = 8
"""How many times the difference of two actions is rounded between the search and the answer."""


class ModelLoadError(RuntimeError):
    """A model cannot be loaded. The message says which and why."""


class Registry:
    """The loaded models, and which of them answers requests that name none.

    Raises:
        ModelLoadError: the default is not among the models.
    """

    def __init__(self, models: Mapping[str, LoadedModel], default: str | None) -> None:
        if default is not None and default not in models:
            known = ", ".join(models)
            raise ModelLoadError(f"LEWM_DEFAULT_MODEL is {default}: the models are {known}")
        self._models = models
        self._default = next(iter(models)) if len(models) == 1 else default

    @classmethod
    def load(cls, settings: Settings) -> Registry:
        """Load and warm up the models that the settings name, and measure their latencies.

        Raises:
            ModelLoadError: a model, the default model or the device is not available.
        """
        models = load_models(settings)
        registry = cls(models, settings.default_model)
        for model in models.values():
            model.latency.measure(model.backend, model.card.config)
        return registry

    def all(self) -> list[LoadedModel]:
        """All models."""
        return list(self._models.values())

    def get(self, name: str | None) -> LoadedModel:
        """The model of a request.

        Raises:
            UnknownModel: there is no model of this name.
            InvalidRequest: the request names no model and there is no default.
        """
        name = self._default if name is None else name
        if name is None:
            raise InvalidRequest.missing("model", f"one of {', '.join(self._models)}")
        if name not in self._models:
            raise UnknownModel(name, self._models)
        return self._models[name]

    def log_label(self, requested: object) -> str | None:
        """What log lines call the model that a request names; None means the default model.

        Names of models appear as they are. Other names are the client's own text: they are quoted
        and shortened. The result is None if there is no name.
        """
        name = self._default if requested is None else requested
        if not isinstance(name, str):
            return None
        return name if name in self._models else shorten(name, MAX_LOGGED_NAME_CHARACTERS)

    def describe(self, model: LoadedModel) -> ModelDescription:
        """A model as clients see it."""
        backend = model.backend
        return ModelDescription(
            name=model.name,
            version=model.version,
            default=model.name == self._default,
            backend=backend.name,
            device=backend.device,
            precision=backend.precision,
            card=model.card.to_json(),
        )


@dataclass(frozen=True)
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
        controllers: the model's fallback controllers by name.
    """

    card: ModelCard
    version: str
    backend: Backend
    latency: LatencyModel
    action_mean: Tensor
    action_std: Tensor
    low: Tensor
    high: Tensor
    reference: LatentReference | None = None
    distance: DistanceObjective | None = None
    controllers: Mapping[str, Controller] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.card.name

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


def load_models(settings: Settings) -> dict[str, LoadedModel]:
    """All models in the folders that the settings name, by name; by default the embedded model.

    Raises:
        ModelLoadError: a folder has no usable model, or two models have the same name.
    """
    device = resolve_device(settings.device)
    backend_settings = BackendSettings(
        backend=settings.backend,
        precision=settings.precision,
        threads=settings.threads,
        native_compile=settings.native_compile,
    )
    models: dict[str, LoadedModel] = {}
    for folder in _model_folders(settings.models or (EMBEDDED_MODEL,)):
        model = load_model(folder, device, backend_settings, limits=settings)
        if model.name in models:
            raise ModelLoadError(f"{folder}: another model is called {model.name!r} too")
        models[model.name] = model
    return models


def _model_folders(paths: Iterable[Path]) -> list[Path]:
    try:
        return [folder for path in paths for folder in checkpoint.model_folders(path)]
    except (CheckpointError, OSError) as error:
        raise ModelLoadError(str(error)) from error


def load_model(
    folder: Path,
    device: torch.device,
    settings: BackendSettings,
    *,
    limits: Settings | None = None,
) -> LoadedModel:
    """Load a model folder, choose its backend and warm that up.

    ``limits`` are the settings with the limits of a search. Defaults of the card beyond them are
    logged, because requests that give no settings of their own are refused then.

    Raises:
        ModelLoadError: the folder has no usable model, or no backend that the settings allow can
            run it.
    """
    try:
        loaded = checkpoint.load(folder)
    except CheckpointError as error:
        raise ModelLoadError(str(error)) from error
    card = loaded.card
    try:
        check_solver(card)
    except ModelLoadError as error:
        raise ModelLoadError(f"{folder / checkpoint.CARD_FILE}: {error}") from None
    distance = None
    if loaded.distance is not None:
        distance = DistanceObjective(loaded.distance, device)
    for warning in (*card.warnings, *_beyond_limits(card.solver, limits)):
        log.warning("model card", model=card.name, warning=warning)
    try:
        choice = choose_backend(
            loaded.model,
            replace(card, solver=_within_limits(card.solver, limits)),
            frames=loaded.frames,
            device=device,
            settings=settings,
            objective=LATENT
            if distance is None or card.solver.objective != "distance"
            else distance,
        )
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
    block = card.config.action_block
    return LoadedModel(
        card=card,
        version=loaded.version,
        backend=choice.backend,
        latency=LatencyModel(),
        action_mean=mean,
        action_std=std,
        low=((low - mean) / std).repeat(block),
        high=((high - mean) / std).repeat(block),
        reference=loaded.reference,
        distance=distance,
        controllers=controllers,
    )


def check_solver(card: ModelCard) -> None:
    """Refuse a card with default solver settings that no request could ask for.

    Raises:
        ModelLoadError: a setting is impossible.
    """
    solver = asdict(card.solver)
    solver["elites"] = min(solver["elites"], solver["samples"])
    if solver["name"] not in SOLVERS:
        known = ", ".join(SOLVERS)
        raise ModelLoadError(
            f"solver.name: received {shorten(solver['name'])}, expected one of {known}"
        )
    try:
        parse(SolverSettings, solver)
    except InvalidRequest as error:
        raise ModelLoadError(f"solver.{error.detail}") from None


def _within_limits(solver: SolverConfig, limits: Settings | None) -> SolverConfig:
    """The largest search that a request may ask for, up to the card's own."""
    if limits is None:
        return solver
    return replace(
        solver,
        samples=min(solver.samples, limits.max_samples),
        iterations=min(solver.iterations, limits.max_iterations),
        horizon=min(solver.horizon, limits.max_horizon),
    )


def _beyond_limits(solver: SolverConfig, limits: Settings | None) -> list[str]:
    """What exceeds the limits of this server in the card's defaults: one sentence each."""
    within = _within_limits(solver, limits)
    return [
        f"solver.{name}: is {getattr(solver, name)}, more than LEWM_MAX_{name.upper()}, "
        f"{getattr(within, name)}: requests that do not give solver.{name} are refused"
        for name in ("samples", "iterations", "horizon")
        if getattr(solver, name) > getattr(within, name)
    ]


def resolve_device(name: str) -> torch.device:
    """The device of this name; `auto` is the GPU if there is one.

    Raises:
        ModelLoadError: there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ModelLoadError(f"LEWM_DEVICE is {name}: there are {count} CUDA devices")
    return device


def _log_choice(card: ModelCard, choice: BackendChoice, frames: str) -> None:
    backend = choice.backend
    plan_ms = {
        f"{option.backend.name} {option.backend.precision} on {option.threads}": round(
            1000 * option.plan_s, 1
        )
        for option in choice.timings
    }
    log.info(
        "backend chosen",
        model=card.name,
        backend=backend.name,
        precision=backend.precision,
        device=backend.device,
        threads=backend.threads,
        plan_ms=plan_ms,
    )
    if choice.native_problem is not None:
        log.warning("no native backend", model=card.name, reason=choice.native_problem)
    if choice.overlap is None:
        return
    ranks_well = backend.precision == "float32" or choice.overlap >= REQUIRED_OVERLAP
    (log.info if ranks_well else log.warning)(
        "bfloat16 ranks candidates like float32",
        model=card.name,
        top_30_overlap=round(choice.overlap, 3),
        required=REQUIRED_OVERLAP,
        frames=frames,
    )
