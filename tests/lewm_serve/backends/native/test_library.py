"""The native code is compiled once, and there is a message if it cannot be used."""

import ctypes
import hashlib
import os
import shutil
import signal
import stat
from collections.abc import Callable
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
from tests.patience import wait_until

CPU = torch.device("cpu")


@pytest.fixture
def supported() -> None:
    if native.REQUIRED_CPU_FLAG not in native.cpu_flags():
        pytest.skip(f"the processor has no {native.REQUIRED_CPU_FLAG}")


@pytest.mark.usefixtures("supported")
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    umask = os.umask(0)
    try:
        path = compile_library(folder)
    finally:
        os.umask(umask)
    assert ctypes.CDLL(str(path)).tiles_available() in (0, 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
    assert {file.suffix for file in folder.iterdir()} == {".so", ".sha256"}
    monkeypatch.setattr("subprocess.Popen", None)
    assert compile_library(folder) == path


@pytest.mark.usefixtures("supported")
def test_a_kept_library_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compile_library(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    for compiler in (None, "no-such-compiler", 'g++ "'):
        if compiler is not None:
            monkeypatch.setenv("CXX", compiler)
        assert compile_library(tmp_path) == path


@pytest.mark.usefixtures("supported")
def test_a_kept_library_of_another_processor_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = compile_library(tmp_path)
    here = native.CPU_INFO.read_text()
    changes = {
        "another model": here.replace("model\t\t: ", "model\t\t: 1"),
        "other instructions": here.replace(" avx2 ", " "),
        "other security": here.replace(" avx2 ", " avx2 ibrs_new "),
    }
    for name, content in changes.items():
        assert content != here, name
        monkeypatch.setattr(native, "CPU_INFO", tmp_path / "cpuinfo")
        native.CPU_INFO.write_text(content)
        monkeypatch.setenv("PATH", "/nowhere")
        if name == "other security":
            assert compile_library(tmp_path) == kept
        else:
            with pytest.raises(NativeUnavailable, match=r"no C\+\+ compiler"):
                compile_library(tmp_path)


@pytest.mark.usefixtures("supported")
def test_other_flags_are_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_library(tmp_path)
    monkeypatch.setattr(native, "COMPILER_FLAGS", (*native.COMPILER_FLAGS, "-DOTHER"))
    assert compile_library(tmp_path) != first


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x80", b"", b"0" * 64], ids=["not text", "empty", "another"]
)
def test_a_checksum_that_is_wrong_is_compiled_over(tmp_path: Path, content: bytes) -> None:
    path = compile_library(tmp_path)
    path.with_suffix(".sha256").write_bytes(content)
    assert compile_library(tmp_path) == path
    assert path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest()


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
    [
        ("echo broken >&2; exit 1", "fails: broken"),
        ("printf '\\377\\376' >&2; exit 1", "fails: \ufffd\ufffd"),
        (None, "the compiler does not run"),
    ],
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


@pytest.mark.parametrize("compiler", ['g++ "', "g++ 'x", "g++ \\"])
def test_a_compiler_with_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(NativeUnavailable, match=r"^CXX is .*: No (closing quotation|escaped)"):
        compile_library(tmp_path)


@pytest.mark.usefixtures("supported")
def test_a_compiler_that_is_blank_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "  ")
    assert compile_library(tmp_path).is_file()


def test_a_compiler_that_hangs_is_stopped_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\nsleep 600 & echo $! >{tmp_path}/child\nwait\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(native, "COMPILE_TIMEOUT_S", 0.5)
    with pytest.raises(NativeUnavailable, match=r"compiler' has not ended within 0.5 s"):
        compile_library(tmp_path / "cache")
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(child), "its child has ended")
    assert not list((tmp_path / "cache").iterdir())


def is_running(process: int) -> bool:
    """Whether a process exists and is not only waiting for its parent to notice its end."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize("script", ["echo text", ":"], ids=["text", "nothing"])
def test_a_compiler_that_makes_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\n[ "{script}" = : ] || {script} >"$(eval echo \\${{$#}})"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        native._load_or_reason.cache_clear()
        with pytest.raises(NativeUnavailable, match=r"invalid ELF header|file too short|No such"):
            load_library()
    # A later start with a good compiler does not find the bad file.
    monkeypatch.delenv("CXX")
    native._load_or_reason.cache_clear()
    load_library()
    native._load_or_reason.cache_clear()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
NOBODY = 65534


@needs_root
@pytest.mark.usefixtures("supported")
def test_a_library_that_root_owns_is_used_by_others(tmp_path: Path) -> None:
    """As in an image for containers: made by root, used by a user without a compiler."""
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
