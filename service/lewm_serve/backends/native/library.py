"""The compiled code: made by the machine's C++ compiler for its own processor, once, and kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from lewm_serve.backends.processor import cpu_flags

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("vectors.h", "product.h", "layers.h", "predictor.cpp")
)
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-w", "-shared", "-fPIC")
COMPILE_S = 30.0

NEEDS = "avx512_bf16"
"""What Linux calls the instructions without which the code does not run."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""`mallopt`'s parameters."""


class NoLibrary(RuntimeError):
    """There is no compiled code here; the message says why."""


def library() -> ctypes.CDLL:
    """The code, compiled if it has not been.

    Raises:
        NoLibrary: it cannot be had, or would not run.
    """
    found = _found()
    if isinstance(found, NoLibrary):
        raise found
    return found


@cache
def _found() -> ctypes.CDLL | NoLibrary:
    """The code, or why there is none: a compiler that failed is not asked again."""
    if NEEDS not in cpu_flags():
        return NoLibrary(f"the processor has no {NEEDS}")
    try:
        code = ctypes.CDLL(str(compiled(cache_folder())))
    except NoLibrary as reason:
        return reason
    except OSError as error:
        return NoLibrary(str(error))
    _declare(code)
    return code


KINDS = ("matrix products", "layer norms", "attention")
"""What `read_ticks` tells apart; a product includes what is done with its sums."""


def read_ticks() -> tuple[int, dict[str, int]]:
    """The processor's clock, and what each kind of work has taken of it, over all threads."""
    spent = (ctypes.c_int64 * len(KINDS))()
    now = library().read_ticks(spent)
    return now, dict(zip(KINDS, spent, strict=True))


def cache_folder() -> Path:
    """Where compiled code is kept: the user's own folder.

    Raises:
        NoLibrary: nobody knows where that is.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lewm"
    except RuntimeError as error:
        raise NoLibrary(f"no folder for compiled code: {error}, set XDG_CACHE_HOME") from error


def compiled(folder: Path) -> Path:
    """The library's file in a folder, made unless it is there for these sources and processor.

    Raises:
        NoLibrary: there is no compiler, or it fails.
        OSError: the folder cannot be written.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise NoLibrary(f"no C++ compiler: none of {', '.join(COMPILERS)} is installed")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)
    path = folder / f"predictor-{_fingerprint(compiler)}.so"
    # A file that was cut short, by a full disk or a loss of power, would end the process.
    whole = path.with_suffix(".sha256")
    if path.exists() and whole.exists() and whole.read_text() == _digest(path):
        return path
    # Another process may do the same: whoever is last replaces files like its own.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made, made_whole = Path(scratch) / path.name, Path(scratch) / whole.name
        command = [*shlex.split(compiler), *FLAGS, str(SOURCES[-1]), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoLibrary(f"the compiler does not run: {error}") from error
        if done.returncode != 0:
            raise NoLibrary(f"{compiler} fails: {done.stderr.strip()[:500]}")
        made_whole.write_text(_digest(made))
        made.replace(path)
        made_whole.replace(whole)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_private(folder: Path) -> None:
    """Refuse a folder in which somebody else could put code for us to run."""
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise NoLibrary(f"{folder} can be written by others, compiled code is not taken from it")


def _fingerprint(compiler: str) -> str:
    """What the code depends on: sources, flags, compiler and the features of the processor."""
    text = "\n".join([compiler, *FLAGS, *sorted(cpu_flags())])
    parts = (text.encode(), *(source.read_bytes() for source in SOURCES))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def keep_memory() -> None:
    """Have the allocator keep what it took, unless the environment says how it is to do.

    To give megabytes back after each roll-out, and take them anew page by page in the next one, is
    an eighth of its time.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        allocator.mallopt(TRIM_THRESHOLD, 1 << 27)
        allocator.mallopt(MMAP_THRESHOLD, 1 << 25)


class LinearMap(ctypes.Structure):
    """`Linear` in product.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class BlockMaps(ctypes.Structure):
    """`Block` in predictor.cpp."""

    _fields_ = (
        ("key_value", LinearMap),
        ("query", LinearMap),
        ("out", LinearMap),
        ("first", LinearMap),
        ("second", LinearMap),
        ("epsilons", ctypes.c_float * 4),
    )


class ExactMap(ctypes.Structure):
    """`Exact` in predictor.cpp."""

    _fields_ = LinearMap._fields_


class Model(ctypes.Structure):
    """`Model` in predictor.cpp."""

    _fields_ = (
        ("blocks", ctypes.POINTER(BlockMaps)),
        ("modulations", ctypes.POINTER(LinearMap)),
        ("positions", ctypes.c_void_p),
        ("layers", ctypes.c_int64),
        ("history", ctypes.c_int64),
        ("latent", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_width", ctypes.c_int64),
        ("smooth", ExactMap),
        ("input", ExactMap),
        ("condition", LinearMap),
        ("head_first", LinearMap),
        ("head_second", LinearMap),
        ("epsilon", ctypes.c_float),
        ("tiles", ctypes.c_int32),
    )


class Token(ctypes.Structure):
    """`Token` in predictor.cpp."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("layer_stride", ctypes.c_int64),
    )


def _declare(code: ctypes.CDLL) -> None:
    """Say what the functions take. While one runs, other threads do."""
    pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    model = ctypes.POINTER(Model)
    code.tiles_available.restype = flag
    code.read_ticks.argtypes = (ctypes.POINTER(size),)
    code.read_ticks.restype = size
    code.begin.argtypes = (model, pointer, pointer, size, size, pointer, pointer)
    code.begin.restype = None
    code.roll.argtypes = (
        *(model, ctypes.POINTER(Token), size),
        *(pointer, pointer, size, size),
        *(size, size, pointer),
    )
    code.roll.restype = None
