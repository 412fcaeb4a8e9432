"""`lewm keys`: make, list and revoke the keys of clients."""

from pathlib import Path
from typing import Annotated, NoReturn, cast

import typer
from rich.console import Console
from rich.table import Table

from lewm_serve.access.keys_file import (
    ROLES,
    KeyEntry,
    KeysFileError,
    Role,
    changed_keys,
    new_key,
    read_keys,
)
from lewm_serve.cli.messages import describe_error

app = typer.Typer(no_args_is_help=True, help="Keys of clients, for LEWM_KEYS_FILE.")

FileOption = Annotated[
    Path,
    typer.Option(
        "--file", envvar="LEWM_KEYS_FILE", metavar="FILE", help="the file that holds their hashes"
    ),
]
NameArgument = Annotated[str, typer.Argument(help="what logs call the key, such as arm-1")]


@app.command("add")
def add(
    name: NameArgument,
    file: FileOption,
    roles: Annotated[
        list[str],
        typer.Option(
            "--role",
            metavar="ROLE",
            help="infer (encode, predict, plan, list models), read (models, metrics, docs) or "
            "admin; may be repeated",
        ),
    ],
    rate: Annotated[
        float | None, typer.Option(help="most requests per second; default: no limit")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="most requests in progress at once; default: no limit")
    ] = None,
) -> None:
    """Make a key. It is printed once, as the last word; the file holds only its hash.

    Running servers accept it within a second of their next request.
    """
    try:
        for role in roles:
            if role not in ROLES:
                raise ValueError(f"--role: received {role!r}, expected {', '.join(ROLES)}")
        key, entry = new_key(
            name, cast(list[Role], roles), rate_per_s=rate, max_concurrent=concurrent
        )
        with changed_keys(file) as entries:
            if any(entry.name == other.name for other in entries):
                raise ValueError(f"{file}: there is a key {name} already; revoke it first")
            entries.append(entry)
    except (ValueError, OSError) as error:
        _fail("add", error)
    typer.echo(f"added {name} to {file}. Keep its key, which is not shown again:\n{key}")


@app.command("list")
def list_keys(file: FileOption) -> None:
    """List the keys: names, roles and limits."""
    try:
        entries = read_keys(file)
    except KeysFileError as error:
        _fail("list", error)
    table = Table("name", "roles", "per second", "at once", "created", box=None)
    for entry in entries:
        table.add_row(*_row(entry))
    Console().print(table)


@app.command("revoke")
def revoke(name: NameArgument, file: FileOption) -> None:
    """Remove a key. Running servers refuse it within a second.

    Requests that are being answered end as usual.
    """
    try:
        if not file.exists():
            raise ValueError(f"{file}: there is no such file")
        with changed_keys(file) as entries:
            left = [entry for entry in entries if entry.name != name]
            if len(left) == len(entries):
                names = ", ".join(entry.name for entry in entries) or "none"
                raise ValueError(f"{file}: there is no key {name}; there is {names}")
            entries[:] = left
    except (ValueError, OSError) as error:
        _fail("revoke", error)
    typer.echo(f"revoked {name}")


def _row(entry: KeyEntry) -> tuple[str, ...]:
    rate = "-" if entry.rate_per_s is None else f"{entry.rate_per_s:g}"
    concurrent = "-" if entry.max_concurrent is None else str(entry.max_concurrent)
    return entry.name, ", ".join(entry.roles), rate, concurrent, entry.created


def _fail(command: str, error: Exception) -> NoReturn:
    typer.echo(f"lewm keys {command}: {describe_error(error)}", err=True)
    raise typer.Exit(1) from None
