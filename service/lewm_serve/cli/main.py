"""`lewm`, the one program. Commands import what they need when they run: `--help` is quick."""

import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
import typer.core

# OpenMP's threads wait for each other in a loop for milliseconds. On two cores with other work,
# that makes a roll-out several times slower; without any waiting loop, a roll-out on idle cores
# takes twice as long. A loop of 1,000 turns costs a fifth on idle cores and saves half on busy
# ones. The variable is read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from lewm_serve.cli.capacity import capacity
from lewm_serve.cli.data import app as data
from lewm_serve.cli.demo import demo
from lewm_serve.cli.evaluate import evaluate
from lewm_serve.cli.keys import app as keys
from lewm_serve.cli.models import app as models
from lewm_serve.cli.pilot import pilot
from lewm_serve.cli.serve import serve
from lewm_serve.cli.train import train


class Program(typer.core.TyperGroup):
    """All commands. An error of the system, such as a full disk, is one line."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command."""
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            typer.echo(f"lewm: {error}", err=True)
            # What is still in the buffer cannot be written either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)


app = typer.Typer(
    name="lewm",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("pilot")(pilot)
app.command("demo")(demo)
app.command("capacity")(capacity)
app.add_typer(data, name="data")
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")


def _open_standard_files() -> None:
    """Open standard files that are closed as /dev/null.

    Otherwise their numbers would become those of sockets, and what libraries write to standard
    error would go to a client.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lewm-serve {version('lewm-serve')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Latent world models that plan: train, measure and serve them."""
    _open_standard_files()


if __name__ == "__main__":
    app()
