"""What is in the image, and what is not."""

import json
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.images import ROOT, SECRET, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

MAX_BYTES = 1_500_000_000
ENVIRONMENT = Path("opt/lewm")
SITE_PACKAGES = ENVIRONMENT / "lib/python3.11/site-packages"
SBOM = Path("usr/share/sbom/lewm-serve")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "as", "ld", "make")
SECRET_FILES = re.compile(
    r"\.git|\.env|\.netrc|\.pypirc|pip\.conf|id_(rsa|dsa|ecdsa|ed25519)|.*\.key"
)
SECRET_TEXT = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----[\r\n]|" + SECRET.encode())
SECRET_URL = re.compile(rb"://[\w.%-]+:[\w.%-]+@[\w-]+\.")
CODE = {".pm", ".py"}
"""Files of programs, in whose comments there are examples of URLs with passwords."""
MAX_TEXT_BYTES = 4 * 1024 * 1024
SECRET_NAMES = re.compile("KEY|PASSWORD|SECRET|TOKEN|PROXY|PIP_", re.IGNORECASE)


@pytest.fixture(scope="module")
def configuration(image: str) -> dict[str, Any]:
    """What podman says of the image."""
    (description,) = json.loads(run("podman", "image", "inspect", image))
    found: dict[str, Any] = description
    return found


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files and folders of the image, relative to its root, except devices."""
    for path in folder.rglob("*"):
        status = path.lstat()
        if not (stat.S_ISCHR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            yield path.relative_to(folder), status


def part(path: Path) -> str:
    """What a file belongs to: a Python package, or Debian's packages."""
    if not path.is_relative_to(ENVIRONMENT):
        return "base image"
    if not path.is_relative_to(SITE_PACKAGES):
        return "environment"
    return path.relative_to(SITE_PACKAGES).parts[0].partition(".")[0]


def test_the_image_is_small(unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes: Counter[str] = Counter()
    for path, status in walk(unpacked):
        if stat.S_ISREG(status.st_mode):
            sizes[part(path)] += status.st_size
    table = [f"{size / 1e6:8.1f} MB  {name}" for name, size in sizes.most_common(15)]
    with capsys.disabled():
        print(f"\nthe image, {sizes.total() / 1e6:.1f} MB unpacked:", *table, sep="\n")
    assert sizes.total() <= MAX_BYTES


def test_no_program_can_build_or_install(unpacked: Path) -> None:
    folders = [unpacked / name for name in ("usr/bin", "usr/local/bin", ENVIRONMENT / "bin")]
    assert [name for name in COMPILERS for folder in folders if (folder / name).exists()] == []
    assert not (unpacked / SITE_PACKAGES / "pip").exists()
    assert not (unpacked / "root/.cache").exists()


def test_no_file_gives_rights_or_can_be_changed(unpacked: Path) -> None:
    special, open_to_all, owned = [], [], []
    for path, status in walk(unpacked):
        mode = status.st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            special.append(path)
        if mode & stat.S_IWOTH and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            open_to_all.append(path)
        if path.is_relative_to(ENVIRONMENT) and (status.st_uid, status.st_gid) != (0, 0):
            owned.append(path)
    assert (special, open_to_all, owned) == ([], [], [])


def test_no_secret_is_in_a_file(unpacked: Path) -> None:
    named, containing = [], []
    for path, status in walk(unpacked):
        if SECRET_FILES.fullmatch(path.name):
            named.append(path)
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_TEXT_BYTES:
            content = (unpacked / path).read_bytes()
            patterns = [SECRET_TEXT] if path.suffix in CODE else [SECRET_TEXT, SECRET_URL]
            if b"\0" not in content:  # libraries hold keys for their self-tests
                containing += [(path, text) for each in patterns for text in each.findall(content)]
    assert (named, containing) == ([], [])


def test_no_secret_is_in_the_configuration(image: str, configuration: dict[str, Any]) -> None:
    names = [pair.partition("=")[0] for pair in configuration["Config"]["Env"]]
    assert [name for name in names if SECRET_NAMES.search(name)] == []
    history = run("podman", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert SECRET not in history
    assert "file:/" not in history


def test_the_server_is_an_ordinary_user(configuration: dict[str, Any]) -> None:
    config = configuration["Config"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", config["User"])
    assert (config["Entrypoint"], config["Cmd"]) == (["lewm"], ["serve"])


def test_labels_say_what_it_is(configuration: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "org.opencontainers.image."
    labels = {
        name.removeprefix(prefix): value
        for name, value in configuration["Labels"].items()
        if name.startswith(prefix)
    }
    assert labels["title"] == project["name"]
    assert labels["version"] == f"{project['version']}-cpu"
    assert labels["licenses"] == project["license"]
    assert labels["revision"] == "test"
    assert labels.keys() >= {"description", "base.name"}


def test_every_package_is_on_the_bill_of_materials_and_pinned(unpacked: Path) -> None:
    python = json.loads((unpacked / SBOM / "python.cdx.json").read_text())["components"]
    versions = {canonical(part["name"]): part["version"].partition("+")[0] for part in python}
    installed = {
        canonical(path.name.partition("-")[0])
        for path in (unpacked / SITE_PACKAGES).glob("*.dist-info")
    }
    assert versions.keys() == installed
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    pinned = {canonical(name): version for name, version in pins.items()}
    own = {"lewm-client", "lewm-serve"}
    assert {name: pinned.get(name) for name in versions.keys() - own} == {
        name: version for name, version in versions.items() if name not in own
    }
    debian = json.loads((unpacked / SBOM / "debian.cdx.json").read_text())["components"]
    assert {"libc6", "python3.11"} <= {part["name"] for part in debian}


def canonical(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
