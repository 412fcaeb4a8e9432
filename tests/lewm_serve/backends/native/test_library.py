"""The native code is loaded from the package, or compiled if that is asked for, or says why not."""

import ctypes
import os
import shutil
import signal
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lewm_serve.backends.native import build
from lewm_serve.backends.native import library as native
from lewm_serve.backends.native.backend import NativeBackend
from lewm_serve.backends.native.build import NativeUnavailable, build_library, library_path
from lewm_serve.backends.native.library import (
    cache_folder,
    check_structs,
    compile_library,
    find_library,
    load_library,
)
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.registry.loading import load_models
from lewm_serve.registry.registry import ModelLoadError
from lewm_serve.settings import load_settings
from tests.lewm_models.examples import tiny_model

CPU = torch.device("cpu")
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def _nothing_is_loaded_yet() -> Iterator[None]:
    native._load_or_reason.cache_clear()
    yield
    native._load_or_reason.cache_clear()


@pytest.fixture
def supported() -> None:
    """The processor runs the code."""
    if missing := set(build.REQUIRED_CPU_FLAGS) - native.cpu_flags():
        pytest.skip(f"the processor has no {missing}")


@pytest.fixture(scope="module")
def packaged() -> Path:
    """The library of this checkout."""
    try:
        return build_library()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def empty_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package without a library takes the place of this one."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(build, "FOLDER", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a user's libraries are kept. It does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def compiler(tmp_path: Path, packaged: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that takes no time: it makes the library of this checkout, and counts its calls.

    What compiles is tested in test_build.py.
    """
    copy = tmp_path / "library"
    shutil.copy(packaged, copy)
    return set_compiler(tmp_path, monkeypatch, f'cp {copy} "$output"')


def set_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A script in place of the compiler, with its "$output". Returns the log of its calls."""
    program, calls = folder / "compiler", folder / "calls"
    program.write_text(
        f'#!/bin/sh\necho called >>{calls}\noutput=$(eval echo "\\${{$#}}")\n{script}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    return calls


def set_cpu_flags(folder: Path, monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """Another processor."""
    (folder / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(native, "CPU_INFO", folder / "cpuinfo")


@pytest.mark.usefixtures("supported", "packaged", "cache")
@pytest.mark.parametrize("compile_missing", [False, True])
def test_the_packaged_library_needs_neither_compiler_nor_home(
    monkeypatch: pytest.MonkeyPatch, *, compile_missing: bool
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("subprocess.Popen", None)
    monkeypatch.setattr(native, "cache_folder", None)
    assert load_library(compile_missing=compile_missing).tiles_available() in (0, 1)


def test_a_package_without_a_library(empty_package: Path) -> None:
    with pytest.raises(NativeUnavailable) as raised:
        find_library(empty_package)
    assert str(raised.value) == (
        f"there is no compiled library in {empty_package}: run `make native` in a checkout, "
        "install a wheel for linux-x86_64, or set LEWM_NATIVE_COMPILE=1 to compile it at the start"
    )


def test_a_library_of_other_sources_is_refused(empty_package: Path, packaged: Path) -> None:
    shutil.copy(packaged, empty_package / "predictor-0123456789abcdef.so")
    with pytest.raises(NativeUnavailable, match=r"compiled from other sources: run `make native`"):
        find_library(empty_package)


@pytest.mark.parametrize("size", [0, 4096])
def test_a_library_that_was_cut_short_is_refused(
    empty_package: Path, packaged: Path, size: int
) -> None:
    for file in (packaged, packaged.with_suffix(".sha256")):
        shutil.copy(file, empty_package)
    path = find_library(empty_package)
    os.truncate(path, size)
    with pytest.raises(NativeUnavailable, match=rf"{path.name} is damaged: run `make native`"):
        find_library(empty_package)
    path.with_suffix(".sha256").unlink()
    with pytest.raises(NativeUnavailable, match=rf"{path.name} is damaged: run `make native`"):
        find_library(empty_package)


@pytest.mark.usefixtures("supported")
def test_without_the_option_nothing_is_compiled(
    empty_package: Path, cache: Path, compiler: Path
) -> None:
    with pytest.raises(NativeUnavailable, match="there is no compiled library"):
        load_library()
    assert not compiler.exists()
    assert not cache.exists()


@pytest.mark.usefixtures("supported", "empty_package")
def test_with_the_option_it_is_compiled_and_kept(cache: Path, compiler: Path) -> None:
    for _ in range(2):
        native._load_or_reason.cache_clear()
        assert load_library(compile_missing=True).tiles_available() in (0, 1)
    assert compiler.read_text() == "called\n"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in cache.iterdir()} == {0o644}
    assert {file.suffix for file in cache.iterdir()} == {".so", ".sha256"}


@pytest.mark.usefixtures("supported", "empty_package", "cache", "compiler")
def test_the_setting_is_the_option(model_folder: Path) -> None:
    flags = {"backend": "native", "models": str(model_folder), "threads": "1"}
    with pytest.raises(
        ModelLoadError, match="LEWM_BACKEND is native: there is no compiled library"
    ):
        load_models(load_settings(**flags))
    (model,) = load_models(load_settings(**flags, native_compile="1")).values()
    assert model.backend.name == "native"


@pytest.mark.usefixtures("supported", "cache")
def test_with_the_option_a_damaged_library_is_replaced(empty_package: Path, compiler: Path) -> None:
    library_path(empty_package).write_bytes(b"damaged")
    assert load_library(compile_missing=True).tiles_available() in (0, 1)
    assert compiler.read_text() == "called\n"


@pytest.mark.usefixtures("empty_package", "cache")
def test_a_compiler_that_failed_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cpu_flags(tmp_path, monkeypatch, " ".join(build.REQUIRED_CPU_FLAGS))
    calls = set_compiler(tmp_path, monkeypatch, "exit 1")
    for _ in range(2):
        with pytest.raises(NativeUnavailable, match="fails"):
            load_library(compile_missing=True)
    assert calls.read_text() == "called\n"


def test_a_compiler_that_hangs_delays_the_start_by_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_compiler(tmp_path, monkeypatch, "sleep 600")
    monkeypatch.setattr(native, "COMPILE_TIMEOUT_S", 0.5)
    with pytest.raises(NativeUnavailable, match=r"compiler' has not ended within 0.5 s"):
        compile_library(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("size", [0, 4096])
def test_a_kept_library_that_was_cut_short_is_compiled_again(tmp_path: Path, size: int) -> None:
    folder = tmp_path / "kept"
    path = compile_library(folder)
    os.truncate(path, size)
    assert compile_library(folder) == path
    assert build.is_complete(path)


@pytest.mark.usefixtures("supported", "empty_package", "packaged")
@pytest.mark.parametrize("script", ['echo text >"$output"', ":"], ids=["text", "nothing"])
def test_a_compiler_that_makes_no_library(
    tmp_path: Path,
    cache: Path,
    compiler: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
) -> None:
    good_compiler = os.environ["CXX"]
    bad_folder = tmp_path / "bad"
    bad_folder.mkdir()
    set_compiler(bad_folder, monkeypatch, script)
    for _ in range(2):
        native._load_or_reason.cache_clear()
        with pytest.raises(NativeUnavailable, match=r"invalid ELF header|file too short|No such"):
            load_library(compile_missing=True)
    # A later start with a good compiler does not find the bad file.
    monkeypatch.setenv("CXX", good_compiler)
    native._load_or_reason.cache_clear()
    load_library(compile_missing=True)


@pytest.mark.usefixtures("supported")
def test_a_packaged_library_that_cannot_be_loaded_stays(empty_package: Path) -> None:
    path = library_path(empty_package)
    path.write_text("for another system")
    build.digest_path(path).write_text(build._digest(path))
    with pytest.raises(NativeUnavailable, match=r"invalid ELF header|file too short"):
        load_library()
    assert path.exists()


@needs_root
@pytest.mark.usefixtures("compiler")
def test_a_kept_library_that_root_owns_is_used_by_others() -> None:
    folder = Path("/var/tmp") / f"lewm-test-{os.getpid()}"  # others can get there
    try:
        path = compile_library(folder)
        assert run_as(NOBODY, lambda: str(compile_library(folder))) == str(path)
        folder.chmod(0o777)
        assert "other users can write to" in run_as(NOBODY, lambda: str(compile_library(folder)))
        folder.chmod(0o755)
        os.chown(path, NOBODY, NOBODY)
        assert run_as(1234, lambda: str(compile_library(folder))).startswith("no C++ compiler")
    finally:
        shutil.rmtree(folder)


@needs_root
def test_a_folder_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(NativeUnavailable, match="other users can write to"):
        compile_library(tmp_path)


def run_as(user: int, work: Callable[[], str]) -> str:
    """The result of the work, or its error, in a process of this user without a compiler."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(user)
            os.environ.pop("CXX", None)
            os.environ["PATH"] = "/nowhere"
            try:
                result = work()
            except NativeUnavailable as error:
                result = str(error)
            os.write(writer, result.encode())
        finally:
            # Neither the tests nor what measures their coverage may go on in this process.
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    with os.fdopen(reader) as file:
        result = file.read()
    os.waitpid(child, 0)
    return result


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


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ("avx2 fma f16c bmi1 bmi2 abm movbe", "avx512_bf16, avx512f, avx512bw, avx512cd, .*"),
        (" ".join(set(build.REQUIRED_CPU_FLAGS) - {"avx512_bf16"}), "avx512_bf16"),
        (" ".join(set(build.REQUIRED_CPU_FLAGS) - {"avx512vl", "fma"}), "avx512vl, fma"),
    ],
    ids=["AVX2", "no bfloat16", "a hypervisor hides two"],
)
def test_a_processor_without_the_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, missing: str
) -> None:
    set_cpu_flags(tmp_path, monkeypatch, flags)
    for compile_missing in (False, True):
        with pytest.raises(NativeUnavailable, match=f"^the processor has no {missing}$"):
            load_library(compile_missing=compile_missing)


def test_the_reason_holds_none_of_its_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cpu_flags(tmp_path, monkeypatch, "avx2")

    def call() -> weakref.ref[torch.nn.Module]:
        model = tiny_model()
        with suppress(NativeUnavailable):
            load_library()
        return weakref.ref(model)

    assert call()() is None
    assert call()() is None  # the reason is known now


def test_models_that_are_not_supported() -> None:
    model = tiny_model()
    with pytest.raises(NativeUnavailable, match="whose width and head width are multiples of 16"):
        NativeBackend(model, TorchBackend(model, CPU))


@pytest.mark.usefixtures("supported")
def test_structs_have_the_same_size_in_python_and_in_the_code(packaged: Path) -> None:
    code = ctypes.CDLL(str(packaged))
    check_structs(code)
    assert code.struct_size(b"PredictorModel") == ctypes.sizeof(native.PredictorModel)


@pytest.mark.usefixtures("supported", "packaged")
@pytest.mark.parametrize(
    ("name", "in_code"), [("KnownToken", ctypes.sizeof(native.KnownToken)), ("Unknown", -1)]
)
def test_a_struct_of_another_size_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, in_code: int
) -> None:
    longer = type(name, (native.KnownToken,), {"_fields_": (("added", ctypes.c_int64),)})
    monkeypatch.setattr(native, "SHARED_STRUCTS", (native.LinearMap, longer))
    with pytest.raises(NativeUnavailable) as raised:
        load_library()
    size = ctypes.sizeof(longer)
    message = f"{name} has {size} bytes in Python and {in_code} in the compiled code"
    assert str(raised.value) == message
