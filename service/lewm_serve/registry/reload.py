"""Read the model folders again: which models are new, replaced, unchanged, removed or broken.

A model that cannot be loaded changes nothing: its earlier version stays. Models load beside those
that are served, so this runs in a thread, and needs memory for both. The thread leaves the
processor to the plans that run meanwhile: on two busy cores they take a tenth longer. At the usual
priority they took twice as long, and a reload a third of the time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lewm_models.checkpoint import CheckpointError, name_and_version, possible_model_folders
from lewm_models.cores import lower_thread_priority
from lewm_serve.api.responses import ReloadedModel
from lewm_serve.backends.comparison import synthetic_frames
from lewm_serve.constants import ReloadResult
from lewm_serve.observability.logging import log
from lewm_serve.registry.loading import (
    backend_settings,
    load_model,
    model_paths,
    prepare_plans,
    resolve_device,
)
from lewm_serve.registry.registry import VERSION_MARK, LoadedModel, ModelLoadError, Registry
from lewm_serve.settings import Settings

LOADING_NICENESS = 10
"""Loading must not take processor time from the engine."""

UNEXPECTED = "an unexpected error; the log has it"


class Reloaded(NamedTuple):
    """What the folders hold now.

    Attributes:
        models: the models that are to be current, by folder.
        report: what became of each model, and of each path that cannot be used.
    """

    models: dict[Path, LoadedModel]
    report: list[ReloadedModel]


@dataclass
class _Folder:
    """A folder that may hold a model.

    Attributes:
        path: the folder.
        name: the name of its model, if it is known.
        version: the version of its model, if it is known.
        error: why its model cannot be used, if so.
        seconds: how long that took.
    """

    path: Path
    name: str | None = None
    version: str | None = None
    error: str | None = None
    seconds: float = 0.0


def read_models_again(registry: Registry, settings: Settings) -> Reloaded:
    """Load what has changed in the folders of the settings since a registry was made.

    A version that is loaded, also one of the old ones, is not loaded again. A model is removed if
    its folder is gone from a path that can still be read. If two folders have models of the same
    name, both fail. So does a folder that changes while it is read.
    """
    return _Reload(registry, settings).run()


def load_beside_others(
    folder: Path, pin: str, settings: Settings, *, earlier: LoadedModel | None
) -> LoadedModel:
    """A model of a folder, loaded while others are served: warmed up, measured and tried.

    Args:
        folder: the folder.
        pin: the name and the version of its model.
        settings: the server's settings.
        earlier: see `load_model`.

    Raises:
        ModelLoadError: it cannot be used, or is another one.
    """

    def load_and_try() -> LoadedModel:
        model = load_model(
            folder,
            resolve_device(settings.device),
            backend_settings(settings),
            limits=settings,
            earlier=earlier,
        )
        if model.pin != pin:
            raise ModelLoadError("the folder changed while it was read; reload again")
        _check_finite(model)
        return model

    model = _at_low_priority(load_and_try)
    model.backend.renew_threads()
    # At the priority of the engine: its work must not be expected to take longer.
    prepare_plans(model, earlier)
    return model


class _Reload:
    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings
        self._loaded = {model.pin: model for model in registry.loaded}
        self._models: dict[Path, LoadedModel] = {}
        self._report: list[ReloadedModel] = []

    def run(self) -> Reloaded:
        """See `read_models_again`."""
        paths = model_paths(self._settings)
        folders = [folder for path in paths for folder in self._possible_folders(path)]
        self._refuse_to_replace_default(folders)
        names = Counter(folder.name for folder in folders)
        for folder in folders:
            if folder.name is not None and names[folder.name] > 1:
                folder.error = f"{names[folder.name]} folders have models of this name"
            if folder.error is None:
                self._take(folder)
        for folder in folders:
            if folder.error is not None:
                self._keep(folder, folder.error)
        self._keep_default()
        for model in self._registry.all():
            if model.name not in self._names():
                self._add(model.name, "removed", before=model)
        return Reloaded(self._models, self._report)

    def _names(self) -> set[str]:
        return {model.name for model in self._models.values()}

    def _possible_folders(self, path: Path) -> Iterator[_Folder]:
        """The folders at a path. If it cannot be read, those that are served are kept."""
        try:
            folders = possible_model_folders(path)
        except (CheckpointError, OSError) as error:
            served = [
                folder for folder in self._registry.by_folder if path in (folder, folder.parent)
            ]
            yield from (_Folder(folder, error=str(error)) for folder in served or [path])
            return
        for folder in folders:
            try:
                yield _Folder(folder, *name_and_version(folder))
            except CheckpointError as error:
                yield _Folder(folder, error=str(error))

    def _refuse_to_replace_default(self, folders: list[_Folder]) -> None:
        """Note an error if the folder of `LEWM_DEFAULT_MODEL` holds a model of another name.

        Requests that name no model would fail, unless another folder holds the default model now.
        """
        default = self._settings.default_model
        if default is None or default in [folder.name for folder in folders]:
            return
        for folder in folders:
            before = self._registry.by_folder.get(folder.path)
            if folder.error is None and before is not None and before.name == default:
                folder.error = f"holds {folder.name!r}, but LEWM_DEFAULT_MODEL is {default}"
                folder.name = folder.version = None

    def _take(self, folder: _Folder) -> None:
        """Load a folder's model, or note why that is not possible."""
        started = time.monotonic()
        try:
            model = self._load(folder)
        except ModelLoadError as error:
            folder.error = str(error)
        except Exception:
            log.exception("unexpected error", folder=str(folder.path))
            folder.error = UNEXPECTED
        folder.seconds = time.monotonic() - started
        if folder.error is None:
            before = self._registry.current(model.name)
            result: ReloadResult = "added" if before is None else "switched"
            if before is model:
                result = "unchanged"
            self._models[folder.path] = model
            self._add(
                model.name, result, before=before, version=model.version, seconds=folder.seconds
            )

    def _load(self, folder: _Folder) -> LoadedModel:
        """The model of a folder, warmed up, measured and tried.

        Raises:
            ModelLoadError: it cannot be used.
        """
        assert folder.name is not None
        pin = f"{folder.name}{VERSION_MARK}{folder.version}"
        if (known := self._loaded.get(pin)) is not None:
            return known
        earlier = self._registry.current(folder.name)
        return load_beside_others(folder.path, pin, self._settings, earlier=earlier)

    def _keep(self, folder: _Folder, error: str) -> None:
        """Keep what is served of a folder that cannot be used, and report the folder."""
        before = self._registry.by_folder.get(folder.path)
        if folder.name is not None:
            before = self._registry.current(folder.name) or before
        if before is not None and before.name not in self._names():
            self._models[folder.path] = before
        name = folder.name or (folder.path.name if before is None else before.name)
        log.error("model not reloaded", model=name, folder=str(folder.path), reason=error)
        self._add(
            name,
            "failed",
            before=before,
            version=folder.version,
            seconds=folder.seconds,
            error=self._without_paths(error, folder.path),
        )

    def _keep_default(self) -> None:
        """Keep the model of `LEWM_DEFAULT_MODEL`, without which requests would fail."""
        name = self._settings.default_model
        if name is None or name in self._names():
            return
        by_folder = self._registry.by_folder
        path = next(path for path, model in by_folder.items() if model.name == name)
        self._keep(_Folder(path, name), "LEWM_DEFAULT_MODEL names it, so it is not removed")

    def _without_paths(self, message: str, folder: Path) -> str:
        """A message for clients, who must not see where the server has its files."""
        for path in (*model_paths(self._settings), folder):
            if path.name:  # "." and "/" have none
                message = message.replace(str(path), path.name)
        return message

    def _add(
        self,
        name: str,
        result: ReloadResult,
        *,
        before: LoadedModel | None = None,
        version: str | None = None,
        seconds: float = 0.0,
        error: str | None = None,
    ) -> None:
        self._report.append(
            ReloadedModel(
                model=name,
                result=result,
                old_version=None if before is None else before.version,
                new_version=version,
                seconds=round(seconds, 3),
                error=error,
            )
        )


def _at_low_priority(load: Callable[[], LoadedModel]) -> LoadedModel:
    """Load in a thread of its own. A thread that has a low priority keeps it."""
    with ThreadPoolExecutor(
        1, "load-models", initializer=lower_thread_priority, initargs=(LOADING_NICENESS,)
    ) as loader:
        return loader.submit(load).result()


def _check_finite(model: LoadedModel) -> None:
    """Try what every plan does.

    Raises:
        ModelLoadError: the model computes numbers that are not finite.
    """
    latents = model.backend.encode(synthetic_frames(model.card.config.image_size))
    config, horizon = model.card.config, model.card.solver.horizon
    candidates = torch.zeros(1, len(latents), horizon, config.block_width)
    past_actions = torch.empty(1, 0, config.block_width)
    predicted = model.backend.rollout(latents[:1].unsqueeze(0), past_actions, candidates)
    if not (bool(latents.isfinite().all()) and bool(predicted.isfinite().all())):
        raise ModelLoadError("the model computes numbers that are not finite; check its weights")
