"""Models in process, loaded and warmed up as the server does it."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch

from lewm_models import checkpoint
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card, random_model
from lewm_serve.registry.registry import LoadedModel, Registry
from lewm_serve.settings import load_settings


@contextmanager
def random_folder(preset: str) -> Iterator[Path]:
    """A model folder of random weights, for as long as it is needed."""
    config = PRESETS[preset]
    with tempfile.TemporaryDirectory(prefix="lewm-benchmark-") as name:
        folder = Path(name) / preset
        checkpoint.save(folder, random_model(config), random_card(f"random-{preset}", config, {}))
        yield folder


def load_served(folder: Path | None = None, **flags: Any) -> LoadedModel:
    """The sole model of a server with these flags; its choice of threads holds from here on."""
    models = {} if folder is None else {"models": str(folder)}
    settings = load_settings(**{"device": "cpu", **models, **flags})
    with _quiet():
        return Registry.load(settings).get(None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings alone, on standard error; afterwards the process logs as it did before."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def describe_served(model: LoadedModel) -> dict[str, Any]:
    """What was chosen to run the model."""
    return {
        "model": model.name,
        "version": model.version,
        "backend": model.backend.name,
        "device": model.backend.device,
        "precision": model.backend.precision,
        "threads": getattr(model.backend, "threads", torch.get_num_threads()),
    }
