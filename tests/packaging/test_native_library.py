"""The wheel brings the native code as a library; it can be built and used without one too."""

import json
import subprocess
import sys
import tarfile
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from lewm_serve.backends.native.build import FOLDER, digest_path, library_path
from tests.lewm_serve.backends.native import roll_out_program
from tests.packaging.distributions import VERSION, Builder, Distribution, wheel_files
from tests.packaging.environments import clean_variables
from tests.packaging.test_installed import native_backend_runs_here
from tests.patience import PATIENCE_S

IN_WHEEL = "lewm_serve/backends/native"
LIBRARY = library_path(FOLDER)
LOAD = "from lewm_serve.backends.native.library import load_library; load_library()"


@pytest.fixture
def wheel(distributions: dict[str, Distribution]) -> Path:
    """The server's wheel, with the library."""
    if not LIBRARY.exists():
        pytest.skip("the native code cannot be compiled on this machine")
    return distributions["lewm-serve"].wheel


@pytest.fixture(scope="module")
def wheel_without_compiler(
    tmp_path_factory: pytest.TempPathFactory,
    builder: Builder,
    distributions: dict[str, Distribution],
) -> Path:
    """The server's wheel, built of the sdist where there is no compiler."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(distributions["lewm-serve"].sdist) as archive:
        archive.extractall(folder, filter="data")
    (project,) = folder.iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CXX", raising=False)
        patch.setenv("PATH", "/nowhere")
        return builder.build(project, "wheel", tmp_path_factory.mktemp("wheel"))


def run_unpacked(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on a wheel's files, without programs on the path and without a home folder."""
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    variables = {"PATH": "/nowhere", "HOME": "/nowhere", "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean_variables() | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def tags(wheel: Path) -> list[str]:
    """What a wheel says about the systems that it is for."""
    with ZipFile(wheel) as archive:
        text = archive.read(f"lewm_serve-{VERSION}.dist-info/WHEEL").decode()
    return Parser().parsestr(text).get_all("Tag", [])


def test_the_wheel_holds_the_library_of_these_sources(wheel: Path) -> None:
    assert wheel.name == f"lewm_serve-{VERSION}-py3-none-linux_x86_64.whl"
    assert tags(wheel) == ["py3-none-linux_x86_64"]
    with ZipFile(wheel) as archive:
        compiled = {name for name in archive.namelist() if name.endswith((".so", ".sha256"))}
        assert compiled == {
            f"{IN_WHEEL}/{LIBRARY.name}",
            f"{IN_WHEEL}/{digest_path(LIBRARY).name}",
        }
        assert archive.read(f"{IN_WHEEL}/{LIBRARY.name}") == LIBRARY.read_bytes()


def test_the_library_in_the_wheel_gives_the_same_results(wheel: Path, tmp_path: Path) -> None:
    if not native_backend_runs_here():
        pytest.skip("the native backend does not run on this machine")
    result = run_unpacked(wheel, tmp_path, roll_out_program.PROGRAM)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed.pop("folder") == str(tmp_path / IN_WHEEL)
    expected = roll_out_program.results()
    del expected["folder"]
    assert printed == expected


def test_the_sdist_holds_what_compiles_the_library(
    distributions: dict[str, Distribution],
) -> None:
    with tarfile.open(distributions["lewm-serve"].sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert "hatch_build.py" in files
    assert {f"service/{IN_WHEEL}/predictor.cpp", f"service/{IN_WHEEL}/build.py"} <= files
    assert not [file for file in files if file.endswith((".so", ".sha256"))]


def test_a_wheel_that_was_built_without_a_compiler_says_what_it_lacks(
    wheel_without_compiler: Path, wheel: Path, tmp_path: Path
) -> None:
    assert wheel_without_compiler.name == f"lewm_serve-{VERSION}-py3-none-any.whl"
    assert tags(wheel_without_compiler) == ["py3-none-any"]
    compiled = {f"{IN_WHEEL}/{LIBRARY.name}", f"{IN_WHEEL}/{digest_path(LIBRARY).name}"}
    files = {file for file in wheel_files(wheel_without_compiler) if ".dist-info/" not in file}
    assert files == {file for file in wheel_files(wheel) if ".dist-info/" not in file} - compiled
    if not native_backend_runs_here():
        pytest.skip("the native backend does not run on this machine")
    result = run_unpacked(wheel_without_compiler, tmp_path, "-c", LOAD)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        f"NativeUnavailable: there is no compiled library in {tmp_path / IN_WHEEL}: run "
        "`make native` in a checkout, install a wheel for linux-x86_64, or set "
        "LEWM_NATIVE_COMPILE=1 to compile it at the start"
    )
