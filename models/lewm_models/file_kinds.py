"""What a file is that cannot be read as what it should be, by its first bytes.

People store the wrong file under the right name: a pointer of Git LFS, a saved web page, half of a
download. The readers' own errors do not say so.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

GIT_LFS = "a Git LFS pointer and not the file itself; `git lfs pull` fetches the file"
WEB_PAGE = "a web page and not the file itself; download the file again"

NUMPY_ARRAY = "a NumPy array file"
SAFETENSORS = "a safetensors file"
ZIP_ARCHIVE = "a zip archive"
JSON_DOCUMENT = "a JSON document"

KINDS_BY_START: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", GIT_LFS),
    (b"/annex/objects/", "a pointer of git-annex and not the file itself"),
    (b"<!doctype html", WEB_PAGE),
    (b"<html", WEB_PAGE),
    (b"<?xml", "an XML document"),
    (b"{", JSON_DOCUMENT),
    (b"entry not found", "an error message of a download; download the file again"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"\x89hdf\r\n", "an HDF5 file"),
    (b"\x93numpy", NUMPY_ARRAY),
    (b"pk\x03\x04", ZIP_ARCHIVE),
)
"""Kinds by how a file starts, in lower case. White space before text is skipped."""

MAX_START_BYTES = 512


def kind_of_file(path: Path) -> str | None:
    """What a file is, completing the phrase "is …"; None if its first bytes do not show it."""
    if path.is_dir():
        return "a folder"
    with path.open("rb") as file:
        start = file.read(MAX_START_BYTES)
    if not start:
        return "empty"
    if _is_safetensors(start):
        return SAFETENSORS
    if start.startswith(b"PK\x03\x04") and not _has_end_of_zip(path):
        return "cut off: the end of its zip archive is missing"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((kind for prefix, kind in KINDS_BY_START if text.startswith(prefix)), None)


def _has_end_of_zip(path: Path) -> bool:
    """Whether a zip archive has its end, even if that is damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _is_safetensors(start: bytes) -> bool:
    """Whether a file starts like a safetensors file: the length of a header in JSON, the header."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27


def safetensors_problem(path: Path, error: Exception) -> str:
    """Why a file cannot be read as safetensors: what it is instead, or where it is cut off."""
    kind = kind_of_file(path)
    if kind is not None and kind != SAFETENSORS:
        return f"is {kind}; expected {SAFETENSORS}"
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if kind is not None and size < 8 + header_bytes:
        return f"is cut off: it has {size} bytes, which is less than its header needs"
    if "incomplete" in str(error):
        return f"is cut off or damaged: its {size} bytes are not what its header announces"
    return f"is not a safetensors file, or is damaged ({error})"


def read_numpy_array(
    path: Path, *, memory_mapped: bool = False, writable: bool = False
) -> np.ndarray[Any, Any]:
    """The array in an `.npy` file. What is written into a mapped array goes into the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file holds something else, or is damaged.
    """
    kind = kind_of_file(path)
    if kind != NUMPY_ARRAY:
        found = "of an unknown format" if kind is None else kind
        raise ValueError(f"{path}: is {found}; expected {NUMPY_ARRAY}")
    mode: Literal["r", "r+"] | None = ("r+" if writable else "r") if memory_mapped else None
    try:
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode=mode)
    except (EOFError, ValueError) as error:
        # NumPy's message advises to run the code in a pickle.
        reason = (
            "holds Python objects, expected numbers"
            if "pickle" in str(error)
            else (f"is cut off or damaged ({error})")
        )
        raise ValueError(f"{path}: {reason}") from error
    return array
