"""The native code as a library: found or compiled, checked and loaded.

A wheel holds the library, and `make setup` compiles it beside the sources. See `build`.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from lewm_serve.backends.native import build
from lewm_serve.backends.native.build import NativeUnavailable

CPU_INFO = Path("/proc/cpuinfo")

COMPILE_TIMEOUT_S = 60.0
"""The code is compiled in a few seconds, on a busy machine in ten or twenty. A compiler that hangs
delays the start by this."""

ROOT_USER = 0

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`."""

WORK_KINDS = ("matrix products", "layer norms", "attention")
"""`WorkKind` in layers.h. The time of a product includes what is done with its results."""


def load_library(*, compile_missing: bool = False) -> ctypes.CDLL:
    """The native code. ``compile_missing``: compile it if there is no library of these sources.

    Raises:
        NativeUnavailable: there is no library, or it would not run.
    """
    loaded = _load_or_reason(compile_missing)
    if isinstance(loaded, str):
        raise NativeUnavailable(loaded)
    return loaded


@cache
def _load_or_reason(compile_missing: bool) -> ctypes.CDLL | str:
    """The native code, or why there is none. Cached, so that a failing compiler runs only once.

    The reason is a text: an error that is raised again holds the frames of all its callers.
    """
    missing = [flag for flag in build.REQUIRED_CPU_FLAGS if flag not in cpu_flags()]
    if missing:
        return f"the processor has no {', '.join(missing)}"
    try:
        return _load(find_library(build.FOLDER))
    except (NativeUnavailable, OSError) as error:
        if not compile_missing:
            return str(error)
    try:
        return _load_compiled(cache_folder())
    except (NativeUnavailable, OSError) as error:
        return str(error)


def find_library(folder: Path) -> Path:
    """The library of these sources in a folder of the package.

    Who can write there can change the Python code too, so its owner is not checked.

    Raises:
        NativeUnavailable: there is none, or it is damaged.
    """
    path = build.library_path(folder)
    if build.is_complete(path):
        return path
    if path.exists():
        problem = f"{path} is damaged"
    elif build.libraries(folder):
        problem = f"the library in {folder} was compiled from other sources"
    else:
        problem = f"there is no compiled library in {folder}"
    raise NativeUnavailable(
        f"{problem}: run `make native` in a checkout, install a wheel for {build.PLATFORM}, or set "
        "LEWM_NATIVE_COMPILE=1 to compile it at the start"
    )


def _load(path: Path) -> ctypes.CDLL:
    """Load the library's file.

    Raises:
        NativeUnavailable: it is no library, another one, or for another system.
    """
    try:
        code = ctypes.CDLL(str(path))
        check_structs(code)
        _declare_functions(code)
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(str(error)) from error
    return code


def _load_compiled(folder: Path) -> ctypes.CDLL:
    """Load the library from the user's folder, compiled if necessary.

    Raises:
        NativeUnavailable: it cannot be compiled or loaded. A file that cannot be loaded is removed,
            so that the next start compiles it again.
    """
    path = compile_library(folder)
    try:
        return _load(path)
    except NativeUnavailable:
        with suppress(OSError):
            path.unlink()
        raise


def cpu_flags() -> set[str]:
    """The features of the processor, as Linux names them; empty on other systems."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    parts = (line.partition(":") for line in lines)
    values = (value for name, _, value in parts if name.strip() in ("flags", "Features"))
    return {flag for value in values for flag in value.split()}


def cache_folder() -> Path:
    """The user's folder for compiled code.

    Raises:
        NativeUnavailable: the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lewm"
    except RuntimeError as error:
        raise NativeUnavailable(
            f"no folder for compiled code: {error}, set XDG_CACHE_HOME"
        ) from error


def compile_library(folder: Path) -> Path:
    """The library's file in a folder of the user; compiled unless it exists for these sources.

    Raises:
        NativeUnavailable: other users could change the library, there is no compiler, or it fails.
        OSError: the folder cannot be read or written.
    """
    path = build.library_path(folder)
    if folder.exists():
        _check_trusted(folder)
        if build.is_complete(path) and _is_trusted(path):
            return path
    compiler = build.find_compiler()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_trusted(folder)
    build.compile_library(path, compiler, timeout_s=COMPILE_TIMEOUT_S)
    return path


def _check_trusted(folder: Path) -> None:
    """Refuse a folder in which others could put code that this process would run.

    Raises:
        NativeUnavailable: others than this user and root can write to it.
    """
    if not _is_trusted(folder):
        raise NativeUnavailable(
            f"other users can write to {folder}: compiled code is not loaded from it"
        )


def _is_trusted(path: Path) -> bool:
    """Whether only this user and root can write to a file or folder."""
    status = path.stat()
    return status.st_uid in (os.geteuid(), ROOT_USER) and not status.st_mode & 0o022


def keep_freed_memory() -> None:
    """Make the allocator keep up to 128 MiB of freed memory for later allocations.

    Without that, each roll-out returns megabytes to the system and takes them again page by page,
    which is an eighth of its time. Settings of the allocator in the environment take precedence.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        allocator.mallopt(M_TRIM_THRESHOLD, 1 << 27)
        allocator.mallopt(M_MMAP_THRESHOLD, 1 << 25)


def read_ticks(code: ctypes.CDLL) -> tuple[int, dict[str, int]]:
    """The processor's clock, and the ticks that each kind of work has taken, over all threads."""
    ticks = (ctypes.c_int64 * len(WORK_KINDS))()
    now = code.read_ticks(ticks)
    return now, dict(zip(WORK_KINDS, ticks, strict=True))


# The structs that are passed to the code have the same names and fields in product.h (`LinearMap`),
# layers.h (`FloatMap`), distance.h (`DistanceNetwork`) and predictor.cpp.


class LinearMap(ctypes.Structure):
    """A linear map in bfloat16, padded to whole blocks of `MATRIX_BLOCK`."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class FloatMap(ctypes.Structure):
    """A linear map in float32; without weights if there is no such map."""

    _fields_ = LinearMap._fields_


class LayerMaps(ctypes.Structure):
    """The maps of one predictor layer."""

    _fields_ = (
        ("key_value", LinearMap),
        ("query", LinearMap),
        ("out", LinearMap),
        ("mlp_first", LinearMap),
        ("mlp_second", LinearMap),
        ("epsilons", ctypes.c_float * 4),
    )


class PredictorModel(ctypes.Structure):
    """All maps and widths of a predictor."""

    _fields_ = (
        ("layer_maps", ctypes.POINTER(LayerMaps)),
        ("modulations", ctypes.POINTER(LinearMap)),
        ("positions", ctypes.c_void_p),
        ("layers", ctypes.c_int64),
        ("history", ctypes.c_int64),
        ("latent", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_width", ctypes.c_int64),
        ("action_first", FloatMap),
        ("input_projection", FloatMap),
        ("action_second", LinearMap),
        ("head_first", LinearMap),
        ("head_second", LinearMap),
        ("head_norm", ctypes.c_void_p),
        ("head_hidden", ctypes.c_int64),
        ("head_norm_epsilon", ctypes.c_float),
        ("head_activation", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("use_tiles", ctypes.c_int32),
    )


class KnownToken(ctypes.Structure):
    """A token of a window, whose keys and values are known."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("layer_stride", ctypes.c_int64),
    )


class DistanceNetwork(ctypes.Structure):
    """A learned distance from a goal."""

    _fields_ = (
        ("mean", ctypes.c_void_p),
        ("inverse_std", ctypes.c_void_p),
        ("latent_dim", ctypes.c_int64),
        ("goal", FloatMap),
        ("latent", LinearMap),
        ("hidden", LinearMap),
        ("output", ctypes.c_void_p),
        ("output_bias", ctypes.c_float),
        ("use_tiles", ctypes.c_int32),
    )


SHARED_STRUCTS = (LinearMap, FloatMap, LayerMaps, PredictorModel, KnownToken, DistanceNetwork)


def check_structs(code: ctypes.CDLL) -> None:
    """Compare the size of each struct here with its size in the compiled code.

    Raises:
        NativeUnavailable: one of them differs, or is unknown to the code.
    """
    code.struct_size.argtypes = (ctypes.c_char_p,)
    code.struct_size.restype = ctypes.c_int64
    for struct in SHARED_STRUCTS:
        here, there = ctypes.sizeof(struct), code.struct_size(struct.__name__.encode())
        if here != there:
            raise NativeUnavailable(
                f"{struct.__name__} has {here} bytes in Python and {there} in the compiled code"
            )


def _declare_functions(code: ctypes.CDLL) -> None:
    """Declare the functions' parameters. The interpreter's lock is released while they run."""
    pointer, size, model = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(PredictorModel)
    code.tiles_available.restype = ctypes.c_int32
    code.read_ticks.argtypes = (ctypes.POINTER(size),)
    code.read_ticks.restype = size
    code.begin_window.argtypes = (
        model,
        pointer,  # latents
        pointer,  # actions
        size,  # count
        size,  # rows
        pointer,  # keys_values
        pointer,  # predicted
    )
    code.begin_window.restype = None
    code.roll_out.argtypes = (
        model,
        ctypes.POINTER(KnownToken),  # shared
        size,  # context
        pointer,  # latest
        pointer,  # actions
        size,  # steps
        size,  # rows
        size,  # step_stride
        size,  # row_stride
        pointer,  # predicted
    )
    code.roll_out.restype = None
    code.goal_distances.argtypes = (
        ctypes.POINTER(DistanceNetwork),
        pointer,  # latents
        size,  # rows
        pointer,  # goal
        pointer,  # out
    )
    code.goal_distances.restype = None
