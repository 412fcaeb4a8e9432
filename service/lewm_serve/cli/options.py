"""Choices of the command line. They repeat names so that `--help` does not import torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class PlannerChoice(StrEnum):
    """What is measured: a model, or one of `lewm_models.evaluation.baselines`."""

    MODEL = "model"
    REST = "rest"
    RANDOM = "random"


class Preset(StrEnum):
    """The architectures of `lewm_models.config`."""

    PAPER = "paper"
    EDGE = "edge"


class SolverChoice(StrEnum):
    """Which solver an imported model plans with; see `lewm_serve.cli.import_checkpoint`."""

    AUTO = "auto"
    CEM = "cem"
    ICEM = "icem"
    KEEP = "keep"


class Objective(StrEnum):
    """The objectives of `lewm_models.card.OBJECTIVES`."""

    LATENT = "latent"
    DISTANCE = "distance"


class GoalBy(StrEnum):
    """How the goals of episodes are given."""

    FRAME = "frame"
    STATE = "state"


class Crop(StrEnum):
    """The ways to make frames square, of `lewm_models.preprocessing`."""

    CENTER = "center"
    PAD = "pad"
    STRETCH = "stretch"


EnvironmentOption = Annotated[
    str | None,
    typer.Option(
        "--env",
        help="environment of the episodes, or package.module:factory; default: that of the "
        "embedded model",
    ),
]
OffsetOption = Annotated[
    int | None,
    typer.Option(help="steps from a start to its goal on a trajectory; default: the protocol's"),
]
BudgetOption = Annotated[
    int | None,
    typer.Option(help="steps an episode may take; default: the protocol's, in proportion"),
]
PlanStepsOption = Annotated[
    int | None,
    typer.Option(help="actions of a plan to execute before the next; default: the protocol's"),
]
ServerOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="gRPC server to use; default: start one")
]
ApiKeyFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="file with the API key for --server")
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="reach --server by TLS, and trust the authorities in this PEM file"
    ),
]
TlsCertOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="certificate that --server knows this by")
]
TlsKeyOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="private key of --tls-cert")
]
SolverOption = Annotated[str | None, typer.Option("--solver", help="name of the solver")]
SamplesOption = Annotated[int | None, typer.Option(help="candidates per iteration")]
IterationsOption = Annotated[int | None, typer.Option(help="solver iterations")]
ElitesOption = Annotated[int | None, typer.Option(help="how many of the best candidates count")]
HorizonOption = Annotated[int | None, typer.Option(help="action blocks to plan ahead")]
ObjectiveOption = Annotated[
    Objective | None, typer.Option(help="what candidates cost; see docs/api.md")
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="another setting of the solver; may be repeated"),
]
CameraOption = Annotated[
    list[str] | None,
    typer.Option("--camera", metavar="NAME", help="name of the camera, if there are several"),
]
ActionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--action",
        metavar="NAME",
        help="name of the column of actions, if there are several, or it is not called action…",
    ),
]
StateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--state", metavar="NAME", help="name of the column of states, if there are several"
    ),
]

PeriodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--period",
        metavar="STATE=NUMBER",
        help="a state that repeats after this number, as an angle does (360, or 6.2832); may be "
        "repeated",
    ),
]


def one_name(names: list[str] | None, option: str) -> str | None:
    """The name that an option was given, or None.

    Raises:
        ValueError: it was given several times.
    """
    if not names:
        return None
    if len(names) > 1:
        raise ValueError(
            f"{option}: expected one name, got {', '.join(names)}; "
            "several at once are not supported"
        )
    return names[0]


def access_settings(
    server: str | None,
    *,
    api_key_file: Path | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> dict[str, Any]:
    """How `lewm_client.PlannerClient` comes into the server that is given.

    Raises:
        ValueError: an option has no effect or lacks another one, or the key's file holds something
            else.
        OSError: the key's file cannot be read.
    """
    files = {
        "--api-key-file": api_key_file,
        "--tls-ca": tls_ca,
        "--tls-cert": tls_cert,
        "--tls-key": tls_key,
    }
    given = [option for option, file in files.items() if file is not None]
    if given and server is None:
        raise ValueError(f"{given[0]}: expected --server too")
    check_tls_options(ca=tls_ca, cert=tls_cert, key=tls_key)
    api_key = None if api_key_file is None else read_api_key(api_key_file)
    return {"api_key": api_key, "tls": tls_ca or False, "certificate": tls_cert, "key": tls_key}


def check_tls_options(*, ca: object, cert: object, key: object) -> None:
    """Check that the options of TLS that are given, and not None, go together.

    Raises:
        ValueError: an option lacks another one.
    """
    if (cert is None) != (key is None):
        raise ValueError("expected --tls-cert and --tls-key together")
    if cert is not None and ca is None:
        raise ValueError("--tls-cert: expected --tls-ca too")


def read_api_key(file: Path) -> str:
    """The API key in a file.

    Raises:
        ValueError: the file holds something else. The message does not show it.
        OSError: the file cannot be read.
    """
    key = file.read_bytes().strip()
    if not key or any(not 0x21 <= byte <= 0x7E for byte in key):
        raise ValueError(f"--api-key-file: {file}: expected the key alone, as `lewm keys add` ends")
    return key.decode("ascii")


def solver_settings(
    *,
    solver: str | None,
    samples: int | None,
    iterations: int | None,
    elites: int | None,
    horizon: int | None,
    objective: Objective | None,
    setting: list[str] | None,
) -> dict[str, Any]:
    """The settings that are given, by their names in a request.

    Raises:
        ValueError: a ``setting`` is not of the form NAME=VALUE.
    """
    named = {
        "name": solver,
        "samples": samples,
        "iterations": iterations,
        "elites": elites,
        "horizon": horizon,
        "objective": None if objective is None else objective.value,
    }
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for text in setting or []:
        name, _, value = text.partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            raise ValueError(f"--setting: expected NAME=VALUE with a number, got {text}") from None
    return given
