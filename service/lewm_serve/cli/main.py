"""`lewm`, the one program. What a command needs is imported when it runs."""

import os
from importlib import metadata
from typing import Annotated

import typer

# OpenMP's threads spin for milliseconds while they wait for each other, which on two cores with
# anything else to do makes a roll-out several times slower; not spinning at all doubles its time on
# idle ones. A thousand turns cost a fifth on idle cores and save half on busy ones. Read once,
# before torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from lewm_serve.cli.benchmark import benchmark
from lewm_serve.cli.demo import demo
from lewm_serve.cli.evaluate import evaluate
from lewm_serve.cli.models import app as models
from lewm_serve.cli.serve import serve
from lewm_serve.cli.train import train

app = typer.Typer(
    name="lewm",
    help="Latent world models that plan: train, measure and serve them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("benchmark")(benchmark)
app.command("demo")(demo)
app.add_typer(models, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lewm-serve {metadata.version('lewm-serve')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Latent world models that plan: train, measure and serve them."""


if __name__ == "__main__":
    app()
