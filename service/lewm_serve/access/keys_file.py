"""The keys file: one JSON object a line, each with a key's name, roles, limits and hash.

A key is ``lewm_ID_SECRET``. The id finds the line without a search through all hashes. The secret
has 256 random bits, so nobody can guess it, whatever the hash costs. Argon2id therefore runs with
small parameters: a server verifies a key in milliseconds. The file never holds a key.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lewm_serve.errors import shorten

Role = Literal["infer", "read", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

HASHER = PasswordHasher(time_cost=2, memory_cost=1024, parallelism=1, type=Type.ID)
"""1 MiB and two passes. Slow hashes protect passwords that people choose, not random keys."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ID_BYTES, SECRET_BYTES = 8, 32
KEY = re.compile(r"lewm_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")

NEW_FILE_MODE = 0o600
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class KeysFileError(ValueError):
    """The keys file cannot be used. The message names the file and the line."""


class KeyEntry(BaseModel):
    """One line of the file.

    Attributes:
        name: what logs call the key.
        id: the part of the key that finds this entry.
        roles: what the key may do.
        hash: the Argon2 hash of the whole key.
        rate_per_s: the most requests per second. None: no limit.
        max_concurrent: the most requests in progress at once. None: no limit.
        created: when the key was made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=NAME)]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    roles: Annotated[list[Role], Field(min_length=1)]
    hash: str
    rate_per_s: Annotated[float | None, Field(gt=0)] = None
    max_concurrent: Annotated[int | None, Field(ge=1)] = None
    created: str = ""

    @field_validator("hash")
    @classmethod
    def _is_argon2(cls, text: str) -> str:
        try:
            extract_parameters(text)
        except InvalidHashError:
            raise ValueError("expected an Argon2 hash") from None
        return text


def key_id(key: str) -> str | None:
    """The id in a key, or None if the text cannot be a key."""
    match = KEY.fullmatch(key)
    return None if match is None else match[1]


def new_key(
    name: str,
    roles: Sequence[Role],
    *,
    rate_per_s: float | None = None,
    max_concurrent: int | None = None,
) -> tuple[str, KeyEntry]:
    """A new key and its entry.

    Raises:
        ValueError: the name, a role or a limit is not possible.
    """
    identity = secrets.token_hex(ID_BYTES)
    key = f"lewm_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
    try:
        entry = KeyEntry(
            name=name,
            id=identity,
            roles=list(dict.fromkeys(roles)),
            hash=HASHER.hash(key),
            rate_per_s=rate_per_s,
            max_concurrent=max_concurrent,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    except ValidationError as error:
        raise ValueError(_describe(error)) from None
    return key, entry


def read_keys(path: Path) -> list[KeyEntry]:
    """The entries of a file. Empty lines and lines that begin with ``#`` are skipped.

    Raises:
        KeysFileError: there is no such file, other users may write to it, or a line is wrong.
    """
    try:
        if path.stat().st_mode & OTHERS_MAY_WRITE:
            raise KeysFileError(f"{path}: others may write to it; expected mode 600, 640 or 644")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KeysFileError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise KeysFileError(f"{path}, line {number}: expected UTF-8") from None
    entries: list[KeyEntry] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            entry = KeyEntry.model_validate_json(line)
        except ValidationError as error:
            raise KeysFileError(f"{path}, line {number}: {_describe(error)}") from None
        for other in entries:
            if entry.name == other.name or entry.id == other.id:
                raise KeysFileError(f"{path}, line {number}: the key {entry.name} is there twice")
        entries.append(entry)
    return entries


@contextmanager
def changed_keys(path: Path) -> Iterator[list[KeyEntry]]:
    """The entries of a file, which the block may change; then they replace those in the file.

    A file that does not exist counts as empty. Readers see the old file or the new one, and two
    programs that change it wait for each other. Mode, owner and group stay, comments do not.

    Raises:
        KeysFileError: see `read_keys`. Or this user may not keep the file's owner and group.
        OSError: the folder cannot be written.
    """
    folder = path.absolute().parent
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        entries, before = [], None
        if path.exists():
            entries, before = read_keys(path), path.stat()
        yield entries
        _replace(path, [entry.model_dump_json(exclude_defaults=True) for entry in entries], before)
    finally:
        os.close(descriptor)


def _replace(path: Path, lines: list[str], before: os.stat_result | None) -> None:
    """Write a file anew, so that readers see the old file or the new one.

    A server that may read the old file may read the new one too. Otherwise it would go on with the
    old keys, also with a revoked one.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            if before is not None:
                try:
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                except PermissionError:
                    raise KeysFileError(
                        f"{path}: this user cannot keep its owner and group; expected root"
                    ) from None
            os.fchmod(descriptor, NEW_FILE_MODE if before is None else stat.S_IMODE(before.st_mode))
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _describe(error: ValidationError) -> str:
    """The first problem, without what may be a key."""
    problem = error.errors()[0]
    field = ".".join(map(str, problem["loc"])) or "the line"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["loc"] and problem["loc"][0] in ("name", "roles", "rate_per_s", "max_concurrent"):
        return f"{field} is {shorten(problem['input'])}: {message}"
    return f"{field}: {message}"
