"""`lewm`, the one program. What a command needs is imported when it runs."""

import typer

from service.cli.serve import serve

app = typer.Typer(
    name="lewm",
    help="Latent world models that plan: train, measure and serve them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve)


@app.callback()
def main() -> None:
    """Latent world models that plan: train, measure and serve them."""


if __name__ == "__main__":
    app()
