"""The number of cores follows the affinity and the quotas of control groups, of both versions."""

import os
from pathlib import Path

import pytest

from lewm_models import cores
from lewm_models.cores import usable_cores

CASES = {
    "no control groups": (None, {}, 8),
    "version 2, no limit": ("0::/", {"cpu.max": "max 100000\n"}, 8),
    "version 2": ("0::/", {"cpu.max": "200000 100000\n"}, 2),
    "version 2, a group above has less": (
        "0::/robot.slice/lewm.service",
        {"robot.slice/cpu.max": "300000 100000", "robot.slice/lewm.service/cpu.max": "max 100000"},
        3,
    ),
    "version 2, a part of a core": ("0::/", {"cpu.max": "20000 100000\n"}, 1),
    "version 2, more than there are": ("0::/", {"cpu.max": "6400000 100000\n"}, 8),
    "version 1, the group's folder is not in the container": (
        "9:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/docker/1",
        {"cpu/cpu.cfs_quota_us": "350000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, no limit": (
        "1:cpu:/",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        8,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_quota_of_a_container_limits_the_cores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, files, expected = CASES[name]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    monkeypatch.setattr(cores, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(cores, "GROUP_FOLDERS", tmp_path / "groups")
    if own is not None:
        (tmp_path / "own").write_text(own)
    for file, text in files.items():
        path = tmp_path / "groups" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores() == expected


def test_this_process_has_cores() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
