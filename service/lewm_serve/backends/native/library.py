"""The native code as a library: compiled once by the machine's C++ compiler, kept, and loaded.

A kept library is used without a compiler, so an image for containers can bring it along. It is one
of these sources, flags and this kind of processor. It does not depend on the compiler, because a
machine without one could not tell.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("vectors.h", "product.h", "layers.h", "predictor.cpp")
)
COMPILERS = ("c++", "g++", "clang++")
COMPILER_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-w",  # no warnings here: `make check` compiles the code with all warnings
    "-shared",
    "-fPIC",
)
COMPILE_TIMEOUT_S = 10.0
"""The code is compiled in a second or two. A compiler that hangs delays the start by this."""

CPU_IDENTITY = ("vendor_id", "cpu family", "model")
"""The entries of `CPU_INFO` that name the processor, for `-march=native`."""

INSTRUCTION_SETS = (
    "sse",
    "ssse",
    "avx",
    "amx",
    "fma",
    "f16c",
    "bmi",
    "abm",
    "popcnt",
    "movbe",
    "adx",
    "gfni",
    "vaes",
)
"""The features of a processor that compiled code may use begin with these names. Others, such as
those of the kernel's security, differ between machines that can run the same code."""

ROOT_USER = 0

REQUIRED_CPU_FLAG = "avx512_bf16"
"""Linux's name of the instructions without which the code does not run."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`."""

WORK_KINDS = ("matrix products", "layer norms", "attention")
"""`WorkKind` in layers.h. The time of a product includes what is done with its results."""


class NativeUnavailable(RuntimeError):
    """The native code cannot run a model here; the message says why."""


def load_library() -> ctypes.CDLL:
    """The native code, compiled if necessary.

    Raises:
        NativeUnavailable: it cannot be compiled, or would not run.
    """
    loaded = _load_or_reason()
    if isinstance(loaded, NativeUnavailable):
        raise loaded
    return loaded


@cache
def _load_or_reason() -> ctypes.CDLL | NativeUnavailable:
    """The native code, or why there is none. Cached, so that a failing compiler runs only once."""
    if REQUIRED_CPU_FLAG not in cpu_flags():
        return NativeUnavailable(f"the processor has no {REQUIRED_CPU_FLAG}")
    try:
        path = compile_library(cache_folder())
        code = _load(path)
    except NativeUnavailable as error:
        return error
    except OSError as error:
        return NativeUnavailable(str(error))
    return code


def _load(path: Path) -> ctypes.CDLL:
    """Load the library's file.

    Raises:
        NativeUnavailable: it is no library, or another one. The file is removed, so that the next
            start compiles it again.
    """
    try:
        code = ctypes.CDLL(str(path))
        check_structs(code)
        _declare_functions(code)
    except (OSError, AttributeError, NativeUnavailable) as error:
        with suppress(OSError):
            path.unlink()
        raise NativeUnavailable(str(error)) from error
    return code


def cpu_flags() -> set[str]:
    """The features of the processor, as Linux names them; empty on other systems."""
    values = (value for name, value in _cpu_entries() if name in ("flags", "Features"))
    return {flag for value in values for flag in value.split()}


def _cpu_entries() -> list[tuple[str, str]]:
    """The entries of `CPU_INFO`, by name and value; none on other systems."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return []
    parts = (line.partition(":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in parts]


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
    """The library's file in a folder; compiled unless it exists for these sources and processor.

    Raises:
        NativeUnavailable: other users could change the library, there is no compiler, or it fails.
        OSError: the folder cannot be read or written.
    """
    path = folder / f"predictor-{_fingerprint()}.so"
    if folder.exists():
        _check_trusted(folder)
        if _is_valid(path):
            return path
    compiler = _find_compiler()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_trusted(folder)
    _compile_into(path, compiler)
    return path


def _find_compiler() -> list[str]:
    """The compiler's command, without arguments of ours."""
    given = os.environ.get("CXX", "").strip()
    compiler = given or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise NativeUnavailable(f"no C++ compiler: none of {', '.join(COMPILERS)} is installed")
    try:
        return shlex.split(compiler)
    except ValueError as error:
        raise NativeUnavailable(f"CXX is {compiler!a}: {error}") from error


def _check_trusted(path: Path) -> None:
    """Refuse a folder in which others could put code that this process would run.

    Raises:
        NativeUnavailable: others than this user and root can write to it.
    """
    if not _is_trusted(path):
        raise NativeUnavailable(
            f"other users can write to {path}: compiled code is not loaded from it"
        )


def _is_trusted(path: Path) -> bool:
    """Whether only this user and root can write to a file or folder."""
    status = path.stat()
    return status.st_uid in (os.geteuid(), ROOT_USER) and not status.st_mode & 0o022


def _is_valid(path: Path) -> bool:
    """Whether a library's file exists, is complete, and is not another user's.

    Loading a file that was cut short, by a full disk or a power failure, would end the process.
    """
    digest_path = _digest_path(path)
    if not (path.is_file() and digest_path.is_file() and _is_trusted(path)):
        return False
    return digest_path.read_bytes() == _digest(path).encode()


def _compile_into(path: Path, compiler: list[str]) -> None:
    """Compile the library's file.

    Another process may do the same at the same time. Both write equal files, and the later file
    replaces the earlier one.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        new_path = Path(scratch) / path.name
        _run([*compiler, *COMPILER_FLAGS, str(SOURCES[-1]), "-o", str(new_path)], Path(scratch))
        _digest_path(new_path).write_text(_digest(new_path))
        for file in (new_path, _digest_path(new_path)):
            file.chmod(0o644)  # whatever the umask is
        new_path.replace(path)
        _digest_path(new_path).replace(_digest_path(path))


def _run(command: list[str], scratch: Path) -> None:
    """Run the compiler. Its own processes end with it, also if it hangs.

    Raises:
        NativeUnavailable: it cannot be started, hangs or fails.
    """
    # Messages go to a file: a pipe would stay open as long as any process of the compiler lives.
    messages = scratch / "messages"
    try:
        with messages.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                process_group=0,
            )
    except OSError as error:
        raise NativeUnavailable(f"the compiler does not run: {error}") from error
    try:
        status = process.wait(COMPILE_TIMEOUT_S)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise NativeUnavailable(
            f"the compiler {command[0]!a} has not ended within {COMPILE_TIMEOUT_S:g} s"
        ) from None
    if status != 0:
        text = messages.read_bytes().decode(errors="replace").strip()
        raise NativeUnavailable(f"the compiler {command[0]!a} fails: {text[:500]}")


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fingerprint() -> str:
    """What the compiled code depends on: sources, flags, and the kind of processor."""
    entries = _cpu_entries()
    identity = {f"{name}: {value}" for name, value in entries if name in CPU_IDENTITY}
    instructions = {flag for flag in cpu_flags() if flag.startswith(INSTRUCTION_SETS)}
    text = "\n".join([*COMPILER_FLAGS, *sorted(identity), *sorted(instructions)])
    parts = (text.encode(), *(source.read_bytes() for source in SOURCES))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def keep_freed_memory() -> None:
    """Make the allocator keep up to 128 MiB of freed memory for later allocations.

    Without that, each roll-out returns megabytes to the system and takes them again page by page,
    which is an eighth of its time. Settings of the allocator in the environment take precedence.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        allocator.mallopt(M_TRIM_THRESHOLD, 1 << 27)
        allocator.mallopt(M_MMAP_THRESHOLD, 1 << 25)


def read_ticks() -> tuple[int, dict[str, int]]:
    """The processor's clock, and the ticks that each kind of work has taken, over all threads."""
    ticks = (ctypes.c_int64 * len(WORK_KINDS))()
    now = load_library().read_ticks(ticks)
    return now, dict(zip(WORK_KINDS, ticks, strict=True))


# The structs that are passed to the code have the same names and fields in product.h (`LinearMap`)
# and predictor.cpp.


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


SHARED_STRUCTS = (LinearMap, FloatMap, LayerMaps, PredictorModel, KnownToken)


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
