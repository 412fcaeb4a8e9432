"""Compile the native code into a library.

    python -m lewm_serve.backends.native.build [--flags]

The command compiles the library beside the sources, unless it is there already; ``--flags`` prints
the flags of the compiler. The build hook of the wheel (`hatch_build.py`) and the tests call
`build_library`, which does the same. The hook runs in an environment of its own, so this file
imports the standard library only.

There is one library for all processors that have `REQUIRED_CPU_FLAGS`. Its functions that use AMX
tiles are called only where the processor has tiles.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = tuple(
    FOLDER / name for name in ("vectors.h", "product.h", "layers.h", "distance.h", "predictor.cpp")
)

PLATFORM = "linux-x86_64"
COMPILERS = ("c++", "g++", "clang++")
COMPILER_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=x86-64-v4",
    "-mavx512bf16",
    "-mamx-tile",
    "-mamx-bf16",
    "-fno-math-errno",
)
"""Not -march=cooperlake or native: the library must run on AMD's processors as well. It is as fast,
see docs/performance.md."""

LIBRARY_FLAGS = (
    "-w",  # no warnings here: `make check` compiles the code with all warnings
    "-shared",
    "-fPIC",
)
REQUIRED_CPU_FLAGS = (
    "avx512_bf16",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "avx2",
    "fma",
    "f16c",
    "bmi1",
    "bmi2",
    "abm",
    "movbe",
)
"""Linux's names of the instructions that `COMPILER_FLAGS` allow everywhere in the code. Older ones,
which every processor with these has, are left out. Tiles are not among them: no compiler uses them
by itself, and product.h asks the processor before it does."""

BUILD_TIMEOUT_S = 300.0
"""The code is compiled in a few seconds, and in a minute or so on an emulated processor."""


class NativeUnavailable(RuntimeError):
    """The native code cannot be compiled, or cannot run a model here; the message says why."""


def build_library() -> Path:
    """The library's file beside the sources; compiled unless it exists.

    Libraries of other sources are removed.

    Raises:
        NativeUnavailable: the code is not for this platform, or it cannot be compiled or written.
    """
    if sysconfig.get_platform() != PLATFORM:
        raise NativeUnavailable(
            f"the native code is for {PLATFORM}, this is {sysconfig.get_platform()}"
        )
    path = library_path(FOLDER)
    try:
        for file in libraries(FOLDER):
            if file != path:
                digest_path(file).unlink(missing_ok=True)
                file.unlink(missing_ok=True)
        if not is_complete(path):
            compile_library(path, find_compiler(), timeout_s=BUILD_TIMEOUT_S)
    except OSError as error:
        raise NativeUnavailable(str(error)) from error
    return path


def library_path(folder: Path) -> Path:
    """The library's file in a folder. Its name says what it is compiled from."""
    parts = ("\n".join(COMPILER_FLAGS).encode(), *(source.read_bytes() for source in SOURCES))
    fingerprint = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return folder / f"predictor-{fingerprint}.so"


def libraries(folder: Path) -> list[Path]:
    """The libraries in a folder, of whatever sources."""
    return sorted(folder.glob("predictor-*.so"))


def digest_path(path: Path) -> Path:
    """The file that holds the checksum of a library."""
    return path.with_suffix(".sha256")


def is_complete(path: Path) -> bool:
    """Whether a library's file exists and has the checksum that was written with it.

    Loading a file that was cut short, by a full disk or a power failure, would end the process.
    """
    if not (path.is_file() and digest_path(path).is_file()):
        return False
    return digest_path(path).read_bytes() == _digest(path).encode()


def find_compiler() -> list[str]:
    """The compiler's command, without arguments of ours.

    Raises:
        NativeUnavailable: there is no compiler, or CXX cannot be read.
    """
    given = os.environ.get("CXX", "").strip()
    compiler = given or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise NativeUnavailable(f"no C++ compiler: none of {', '.join(COMPILERS)} is installed")
    try:
        return shlex.split(compiler)
    except ValueError as error:
        raise NativeUnavailable(f"CXX is {compiler!a}: {error}") from error


def compile_library(path: Path, compiler: list[str], *, timeout_s: float) -> None:
    """Compile the library's file.

    Another process may do the same at the same time. Both write equal files, and the later file
    replaces the earlier one.

    Raises:
        NativeUnavailable: the compiler cannot be started, hangs or fails.
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="predictor-", dir=path.parent) as scratch:
        new_path = Path(scratch) / path.name
        arguments = [*COMPILER_FLAGS, *LIBRARY_FLAGS, str(SOURCES[-1]), "-o", str(new_path)]
        _run([*compiler, *arguments], Path(scratch), timeout_s)
        digest_path(new_path).write_text(_digest(new_path))
        for file in (new_path, digest_path(new_path)):
            file.chmod(0o644)  # whatever the umask is
        new_path.replace(path)
        digest_path(new_path).replace(digest_path(path))


def _run(command: list[str], scratch: Path, timeout_s: float) -> None:
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
        status = process.wait(timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise NativeUnavailable(
            f"the compiler {command[0]!a} has not ended within {timeout_s:g} s"
        ) from None
    if status != 0:
        text = messages.read_bytes().decode(errors="replace").strip()
        raise NativeUnavailable(f"the compiler {command[0]!a} fails: {text[:500]}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Compile the native code beside its sources.")
    parser.add_argument("--flags", action="store_true", help="print the compiler's flags instead")
    if parser.parse_args().flags:
        print(*COMPILER_FLAGS)
        return
    try:
        build_library()
    except NativeUnavailable as error:
        print(f"the native code is not compiled: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
