"""Verification passes what can be served, and says what is wrong with the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lewm_models import checkpoint
from lewm_models.checkpoint import CheckpointError
from lewm_models.lewm import LeWM, initialise
from lewm_models.verification import verify
from tests.lewm_models.examples import card_of, tiny


def saved(folder: Path, model: LeWM) -> Path:
    checkpoint.save(folder, model, card_of(model))
    return folder


def close_gates(model: LeWM) -> None:
    initialise(model, torch.Generator().manual_seed(0))


def collapse(model: LeWM) -> None:
    model.get_parameter("projector.net.3.weight").data.zero_()


def explode(model: LeWM) -> None:
    model.get_parameter("pred_proj.net.3.weight").data.fill_(3e38)


def spoil_statistics(model: LeWM) -> None:
    model.get_buffer("projector.net.1.running_var").fill_(-1)


@pytest.mark.parametrize("history", [1, 3])
def test_a_sound_model_passes_every_check(tmp_path: Path, history: int) -> None:
    findings = list(verify(saved(tmp_path, tiny(history=history))))
    checks = [finding.check for finding in findings]
    assert checks == ["card", "tensors", "encode", "roll-out", "actions", "version"]
    assert findings[-1].detail == checkpoint.version(tmp_path)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (close_gates, r"^actions: change the predicted latent by 0 of its norm"),
        (collapse, r"^encode: gives a black, a white and a noisy frame the same latent"),
        (spoil_statistics, r"^encode: gives latents that are not finite"),
        (explode, r"^roll-out: gives latents that are not finite within 5 steps from 1 frames"),
    ],
)
def test_an_unsound_model_is_refused(
    tmp_path: Path, damage: Callable[[LeWM], None], complaint: str
) -> None:
    model = tiny()
    damage(model)
    with pytest.raises(CheckpointError, match=complaint):
        list(verify(saved(tmp_path, model)))


def test_a_folder_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.json: cannot be read"):
        list(verify(tmp_path))
