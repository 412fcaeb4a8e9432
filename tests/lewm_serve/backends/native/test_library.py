"""The native code is compiled once, and there is a message if it cannot be used."""

import ctypes
import os
import stat
from pathlib import Path

import pytest
import torch

from lewm_serve.backends.native import library as native
from lewm_serve.backends.native.backend import NativeBackend
from lewm_serve.backends.native.library import (
    NativeUnavailable,
    cache_folder,
    check_structs,
    compile_library,
    load_library,
)
from lewm_serve.backends.torch import TorchBackend
from tests.lewm_models.examples import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def supported() -> None:
    if native.REQUIRED_CPU_FLAG not in native.cpu_flags():
        pytest.skip(f"the processor has no {native.REQUIRED_CPU_FLAG}")


@pytest.mark.usefixtures("supported")
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    path = compile_library(folder)
    assert ctypes.CDLL(str(path)).tiles_available() in (0, 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {file.suffix for file in folder.iterdir()} == {".so", ".sha256"}
    monkeypatch.setattr("subprocess.run", None)
    assert compile_library(folder) == path


@pytest.mark.usefixtures("supported")
def test_other_flags_are_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_library(tmp_path)
    monkeypatch.setattr(native, "COMPILER_FLAGS", (*native.COMPILER_FLAGS, "-DOTHER"))
    assert compile_library(tmp_path) != first


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize("size", [0, 4096])
def test_a_file_that_was_cut_short_is_compiled_again(tmp_path: Path, size: int) -> None:
    path = compile_library(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:size])
    assert compile_library(tmp_path) == path
    assert ctypes.CDLL(str(path)).tiles_available() in (0, 1)


def test_a_compiler_that_failed_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {native.REQUIRED_CPU_FLAG}\n")
    monkeypatch.setattr(native, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho called >>{tmp_path}/log\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    native._load_or_reason.cache_clear()
    for _ in range(2):
        with pytest.raises(NativeUnavailable, match="fails"):
            load_library()
    native._load_or_reason.cache_clear()
    assert (tmp_path / "log").read_text() == "called\n"


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(
        NativeUnavailable, match=r"no C\+\+ compiler: none of c\+\+, g\+\+, clang\+\+"
    ):
        compile_library(tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo broken >&2; exit 1", "fails: broken"), (None, "the compiler does not run")],
)
def test_a_compiler_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str
) -> None:
    compiler = tmp_path / "compiler"
    if script is not None:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    folder = tmp_path / "cache"
    with pytest.raises(NativeUnavailable, match=message):
        compile_library(folder)
    assert not list(folder.iterdir())


def test_a_folder_that_others_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(NativeUnavailable, match="other users can write to"):
        compile_library(tmp_path)


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("no home directory")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(NativeUnavailable, match="no home directory, set XDG_CACHE_HOME"):
        cache_folder()


def test_a_processor_without_the_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2 fma\n")
    monkeypatch.setattr(native, "CPU_INFO", tmp_path / "cpuinfo")
    native._load_or_reason.cache_clear()
    with pytest.raises(NativeUnavailable, match="no avx512_bf16"):
        load_library()
    native._load_or_reason.cache_clear()


def test_models_that_are_not_supported() -> None:
    model = tiny_model()
    with pytest.raises(NativeUnavailable, match="whose width and head width are multiples of 16"):
        NativeBackend(model, TorchBackend(model, CPU))


@pytest.mark.usefixtures("supported")
def test_structs_have_the_same_size_in_python_and_in_the_code(tmp_path: Path) -> None:
    code = ctypes.CDLL(str(compile_library(tmp_path)))
    check_structs(code)
    assert code.struct_size(b"PredictorModel") == ctypes.sizeof(native.PredictorModel)


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize(
    ("name", "in_code"), [("KnownToken", ctypes.sizeof(native.KnownToken)), ("Unknown", -1)]
)
def test_a_struct_of_another_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_code: int
) -> None:
    longer = type(name, (native.KnownToken,), {"_fields_": (("added", ctypes.c_int64),)})
    monkeypatch.setattr(native, "SHARED_STRUCTS", (native.LinearMap, longer))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._load_or_reason.cache_clear()
    with pytest.raises(NativeUnavailable) as raised:
        load_library()
    native._load_or_reason.cache_clear()
    size = ctypes.sizeof(longer)
    message = f"{name} has {size} bytes in Python and {in_code} in the compiled code"
    assert str(raised.value) == message
