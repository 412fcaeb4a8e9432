"""Processes that a benchmark starts and ends."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.processes import checkout_server
from lewm_serve.cli.local_server import LocalServerError

FAKE_LEWM = """#!{python}
import json, os, signal, sys
print(json.dumps({{"http_port": 1, "grpc_port": 2, "models": ["m"]}}), flush=True)
seen = {{"arguments": sys.argv[1:], "environment": dict(os.environ)}}
open({seen!r}, "w").write(json.dumps(seen))
signal.pause()
"""


def write_program(checkout: Path, text: str) -> None:
    """Write the `lewm` of a checkout."""
    program = checkout / ".venv" / "bin" / "lewm"
    program.parent.mkdir(parents=True)
    program.write_text(text)
    program.chmod(0o755)


def test_the_server_of_a_checkout_gets_flags_and_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "LEWM_BACKEND", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "set here")
    seen_file = tmp_path / "seen.json"
    text = FAKE_LEWM.format(python=sys.executable, seen=str(seen_file))
    write_program(tmp_path, text)
    with checkout_server(tmp_path, ["--threads", "1"]) as server:
        assert (server.http_port, server.grpc_port, server.models) == (1, 2, ("m",))
        while not seen_file.exists() or not seen_file.read_text():
            pass
        seen = json.loads(seen_file.read_text())
    assert seen["arguments"][0] == "serve"
    assert seen["arguments"][-2:] == ["--threads", "1"]
    removed = ("PYTHONPATH", "LEWM_BACKEND", "GOMP_SPINCOUNT")
    assert not set(removed) & set(seen["environment"])


def test_a_checkout_whose_server_does_not_start_says_why(tmp_path: Path) -> None:
    write_program(tmp_path, "#!/bin/sh\necho out of luck >&2\nexit 1\n")
    with pytest.raises(LocalServerError, match="out of luck"), checkout_server(tmp_path):
        pass


def test_a_checkout_without_an_environment_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `make setup`"), checkout_server(tmp_path):
        pass
