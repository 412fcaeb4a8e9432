"""The settings of a public checkpoint: a Hydra file `config.json`, or stored hyper-parameters.

Its ``_target_`` names differ between releases. They are compared with names of norms and
activations, and are never imported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lewm_models.checkpoint import CheckpointError

MODEL_PARTS = {"encoder", "predictor"}
"""Where these stand side by side, there are the settings of a model."""

MAX_NESTING = 6

LOOKUPS = ("get_class", "get_method", "get_object")
"""Functions of Hydra whose ``path`` is the name that is meant."""


@dataclass(frozen=True)
class Settings:
    """The settings of one model.

    Attributes:
        values: nested objects.
        label: where they are, at the beginning of an error message: ``config.json: model.``.
    """

    values: Mapping[str, Any]
    label: str

    def entry(self, path: str) -> Any:
        """The value at a dotted path, None if there is none."""
        value: Any = self.values
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def number(self, path: str) -> int | None:
        """A positive integer, None if there is none.

        Raises:
            CheckpointError: there is something else.
        """
        value = self.entry(path)
        if value is not None and (type(value) is not int or value < 1):
            raise self.error(path, f"expected an integer of at least 1, got {value!r:.80}")
        return value

    def side(self, path: str) -> int | None:
        """The side of a square: a number, or the same number twice.

        Raises:
            CheckpointError: there is something else.
        """
        value = self.entry(path)
        if not isinstance(value, list):
            return self.number(path)
        if len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
            raise self.error(path, f"expected one or two integers, got {value!r:.80}")
        if value[0] != value[1]:
            raise self.error(path, f"expected a square, got {value!r:.80}")
        return int(value[0])

    def error(self, path: str, problem: str) -> CheckpointError:
        """The error that a setting is wrong."""
        return CheckpointError(f"{self.label}{path}: {problem}")

    def disagreement(self, path: str, given: object, evidence: str) -> CheckpointError:
        """The error that a setting disagrees with the tensors."""
        return CheckpointError(f"{self.label}{path} is {given}, but {evidence}")


def model_settings(content: Mapping[Any, Any], file: str) -> Settings:
    """The settings of the model in the settings of a training run: as they are, or nested."""
    pending: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), content)])
    while pending:
        path, values = pending.popleft()
        if values.keys() >= MODEL_PARTS:
            return Settings(values, f"{file}: {''.join(f'{name}.' for name in path)}")
        if len(path) < MAX_NESTING:
            pending += [
                ((*path, name), value)
                for name, value in values.items()
                if isinstance(name, str) and isinstance(value, dict)
            ]
    return Settings(dict(content), f"{file}: ")


def class_name(value: object) -> str | None:
    """The last part of the name of a function or class; None if the value has no name."""
    if isinstance(value, dict):
        target = value.get("_target_")
        if isinstance(target, str) and target.rpartition(".")[2] in LOOKUPS:
            target = value.get("path")
        value = target
    return value.rpartition(".")[2] if isinstance(value, str) else None
