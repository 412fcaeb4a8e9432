"""Keys for the tests' servers."""

from collections.abc import Sequence
from pathlib import Path

from lewm_serve.access.keys_file import Role, changed_keys, new_key


def add_key(
    file: Path,
    name: str,
    *roles: Role,
    rate_per_s: float | None = None,
    max_concurrent: int | None = None,
) -> str:
    """A new key, whose hash is now in the file."""
    limits = {"rate_per_s": rate_per_s, "max_concurrent": max_concurrent}
    key, entry = new_key(name, roles, **limits)  # type: ignore[arg-type]
    with changed_keys(file) as entries:
        entries.append(entry)
    return key


def bearer(key: str) -> dict[str, str]:
    """The header of a key."""
    return {"authorization": f"Bearer {key}"}


def metadata(key: str) -> Sequence[tuple[str, str]]:
    """The metadata of a key."""
    return (("authorization", f"Bearer {key}"),)
