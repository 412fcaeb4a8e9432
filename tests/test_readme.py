"""What the documents tell a reader to type works as it is written."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lewm_serve.cli.main import app
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("client/*.md"),
        *ROOT.glob("examples/*.md"),
    ]
)

CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MAKE_TARGET = re.compile(r"`make (\w+)`|^make (\w+)", re.MULTILINE)


def lewm_commands() -> Iterator[tuple[str, str]]:
    """Each document and each `lewm` command in its code blocks."""
    for document in DOCUMENTS:
        for language, block in CODE_BLOCK.findall(document.read_text()):
            if language in ("", "sh", "bash"):
                for line in block.replace("\\\n", " ").splitlines():
                    command = line.partition("#")[0].strip()
                    if re.match(r"(\.venv/bin/)?lewm ", command):
                        yield document.name, command


def block(language: str, containing: str) -> str:
    """The code block of the README that contains a text."""
    blocks = CODE_BLOCK.findall((ROOT / "README.md").read_text())
    (found,) = (text for kind, text in blocks if kind == language and containing in text)
    return str(found)


@pytest.mark.parametrize(("document", "command"), list(lewm_commands()))
def test_commands_have_the_documented_options(document: str, command: str) -> None:
    _, *words = shlex.split(re.sub(r"\[[^]]*\]|…", "", command))
    parsed: Any = typer.main.get_command(app)
    while hasattr(parsed, "commands"):
        parsed = parsed.commands[words.pop(0)]
    parsed.make_context(parsed.name or "lewm", words)


def test_there_are_commands_to_check() -> None:
    assert len(list(lewm_commands())) >= 10


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = {first or second for first, second in MAKE_TARGET.findall(text)}
    assert named
    assert named <= targets


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the embedded model."""
    log = tmp_path_factory.mktemp("readme") / "log.jsonl"
    with ServerProcess(log) as server:
        yield server.wait_ready()


def run(command: list[str], code: str) -> str:
    """What the code prints when a reader runs it in the repository's folder."""
    done = subprocess.run(
        command,
        input=code,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plan_by_curl(embedded: ServerProcess) -> None:
    code = block("", "curl -s").replace("http://127.0.0.1:8000", embedded.url)
    plan = json.loads(run(["bash", "-euo", "pipefail"], code))
    assert plan["status"] == "completed"
    assert plan["seed"] == 7
    assert len(plan["actions"]) == 25
    assert all(-1 <= value <= 1 for row in plan["actions"] for value in row)
    assert plan["health"]["status"] == "ok"


def test_the_plan_by_python(embedded: ServerProcess) -> None:
    code = block("python", "PlannerClient").replace("127.0.0.1:50051", embedded.target)
    printed = run([sys.executable, "-"], code)
    assert printed.rstrip().endswith("completed")
    assert len(re.findall(r"-?\d+\.\d*", printed)) >= 11  # five rows of two numbers, and a cost
