"""`lewm serve`. Its flags are made from the settings, one for each."""

import inspect
from typing import Annotated, Any, NoReturn

import typer
from pydantic.fields import FieldInfo

from lewm_serve.settings import (
    Settings,
    SettingsError,
    kubernetes_variables,
    load_settings,
    unknown_variables,
)

WRONG_SETTING = 2
"""The exit status if only another setting helps. The unit for systemd does not restart then."""


def serve(**flags: Any) -> None:
    """Serve models over REST and gRPC until SIGTERM or SIGINT.

    When the server is ready, it prints one line of JSON on standard output. Logs go to standard
    error.
    """
    try:
        settings = load_settings(**flags)
    except SettingsError as error:
        _fail(error, WRONG_SETTING)

    from lewm_serve.observability.logging import configure_logs
    from lewm_serve.signals import handle_early_signals

    configure_logs(settings)
    handle_early_signals()
    _warn_of_unknown_variables()

    from lewm_serve.server import serve as run
    from lewm_serve.service import StartError

    try:
        run(settings)
    except SettingsError as error:
        _fail(error, WRONG_SETTING)
    except StartError as error:
        _fail(error, 1)


def _fail(error: Exception, status: int) -> NoReturn:
    typer.echo(f"lewm serve: {error}", err=True)
    raise typer.Exit(status) from None


def _warn_of_unknown_variables() -> None:
    from lewm_serve.observability.logging import log

    for name, closest in unknown_variables().items():
        suggestion = {} if closest is None else {"did_you_mean": closest}
        log.warning("unknown setting", variable=name, **suggestion)
    if links := kubernetes_variables():
        log.warning(
            "variables of Kubernetes services begin like settings; enableServiceLinks: false in "
            "the pod's spec avoids them",
            variables=links,
        )


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """The flag of one setting. Its value is parsed like that of the environment variable."""
    default = field.default if field.default not in (None, ()) else "unset"
    about = f"{field.description} (LEWM_{name.upper()}, default {default})"
    option = typer.Option(f"--{name.replace('_', '-')}", help=about, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


_flags = [_flag(name, field) for name, field in Settings.model_fields.items()]
serve.__signature__ = inspect.Signature(_flags)  # type: ignore[attr-defined]
serve.__annotations__ = {flag.name: flag.annotation for flag in _flags}
