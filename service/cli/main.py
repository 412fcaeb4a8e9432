"""`lewm`, the one program. What a command needs is imported when it runs."""

import os

import typer

# Threads that spin while they wait for each other starve whatever else wants a core: on two busy
# cores a roll-out takes several times as long. Read by OpenMP once, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from service.cli.demo import demo
from service.cli.evaluate import evaluate
from service.cli.models import app as models
from service.cli.serve import serve
from service.cli.train import train

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
app.command("demo")(demo)
app.add_typer(models, name="models")


@app.callback()
def main() -> None:
    """Latent world models that plan: train, measure and serve them."""


if __name__ == "__main__":
    app()
