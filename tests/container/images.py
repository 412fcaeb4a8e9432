"""The images of these tests: what the Dockerfile builds, on a base of Debian's packages.

The base images stay in the storage of buildah and podman, so that a second run builds only what has
changed. `buildah rmi` removes them.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BASE, BUILD_BASE = "localhost/lewm-test-base:bookworm", "localhost/lewm-test-build-base:bookworm"
"""They stand for python:3.11-slim-bookworm and python:3.11-bookworm."""
SYSTEMD_BASE = "localhost/lewm-test-systemd-base:bookworm"
IMAGE = "localhost/lewm-serve:test"

PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap")
EXCLUDED = ("/usr/share/doc/*/*", "/usr/share/locale/*", "/usr/share/man/*")
"""What the slim images of Debian leave out, too."""
INSTALL = "RUN apt-get update && apt-get install --yes --no-install-recommends"

SECRET = "secret-of-the-build"
"""It is in the build's pip.conf, and nowhere in the image."""

INDEX_OPTIONS = ("index-url", "extra-index-url", "find-links", "trusted-host", "timeout")
"""pip's options that the build takes over from this machine."""


def run(*command: str | Path, stdin: str | None = None) -> str:
    """What a program prints on standard output. It must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def need_programs() -> None:
    """Fail, saying what to install, where a program is missing."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.fail(
            f"{missing} are missing: `make test-container`, as root on Debian, installs them"
        )


def build(folder: Path) -> str:
    """Build the CPU image, and return its name.

    Args:
        folder: an empty folder.
    """
    need_programs()
    if not _exists(BASE):
        _build_base(folder)
    add_packages(BUILD_BASE, "g++")
    options = pip_options()
    pip_conf = folder / "pip.conf"
    lines = [f"{name} = {value}" for name, value in options.items()]
    pip_conf.write_text("\n".join(["[global]", f"# {SECRET}", *lines, ""]))
    secrets = {"pip.conf": str(pip_conf)}
    if certificate := _pip_configuration().get("cert"):
        secrets["ca.crt"] = certificate
        pip_conf.write_text(f"{pip_conf.read_text()}cert = /run/secrets/ca.crt\n")
    arguments = {"BASE_IMAGE": BASE, "BUILD_IMAGE": BUILD_BASE, "REVISION": "test"}
    if url := _torch_index(options):
        arguments["TORCH_INDEX_URL"] = url
    run(
        *("buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers"),
        "--force-rm",  # otherwise a container of the base image is left
        *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        *(f"--volume={path}:{path}:ro" for path in _local_folders(options)),
        *("--tag", IMAGE, ROOT),
    )
    return IMAGE


def add_packages(name: str, *packages: str) -> None:
    """Build the base image with packages of Debian, unless it exists."""
    if not _exists(name):
        file = f"FROM {BASE}\n{INSTALL} {' '.join(packages)}\n"
        run("buildah", "bud", "--isolation", "chroot", "--tag", name, "--file", "-", stdin=file)


def _exists(name: str) -> bool:
    return name in run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").splitlines()


def _build_base(folder: Path) -> None:
    archive = folder / "base.tar"
    run(
        *("mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        *("bookworm", archive),
    )
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", "--quiet", container, archive, "/")
    run("buildah", "commit", "--quiet", "--rm", container, BASE)
    archive.unlink()


def pip_options() -> dict[str, str]:
    """Where this machine's pip finds packages, by the names of its options."""
    return {name: value for name, value in _pip_configuration().items() if name in INDEX_OPTIONS}


def _pip_configuration() -> dict[str, str]:
    """This machine's configuration of pip. Environment variables come last, and win."""
    lines = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [line.partition("=") for line in lines]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in pairs}


def _local_folders(options: dict[str, str]) -> list[str]:
    """The folders of this machine that pip finds packages in. An index links to files beside it."""
    words = [word for value in options.values() for word in value.split()]
    indexes = [str(Path(word.removeprefix("file://")).parent) for word in words if "file:" in word]
    return indexes + [word for word in words if word.startswith("/")]


def _torch_index(options: dict[str, str]) -> str | None:
    """Where the build finds PyTorch; None: in PyTorch's own index.

    A machine with sources of its own finds the CPU build there, like all other packages.
    """
    own = options.keys() & {"index-url", "extra-index-url", "find-links"}
    default = options.get("index-url", "https://pypi.org/simple") if own else None
    return os.environ.get("TORCH_INDEX_URL", default)
