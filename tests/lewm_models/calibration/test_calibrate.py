"""What ordinary frames are, measured on episodes that move a little from frame to frame."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lewm_models.calibration import calibrate as module
from lewm_models.calibration.calibrate import (
    Episode,
    calibrate,
    held_out_distances,
    judgements,
    one_step_errors,
)
from lewm_models.calibration.reference import digest
from lewm_models.calibration.tail import limit, quantiles
from lewm_models.card import ModelCard
from lewm_models.lewm import LeWM
from lewm_models.objective import sigreg
from tests.lewm_models.examples import card_of, tiny

STEPS = 40


@pytest.fixture(autouse=True)
def _few_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(module, "WINDOWS", 50)
    yield
    torch.set_num_threads(threads)


def episode(seed: int, with_actions: bool = True) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 256, (1, 16, 16, 3), generator=generator)
    drift = torch.randint(-9, 10, (STEPS + 1, 16, 16, 3), generator=generator).cumsum(0)
    frames = (first + drift).clamp(0, 255).to(torch.uint8)
    actions = torch.rand(STEPS, 2, generator=generator) * 2 - 1
    return Episode(frames, actions if with_actions else None)


@pytest.fixture(scope="module")
def model() -> LeWM:
    return tiny()


@pytest.fixture
def card(model: LeWM) -> ModelCard:
    return replace(card_of(model), action_mean=(0.1, -0.1), action_std=(0.5, 0.6))


@torch.inference_mode()
def latents_of(model: LeWM, *episodes: Episode) -> Tensor:
    return torch.cat([model.encode(one.frames) for one in episodes])


def test_a_calibration_tells_the_scores_of_the_frames(model: LeWM, card: ModelCard) -> None:
    episodes = [episode(seed) for seed in range(30)]
    calibrated, reference = calibrate(model, card, iter(episodes))
    calibration = calibrated.calibration
    assert calibration is not None
    latents = latents_of(model, *episodes)
    norms = latents.norm(dim=-1)
    assert calibration.frames == len(latents) == 30 * (STEPS + 1)
    assert calibration.norm_mean == pytest.approx(float(norms.mean()), rel=1e-4)
    assert calibration.norm_std == pytest.approx(float(norms.std()), rel=1e-3)
    assert calibration.norm_quantiles == pytest.approx(quantiles(norms), rel=1e-4)
    assert calibration.false_alarm_rate == 1e-3
    assert calibration.reference == digest(reference.to_bytes())
    # Contexts of one and of two frames, one and two blocks of five before the newest.
    assert calibration.steps == 30 * (STEPS + 1 - 5) + 30 * (STEPS + 1 - 10)
    rate = 1e-3 / judgements(card.config.history)
    assert calibration.mahalanobis_limit == pytest.approx(
        limit(held_out_distances(latents), rate), rel=1e-3
    )
    for name in ("mahalanobis", "surprise", "sigreg"):
        threshold = getattr(calibration, f"{name}_limit")
        assert threshold > getattr(calibration, f"{name}_quantiles")[-2]


def test_an_answer_is_judged_ten_times_with_three_frames() -> None:
    # Three frames and a goal by norm and distance, surprise, SIGReg.
    assert judgements(3) == 10


def test_new_ordinary_frames_lie_within_the_limit(model: LeWM, card: ModelCard) -> None:
    calibrated, reference = calibrate(model, card, (episode(seed) for seed in range(100)))
    calibration = calibrated.calibration
    assert calibration is not None
    assert calibration.mahalanobis_limit is not None
    fresh = latents_of(model, *(episode(1000 + seed) for seed in range(100)))
    alarms = (reference.distances(fresh) > calibration.mahalanobis_limit).float().mean()
    assert float(alarms) <= 1e-3


def test_one_step_errors_are_those_of_the_model(model: LeWM, card: ModelCard) -> None:
    one = episode(0)
    assert one.actions is not None
    latents = latents_of(model, one)
    actions = one.actions.clone()
    actions[7] = torch.nan
    errors = one_step_errors(model, card, latents, actions, 2)
    zscored = (actions - torch.tensor([0.1, -0.1])) / torch.tensor([0.5, 0.6])
    zscored[7] = 0
    start = 3
    blocks = zscored[start : start + 10].reshape(1, 2, 10)
    with torch.inference_mode():
        predicted = model.predict(latents[None, [start, start + 5]], blocks)[0, -1]
    assert len(errors) == STEPS + 1 - 10
    assert float(errors[start]) == pytest.approx(float((latents[start + 10] - predicted).norm()))
    assert len(one_step_errors(model, card, latents[:10], actions[:9], 2)) == 0


def test_without_actions_there_is_no_surprise(model: LeWM, card: ModelCard) -> None:
    episodes = [episode(seed, with_actions=False) for seed in range(30)]
    calibration = calibrate(model, card, episodes)[0].calibration
    assert calibration is not None
    assert (calibration.steps, calibration.surprise_limit) == (None, None)
    assert calibration.sigreg_limit is not None


def test_windows_are_of_one_size(model: LeWM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run as long as a window leaves nothing to chance but the order."""
    monkeypatch.setattr(module, "RUN", module.SIGREG_WINDOW)
    monkeypatch.setattr(module, "WINDOWS", 3)
    latents = torch.randn(module.SIGREG_WINDOW, 8, generator=torch.Generator().manual_seed(0))
    directions = module.fixed_directions(8)
    expected = float(sigreg(latents[None], directions))
    assert module.window_scores([(latents, 1)]).tolist() == pytest.approx([expected] * 3)
    assert len(module.window_scores([(latents[1:], 1)])) == 0


def test_too_few_frames_are_refused(model: LeWM, card: ModelCard) -> None:
    with pytest.raises(ValueError, match="at least 1000 frames, got 82"):
        calibrate(model, card, [episode(0), episode(1)])


def test_frames_that_look_the_same_are_refused(model: LeWM, card: ModelCard) -> None:
    same = Episode(torch.zeros(1200, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="the same latent"):
        calibrate(model, card, [same])
