"""The models of the server, by name."""

from __future__ import annotations

from collections.abc import Mapping

from lewm_serve.backends.choice import Wanted
from lewm_serve.errors import FieldProblem, InvalidRequest, UnknownModel, shorten
from lewm_serve.resolution import check_card
from lewm_serve.responses import ModelDescription
from lewm_serve.served import ModelLoadError, ServedModel, load_models, resolve_device
from lewm_serve.settings import Settings

LOGGED = 40
"""Characters of a name that is no model's in a log line."""


class Registry:
    """The served models and which of them answers requests that name none.

    Raises:
        ModelLoadError: the default is not among them.
    """

    def __init__(self, models: Mapping[str, ServedModel], default: str | None) -> None:
        if default is not None and default not in models:
            known = ", ".join(models)
            raise ModelLoadError(f"LEWM_DEFAULT_MODEL is {default}: the models are {known}")
        self._models = models
        self._default = next(iter(models)) if len(models) == 1 else default

    @classmethod
    def load(cls, settings: Settings) -> Registry:
        """Load and warm up what the settings name.

        Raises:
            ModelLoadError: a model, the default or the device cannot be had.
        """
        wanted = Wanted(settings.backend, settings.precision, settings.threads)
        models = load_models(settings.models, resolve_device(settings.device), wanted)
        for model in models.values():
            try:
                check_card(model)
            except InvalidRequest as error:
                raise ModelLoadError(f"{model.name}: solver in its card: {error.detail}") from None
        registry = cls(models, settings.default_model)
        for model in models.values():
            model.pace.measure(model.backend, model.card.config)
        return registry

    def all(self) -> list[ServedModel]:
        """Every model."""
        return list(self._models.values())

    def get(self, name: str | None) -> ServedModel:
        """The model of a request.

        Raises:
            UnknownModel: there is none of that name.
            InvalidRequest: none is named, and there is no default.
        """
        name = self._default if name is None else name
        if name is None:
            expected = f"one of {', '.join(self._models)}"
            raise InvalidRequest.of(FieldProblem("model", "missing_field", "nothing", expected))
        if name not in self._models:
            raise UnknownModel(name, self._models)
        return self._models[name]

    def label(self, asked: object) -> str | None:
        """What logs call the model that a request asks for, None for the default.

        A model's own name; other names in quotes and shortened, being the client's own words; None
        for what is no name, and where there is no default.
        """
        name = self._default if asked is None else asked
        if not isinstance(name, str):
            return None
        return name if name in self._models else shorten(name, LOGGED)

    def describe(self, model: ServedModel) -> ModelDescription:
        """A model as clients see it."""
        backend = model.backend
        return ModelDescription(
            model.name,
            model.version,
            model.name == self._default,
            backend.name,
            backend.device,
            backend.precision,
            model.card.to_json(),
        )
