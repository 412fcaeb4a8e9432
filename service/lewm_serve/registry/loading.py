"""From model folders to models that are ready to be served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lewm_models import checkpoint
from lewm_models.card import ModelCard, SolverConfig
from lewm_models.checkpoint import EMBEDDED_MODEL, CheckpointError
from lewm_serve.api.fields import parse
from lewm_serve.api.requests import SolverSettings
from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.backends.choice import (
    REQUIRED_OVERLAP,
    BackendChoice,
    BackendSettings,
    NoBackend,
    choose_backend,
    kind_of,
)
from lewm_serve.backends.native.backend import distance_on
from lewm_serve.engine.device_jobs import warm_up_searches
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.errors import InvalidRequest, shorten
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.objectives.states import StateReader
from lewm_serve.observability.logging import log
from lewm_serve.registry.controllers import load_controllers
from lewm_serve.registry.registry import LoadedModel, ModelLoadError, Registry
from lewm_serve.settings import Settings
from lewm_serve.solvers import SOLVERS


def load_registry(
    settings: Settings, earlier: Mapping[Path, LoadedModel] | None = None
) -> Registry:
    """Load and warm up the models that the settings name, and measure their latencies.

    Args:
        settings: the server's settings.
        earlier: models by folder that were served before; see `load_model`. The latencies of those
            that are still the same are not measured again.

    Raises:
        ModelLoadError: a model, the default model or the device is not available.
    """
    earlier = earlier or {}
    models = load_models(settings, earlier)
    registry = Registry(models, settings.default_model)
    for folder, model in models.items():
        prepare_plans(model, earlier.get(folder))
    return registry


def prepare_plans(model: LoadedModel, earlier: LoadedModel | None) -> None:
    """Measure how long a model's work takes, and record its usual searches on a GPU.

    A model that has the latency model of an ``earlier`` version is not measured.
    """
    card = model.card
    if earlier is None or model.latency is not earlier.latency:
        model.latency.measure(model.backend, card.config)
    objective = model.distance if card.solver.objective == "distance" else None
    max_rows = model.latency.max_batched_rows
    warm_up_searches(model.backend, card.config, card.solver, objective or LATENT, max_rows)


def model_paths(settings: Settings) -> tuple[Path, ...]:
    """The paths of model folders, or of folders of these; by default the embedded model."""
    return settings.models or (EMBEDDED_MODEL,)


def backend_settings(settings: Settings) -> BackendSettings:
    """What the settings ask of backends."""
    return BackendSettings(
        backend=settings.backend,
        precision=settings.precision,
        search=settings.search,
        threads=settings.threads,
        native_compile=settings.native_compile,
    )


def load_models(
    settings: Settings, earlier: Mapping[Path, LoadedModel] | None = None
) -> dict[Path, LoadedModel]:
    """The models of all folders that the settings name, by folder; by default the embedded model.

    For ``earlier`` see `load_registry`.

    Raises:
        ModelLoadError: a folder has no usable model, or two models have the same name.
    """
    device = resolve_device(settings.device)
    models: dict[Path, LoadedModel] = {}
    for folder in _model_folders(model_paths(settings)):
        model = load_model(
            folder,
            device,
            backend_settings(settings),
            limits=settings,
            earlier=None if earlier is None else earlier.get(folder),
        )
        if any(model.name == other.name for other in models.values()):
            raise ModelLoadError(f"{folder}: another model is called {model.name!r} too")
        models[folder] = model
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
    earlier: LoadedModel | None = None,
) -> LoadedModel:
    """Load a model folder, choose its backend and warm that up.

    Args:
        folder: the folder.
        device: where the model runs.
        settings: what the server's settings ask of backends.
        limits: the settings with the limits of a search. Defaults of the card beyond them are
            logged, because requests that give no settings of their own are refused then.
        earlier: the version of the model that is served now. If both have the same architecture,
            the new one takes its backend without timing others, and its latency model.

    Raises:
        ModelLoadError: the folder has no usable model, or no backend that the settings allow can
            run it.
    """
    try:
        loaded = checkpoint.load(folder)
    except CheckpointError as error:
        raise ModelLoadError(str(error)) from error
    card = loaded.card
    if earlier is not None and earlier.card.config != card.config:
        earlier = None
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
            earlier=None if earlier is None else earlier.backend,
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
        latency=_latency_of(choice.backend, earlier),
        action_mean=mean,
        action_std=std,
        low=((low - mean) / std).repeat(block),
        high=((high - mean) / std).repeat(block),
        reference=loaded.reference,
        distance=None if distance is None else distance_on(choice.backend, distance),
        probe=None if loaded.probe is None else StateReader(loaded.probe, device),
        controllers=controllers,
    )


def _latency_of(backend: ThreadedBackend, earlier: LoadedModel | None) -> LatencyModel:
    """The latency model of an earlier version that runs alike, or one without measurements."""
    if earlier is not None and kind_of(earlier.backend) == kind_of(backend):
        return earlier.latency
    return LatencyModel()


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
