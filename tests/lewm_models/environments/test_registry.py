"""Environments are found by name, by entry point and by factory, and what is no environment is
refused."""

import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from lewm_models.environments import registry
from lewm_models.environments.environment import INSTALL_COMMAND, load_simulator
from lewm_models.environments.registry import (
    ENTRY_POINT_GROUP,
    ENVIRONMENTS,
    environment_names,
    find_environment,
)
from lewm_models.environments.two_room_environment import TWO_ROOM

ROOT = Path(__file__).parents[3]
TWO_ROOM_REFERENCE = "lewm_models.environments.two_room_environment:TwoRoom"

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make a distribution with these lines of entry points the only one that is installed."""

    def install_lines(lines: str) -> None:
        folder = tmp_path / "plugin-0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
        (folder / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{lines}\n")
        plugin = metadata.Distribution.at(folder)
        monkeypatch.setattr(
            registry, "entry_points", lambda group: plugin.entry_points.select(group=group)
        )

    return install_lines


def test_the_embedded_models_environment_is_the_default() -> None:
    assert find_environment(None) is find_environment("two-room") is TWO_ROOM


def test_packages_add_environments(install: Install) -> None:
    install(f"rooms = {TWO_ROOM_REFERENCE}\nchess = tomllib:TOMLDecodeError")
    assert environment_names() == [*ENVIRONMENTS, "chess", "rooms"]
    assert find_environment("rooms").name == "two-room"
    with pytest.raises(ValueError, match=r"--env chess: expected an .*, got TOMLDecodeError"):
        find_environment("chess")


def test_our_own_environments_are_entry_points_too(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"][ENTRY_POINT_GROUP]
    assert declared == ENVIRONMENTS
    install("\n".join(f"{name} = {reference}" for name, reference in declared.items()))
    monkeypatch.setattr(registry, "ENVIRONMENTS", {})
    assert find_environment("two-room") is TWO_ROOM


def test_a_factory_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = TWO_ROOM_REFERENCE.partition(":")
    (tmp_path / "my_rooms.py").write_text(f"from {module} import {name}\nmake = {name}\nnumber = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert find_environment("my_rooms:make").name == "two-room"
    with pytest.raises(ValueError, match=r"--env my_rooms:number: expected an .*, got int"):
        find_environment("my_rooms:number")
    with pytest.raises(ValueError, match=r"--env my_rooms:other: cannot be imported: .*'other'"):
        find_environment("my_rooms:other")
    with pytest.raises(ValueError, match=r"--env absent.rooms:make: cannot be imported: .*absent"):
        find_environment("absent.rooms:make")


def test_an_unknown_environment_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"expected one of .*two-room, .*factory, got 'chess'"):
        find_environment("chess")


def test_a_missing_simulator_is_an_error_with_the_command_that_installs_it() -> None:
    with pytest.raises(ValueError, match=r"--env chess: absent_library is needed") as error:
        load_simulator("absent_library", "chess")
    assert INSTALL_COMMAND in str(error.value)
