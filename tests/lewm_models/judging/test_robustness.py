"""What disturbances of the camera do to a model, and whether they are noticed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.card import Calibration
from lewm_models.checkpoint import Checkpoint
from lewm_models.judging import robustness
from lewm_models.judging.robustness import Disturbance, disturb
from tests.lewm_models.examples import TINY, example_card, tiny_model
from tests.lewm_models.judging.worlds import no_plan

BLOCK = TINY.action_block
KINDS = (*robustness.PICTURE_FAULTS, "dropped frames", "repeated frames")


@dataclass(frozen=True)
class Film:
    """Episodes of smooth pictures that move to the right; see `Pieces`."""

    count: int = 12
    length: int = 60
    frame_every: int = 1

    @property
    def episodes(self) -> NDArray[np.int64]:
        return np.arange(self.count)

    @property
    def steps(self) -> NDArray[np.int64]:
        return np.full(self.count, self.length)

    def read_frames(self, piece: int, steps: NDArray[np.int64]) -> Tensor:
        places = np.arange(TINY.image_size)
        waves = np.sin((places[None, None] + piece - steps[:, None, None]) / 3)
        pictures = 127 + 60 * waves * np.cos(places[None, :, None] / 4)
        return torch.from_numpy(pictures.astype(np.uint8))[..., None].expand(-1, -1, -1, 3)

    def read_actions(self, piece: int) -> NDArray[np.float32]:
        generator = np.random.default_rng(piece)
        return generator.uniform(-1, 1, (self.length, TINY.action_dim)).astype(np.float32)

    def read_states(self, piece: int) -> NDArray[np.float32] | None:
        return None


def checkpoint(*, zscore_limit: float = 1e9) -> Checkpoint:
    """A small model that is calibrated with this limit of the norm."""
    model = tiny_model().eval()
    card = replace(
        example_card(model),
        calibration=Calibration(
            frames=1000, norm_mean=0.0, norm_std=1.0, zscore_limit=zscore_limit
        ),
    )
    return Checkpoint(model, card, "version", reference=None)


def disturbances(model: Checkpoint) -> dict[tuple[str, int], Disturbance]:
    found = disturb(model, Film(), plan=no_plan, plans=3)
    return {(item.kind, item.level): item for item in found}


def test_there_are_three_strengths_of_each_kind_and_undisturbed_frames() -> None:
    found = disturbances(checkpoint())
    assert set(found) == {("none", 0), *((kind, level) for kind in KINDS for level in (1, 2, 3))}
    for item in found.values():
        assert item.prediction_error > 0
        assert item.action_error > 0
        assert bool(item.strength) == (item.level > 0)
    errors = [found[kind, 3].prediction_error for kind in ("noise", "exposure", "occlusion")]
    assert all(error != found["none", 0].prediction_error for error in errors)


@pytest.mark.parametrize(("limit", "share"), [(1e9, 0.0), (1e-9, 1.0)])
def test_the_share_that_is_noticed_is_by_the_cards_limits(limit: float, share: float) -> None:
    found = disturbances(checkpoint(zscore_limit=limit))
    assert {item.noticed for item in found.values()} == {share}


def test_without_a_calibration_nothing_is_known_of_alarms() -> None:
    model = checkpoint()
    found = disturbances(replace(model, card=replace(model.card, calibration=None)))
    assert {item.noticed for item in found.values()} == {None}


def test_disturbances_are_the_same_every_time() -> None:
    assert disturbances(checkpoint()) == disturbances(checkpoint())
