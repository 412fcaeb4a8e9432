"""Fuzz one reader: `python -m tests.fuzzing.program NAME [options of libFuzzer]`.

libFuzzer changes the examples, follows which code they run, and stops at the first fault, which it
writes to a file. `-max_total_time=SECONDS` and `-runs=N` bound it.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lewm_serve", "lewm_models", "lewm_client"]):
    from tests.fuzzing.targets import TARGETS


def main(name: str, options: list[str]) -> None:
    target = TARGETS[name]

    def run(data: bytes) -> None:
        with suppress(*target.refusals):
            target.read(data)

    with tempfile.TemporaryDirectory(prefix="lewm-corpus-") as corpus:
        for number, example in enumerate(target.examples()):
            target.read(example)  # an example has to be valid: fuzzing begins with it
            (Path(corpus) / str(number)).write_bytes(example)
        limits = [f"-rss_limit_mb={target.memory_mib}", "-timeout=10", "-max_len=4096"]
        atheris.Setup([sys.argv[0], *limits, *options, corpus], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
