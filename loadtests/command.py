"""What the commands of this package share: errors as one line, and the exit status."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import typer

from lewm_serve.cli.local_server import LocalServerError


@contextmanager
def readable_errors(program: str) -> Iterator[None]:
    """Print what keeps a load from running as one line on standard error; exit with status 2."""
    try:
        yield
    except (
        LocalServerError,
        OSError,
        RuntimeError,
        ValueError,
        httpx.HTTPError,
        subprocess.TimeoutExpired,
    ) as error:
        typer.echo(f"{program}: {error}", err=True)
        raise typer.Exit(2) from None
