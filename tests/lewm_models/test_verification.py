"""Verification accepts models that can be served, and says what is wrong with others."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lewm_models import checkpoint
from lewm_models.checkpoint import PRETRAINED, CheckpointError
from lewm_models.lewm import LeWM, initialise
from lewm_models.verification import verify
from tests.lewm_models.examples import STATE_INPUT, example_card, tiny_model


def save_model(folder: Path, model: LeWM) -> Path:
    checkpoint.save(folder, model, example_card(model))
    return folder


def set_gates_to_zero(model: LeWM) -> None:
    initialise(model, torch.Generator().manual_seed(0))


def make_latents_equal(model: LeWM) -> None:
    model.get_parameter("projector.net.3.weight").data.zero_()


def make_predictions_overflow(model: LeWM) -> None:
    model.get_parameter("pred_proj.net.3.weight").data.fill_(3e38)


def make_latents_overflow(model: LeWM) -> None:
    model.get_parameter("projector.net.3.weight").data.fill_(3e38)


def make_statistics_negative(model: LeWM) -> None:
    model.get_buffer("projector.net.1.running_var").fill_(-1)


@pytest.mark.parametrize("history", [1, 3])
def test_a_good_model_passes_every_check(tmp_path: Path, history: int) -> None:
    findings = list(verify(save_model(tmp_path, tiny_model(history=history))))
    checks = [finding.check for finding in findings]
    assert checks == ["card", "tensors", "encode", "roll-out", "actions", "version"]
    assert not any(finding.warnings for finding in findings)
    assert findings[-1].detail == checkpoint.version(tmp_path)


def test_the_effect_of_each_state_is_measured(tmp_path: Path) -> None:
    model = tiny_model(state_input=STATE_INPUT)
    (finding,) = (item for item in verify(save_model(tmp_path, model)) if item.check == "states")
    assert re.fullmatch(r"change the latent, of its norm: x 0\.\d+, y 0\.\d+", finding.detail)
    with torch.no_grad():
        model.get_parameter("state_encoder.net.2.weight").zero_()
    with pytest.raises(CheckpointError, match="states: do not change the latent"):
        list(verify(save_model(tmp_path, model)))


def test_an_action_dimension_without_effect_is_warned_of(tmp_path: Path) -> None:
    """The mean effect of all actions does not show it."""
    model = tiny_model()
    block, dimensions = model.config.action_block, model.config.action_dim
    taken = torch.zeros(block, dimensions, dtype=torch.bool)
    taken[:, 1] = True
    first = model.get_parameter("action_encoder.patch_embed.weight")
    with torch.no_grad():
        first[:, taken.flatten()] *= 1e-3
    card = replace(
        example_card(model), provenance={"recording": {"action_labels": ["arm", "gripper"]}}
    )
    checkpoint.save(tmp_path, model, card)
    (finding,) = (item for item in verify(tmp_path) if item.check == "actions")
    assert "arm 100%, gripper 0%" in finding.detail
    (warning,) = finding.warnings
    assert warning.startswith("action gripper has only 0.")


def test_the_embedded_model_passes_and_keeps_its_version() -> None:
    findings = list(verify(PRETRAINED / "two-room"))
    # Caches that servers share use the version: it may only change with the model.
    assert (findings[-1].check, findings[-1].detail) == ("version", "b5819e1ba8d64a0a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_gates_to_zero, r"^actions: change the predicted latent by 0 of its norm"),
        (make_latents_equal, r"^encode: gives a black, a white and a noisy frame the same latent"),
        (
            make_statistics_negative,
            r"model.safetensors: projector.net.1.running_var: holds variances below 0",
        ),
        (make_latents_overflow, r"^encode: gives latents that are not finite"),
        (
            make_predictions_overflow,
            r"^roll-out: gives latents that are not finite within 5 steps from 1 frames",
        ),
    ],
)
def test_a_damaged_model_is_refused(
    tmp_path: Path, damage: Callable[[LeWM], None], message: str
) -> None:
    model = tiny_model()
    damage(model)
    with pytest.raises(CheckpointError, match=message):
        list(verify(save_model(tmp_path, model)))


def test_a_folder_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.json: cannot be read"):
        list(verify(tmp_path))
