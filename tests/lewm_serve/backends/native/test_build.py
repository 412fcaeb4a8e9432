"""The native code is compiled for every processor with AVX-512 BF16, and failures are explained."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lewm_serve.backends.native import build
from lewm_serve.backends.native.build import (
    NativeUnavailable,
    build_library,
    compile_library,
    find_compiler,
    is_complete,
    libraries,
    library_path,
)
from tests.patience import PATIENCE_S, wait_until

LINUX_NAMES = {
    "bmi": "bmi1",
    "lzcnt": "abm",
    "sse3": "pni",
    "lahf_sahf": "lahf_lm",
    "avx512bf16": "avx512_bf16",
}
"""Linux's names of instruction sets that compilers call otherwise."""

TILES = {"amx_tile", "amx_bf16"}
OLD_INSTRUCTIONS = {
    *("pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm", "xsave", "avx"),
    "evex512",  # GCC 14: vectors of 512 bits, which AVX-512 has on every processor with these
    "crc32",  # part of SSE 4.2
}
"""Instructions of every processor with AVX2."""

SERVER_PROCESSORS = {
    "Cooper Lake": "avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx512_bf16 avx2 fma "
    "f16c bmi1 bmi2 abm movbe",
    "Zen 4": "avx512f avx512bw avx512cd avx512dq avx512vl avx512ifma avx512vbmi avx512_vbmi2 "
    "avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_bf16 avx2 fma f16c bmi1 bmi2 abm movbe",
}
"""Features that matter here, as Linux names them, of the oldest processors that have to run it."""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, in a folder that takes the place of the package's."""
    folder = tmp_path / "native"
    folder.mkdir()
    for source in build.SOURCES:
        shutil.copy(source, folder)
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.setattr(build, "SOURCES", tuple(folder / path.name for path in build.SOURCES))
    return folder


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    """A compiler that knows the flags, and has compiled the library of this checkout with them."""
    try:
        build_library()
        return find_compiler()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def quick_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of the compiler, which writes the number of its calls to its output."""
    script = f'echo >>{tmp_path}/calls; wc -l <{tmp_path}/calls >"$(eval echo \\${{$#}})"'
    monkeypatch.setenv("CXX", str(write_compiler(tmp_path, script)))


def write_compiler(folder: Path, script: str) -> Path:
    """A program that is run in place of a compiler."""
    program = folder / "compiler"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def instruction_sets(compiler: list[str], *flags: str) -> set[str]:
    """What a compiler may use with these flags, by Linux's names."""
    result = subprocess.run(
        [*compiler, *flags, "-dM", "-E", "-x", "c++", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    names = re.findall(r"^#define __([A-Z][A-Z0-9_]*)__ 1$", result.stdout, re.MULTILINE)
    return {LINUX_NAMES.get(name, name) for name in map(str.lower, names)}


def test_the_compiler_uses_no_instructions_that_are_not_required(compiler: list[str]) -> None:
    other_flags = [flag for flag in build.COMPILER_FLAGS if not flag.startswith("-m")]
    baseline = instruction_sets(compiler, *other_flags)
    added = instruction_sets(compiler, *build.COMPILER_FLAGS) - baseline
    required = set(build.REQUIRED_CPU_FLAGS)
    assert required | TILES <= added
    assert added - required - TILES <= OLD_INSTRUCTIONS


@pytest.mark.parametrize("name", SERVER_PROCESSORS)
def test_processors_of_both_makers_have_what_is_required(name: str) -> None:
    assert set(build.REQUIRED_CPU_FLAGS) <= set(SERVER_PROCESSORS[name].split())


@pytest.mark.usefixtures("quick_compiler")
def test_a_library_is_compiled_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    umask = os.umask(0)
    try:
        path = build_library()
    finally:
        os.umask(umask)
    assert path == library_path(sources)
    assert is_complete(path)
    files = (path, path.with_suffix(".sha256"))
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}
    monkeypatch.setenv("PATH", "/nowhere")
    for command in ("", "no-such-compiler", 'g++ "'):
        monkeypatch.setenv("CXX", command)
        assert build_library() == path
    assert path.read_text() == "1\n"


@pytest.mark.usefixtures("quick_compiler")
def test_other_sources_make_another_library_in_place_of_the_old_one(sources: Path) -> None:
    first = build_library()
    with build.SOURCES[0].open("a") as source:
        source.write("// changed\n")
    assert not is_complete(library_path(sources))
    second = build_library()
    assert second != first
    assert second.read_text() == "2\n"
    assert libraries(sources) == [second]
    assert not first.with_suffix(".sha256").exists()


@pytest.mark.usefixtures("quick_compiler")
def test_a_library_of_other_sources_is_removed_even_if_there_is_no_new_one(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_library()
    with build.SOURCES[0].open("a") as source:
        source.write("// changed\n")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NativeUnavailable, match="fails"):
        build_library()
    assert libraries(sources) == []


def test_other_flags_make_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library_path(tmp_path)
    monkeypatch.setattr(build, "COMPILER_FLAGS", (*build.COMPILER_FLAGS, "-DOTHER"))
    assert library_path(tmp_path) != path


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x80", b"", b"0" * 64, None], ids=["not text", "empty", "other", "none"]
)
@pytest.mark.usefixtures("quick_compiler")
def test_a_checksum_that_is_wrong_is_compiled_over(sources: Path, content: bytes | None) -> None:
    path = library_path(sources)
    path.write_bytes(b"half a library")
    if content is not None:
        path.with_suffix(".sha256").write_bytes(content)
    assert build_library() == path
    assert path.read_text() == "1\n"
    assert path.with_suffix(".sha256").read_text() == hashlib.sha256(b"1\n").hexdigest()


def test_the_same_sources_make_the_same_library(tmp_path: Path, compiler: list[str]) -> None:
    other = library_path(tmp_path)
    compile_library(other, compiler, timeout_s=PATIENCE_S)
    assert other.read_bytes() == build_library().read_bytes()


def test_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_platform", lambda: "linux-aarch64")
    with pytest.raises(
        NativeUnavailable, match="the native code is for linux-x86_64, this is linux-aarch64"
    ):
        build_library()


def test_a_folder_that_cannot_be_written(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FOLDER", sources / "none")
    with pytest.raises(NativeUnavailable, match=r"No such file or directory: .*/native/none"):
        build_library()


def test_the_command_says_what_it_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "lewm_serve" / "backends" / "native"
    shutil.copytree(build.FOLDER, folder, ignore=shutil.ignore_patterns("predictor-*"))
    for package in folder.parents[:2]:
        (package / "__init__.py").touch()
    command = [sys.executable, "-m", "lewm_serve.backends.native.build"]
    variables = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert result.stderr == (
        "the native code is not compiled: no C++ compiler: none of c++, g++, clang++ is installed\n"
    )
    command.append("--flags")
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert result.stdout.split() == list(build.COMPILER_FLAGS)


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NativeUnavailable, match=r"no C\+\+ compiler: none of c\+\+, g\+\+, clang\+\+"
    ):
        find_compiler()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo broken >&2; exit 1", "fails: broken"),
        ("printf '\\377\\376' >&2; exit 1", "fails: \ufffd\ufffd"),
        (None, "the compiler does not run"),
        (":", "No such file"),
    ],
)
def test_a_compiler_that_fails(
    sources: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str
) -> None:
    program = sources.parent / "compiler"
    if script is not None:
        write_compiler(sources.parent, script)
    monkeypatch.setenv("CXX", str(program))
    before = sorted(sources.iterdir())
    with pytest.raises(NativeUnavailable, match=message):
        build_library()
    assert sorted(sources.iterdir()) == before


@pytest.mark.parametrize("command", ['g++ "', "g++ 'x", "g++ \\"])
def test_a_compiler_with_quotes(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(NativeUnavailable, match=r"^CXX is .*: No (closing quotation|escaped)"):
        find_compiler()


def test_a_compiler_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache 'my g++'")
    assert find_compiler() == ["ccache", "my g++"]


def test_a_compiler_that_is_blank_is_none(
    compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    expected = find_compiler()
    monkeypatch.setenv("CXX", "  ")
    assert find_compiler() == expected


def test_a_compiler_that_hangs_is_stopped_with_all_its_processes(tmp_path: Path) -> None:
    program = write_compiler(tmp_path, f"sleep 600 & echo $! >{tmp_path}/child\nwait")
    folder = tmp_path / "libraries"
    folder.mkdir()
    with pytest.raises(NativeUnavailable, match=r"compiler' has not ended within 0.5 s"):
        compile_library(library_path(folder), [str(program)], timeout_s=0.5)
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(child), "its child has ended")
    assert not list(folder.iterdir())


def is_running(process: int) -> bool:
    """Whether a process exists and is not only waiting for its parent to notice its end."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
