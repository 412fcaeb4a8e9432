"""The empty caches of a first start."""

import os
from pathlib import Path

import pytest

from benchmarks.startup import CACHE_VARIABLES, empty_caches


def test_caches_are_new_folders_for_the_duration_of_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unset, was_set = CACHE_VARIABLES
    monkeypatch.delenv(unset, raising=False)
    monkeypatch.setenv(was_set, "/before")
    with empty_caches():
        folders = {Path(os.environ[name]).parent for name in CACHE_VARIABLES}
        assert len(folders) == 1
        assert not list(folders.pop().iterdir())
        assert os.environ[was_set] != "/before"
    assert unset not in os.environ
    assert os.environ[was_set] == "/before"
