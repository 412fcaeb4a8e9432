"""What a replica takes as its settings."""

from typing import Any

import pytest

from lewm_serve.ray_serve.settings import SETTINGS_OF_RAY, read_settings
from lewm_serve.settings import Settings, SettingsError


def test_settings_are_those_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWM_MAX_QUEUE", "7")
    settings = read_settings({"insecure": True, "max_samples": 64})
    assert (settings.max_samples, settings.max_queue) == (64, 7)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_sample": 1}, "max_sample: received 1, expected the name of a setting"),
        ({"http_port": 1}, "http_port: received 1, expected no value, see docs/ray.md"),
        ({"max_samples": 0}, "LEWM_MAX_SAMPLES .* is 0: "),
        ({"device": "cuda:0,cuda:1"}, "device: received 'cuda:0,cuda:1', expected one device"),
        ({"insecure": False}, "keys_file: received nothing, .* Expected a file of `lewm keys add`"),
    ],
)
def test_wrong_settings(args: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_settings({"insecure": True} | args)


def test_a_keys_file_protects() -> None:
    assert read_settings({"keys_file": "keys"}).keys_file is not None


def test_the_settings_of_ray_exist() -> None:
    assert set(SETTINGS_OF_RAY) <= set(Settings.model_fields)
