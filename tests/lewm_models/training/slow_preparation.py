"""A program that a test kills: it prepares a recording, and saves after each part."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lewm_models.training import preparation
from tests.lewm_models.training.test_preparation import robot_source


def main(recording: Path, folder: Path) -> None:
    preparation.MIN_POOL_BYTES = 0
    preparation.PART_BYTES = 7 * 64 * 96 * 3
    preparation.SAVE_PERIOD_S = 0.0

    def report_slowly(done: int, total: int) -> None:
        print(done, total, flush=True)
        time.sleep(0.5 if done < 49 else 60)

    robot_source(recording).prepare(folder, report_slowly, lambda line: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
