"""A program that prepares a recording, trains, and prints its peak of memory in MiB."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lewm_models.recordings.recording import open_recording
from lewm_models.training import preparation
from lewm_models.training.preparation import RecordingSource
from lewm_models.training.run import train
from lewm_models.training.settings import Choices, recording_run
from tests.lewm_models.training.short_run import CONFIG, TRAINING


def main(recording: Path, output: Path) -> None:
    torch.set_num_threads(1)
    preparation.PART_BYTES = 1 << 20
    with open_recording(recording) as opened:
        run = recording_run(opened, Choices(crop="center", distance_steps=40), name="large")
        small = replace(CONFIG, image_size=16, action_block=run.config.action_block)
        assert isinstance(run.source, RecordingSource)
        source = replace(run.source, image_size=16)
        run = replace(run, config=small, source=source, training=replace(TRAINING, steps=60))
        train(run, output, device=torch.device("cpu"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
