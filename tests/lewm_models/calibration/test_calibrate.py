"""Calibration on episodes in which the frames change a little from step to step."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.calibration import calibrate as module
from lewm_models.calibration.calibrate import (
    CalibrationEpisode,
    calibrate,
    fixed_sigreg_directions,
    held_out_distances,
    one_step_errors,
    prepared_episodes,
    scores_per_answer,
    sigreg_window_scores,
)
from lewm_models.calibration.limits import anomaly_limit, quantiles
from lewm_models.calibration.reference import LatentReference, sha256_of
from lewm_models.card import Calibration, ModelCard
from lewm_models.lewm import LeWM
from lewm_models.loss import sigreg
from lewm_models.preprocessing import resize
from lewm_models.training.environment_source import EnvironmentSource
from lewm_models.training.prepared import PreparedData
from tests.lewm_models.examples import STATE_INPUT, example_card, tiny_model

STEPS = 40


@pytest.fixture(autouse=True)
def _few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIGREG_WINDOW_COUNT", 50)


def example_episode(seed: int, with_actions: bool = True) -> CalibrationEpisode:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 256, (1, 16, 16, 3), generator=generator)
    drift = torch.randint(-9, 10, (STEPS + 1, 16, 16, 3), generator=generator).cumsum(0)
    frames = (first + drift).clamp(0, 255).to(torch.uint8)
    actions = torch.rand(STEPS, 2, generator=generator) * 2 - 1
    return CalibrationEpisode(frames, actions if with_actions else None)


@pytest.fixture(scope="module")
def model() -> LeWM:
    return tiny_model()


@pytest.fixture
def card(model: LeWM) -> ModelCard:
    return replace(example_card(model), action_mean=(0.1, -0.1), action_std=(0.5, 0.6))


@torch.inference_mode()
def latents_of(model: LeWM, episodes: Iterable[CalibrationEpisode]) -> Tensor:
    return torch.cat([model.encode(episode.frames) for episode in episodes])


def run_calibration(
    model: LeWM, card: ModelCard, episodes: Iterable[CalibrationEpisode]
) -> tuple[Calibration, LatentReference]:
    calibrated_card, reference = calibrate(model, card, episodes)
    assert calibrated_card.calibration is not None
    return calibrated_card.calibration, reference


def test_a_calibration_holds_the_scores_of_the_frames(model: LeWM, card: ModelCard) -> None:
    episodes = [example_episode(seed) for seed in range(30)]
    calibration, reference = run_calibration(model, card, iter(episodes))
    latents = latents_of(model, episodes)
    norms = latents.norm(dim=-1)
    assert calibration.frames == len(latents) == 30 * (STEPS + 1)
    assert calibration.norm_mean == pytest.approx(float(norms.mean()), rel=1e-4)
    assert calibration.norm_std == pytest.approx(float(norms.std()), rel=1e-3)
    assert calibration.norm_quantiles == pytest.approx(quantiles(norms), rel=1e-4)
    assert calibration.false_alarm_rate == 1e-3
    assert calibration.reference == sha256_of(reference.to_bytes())
    # Predictions from one and from two frames, one and two blocks of five steps before the target.
    assert calibration.steps == 30 * (STEPS + 1 - 5) + 30 * (STEPS + 1 - 10)
    rate = 1e-3 / scores_per_answer(card.config.history)
    assert calibration.mahalanobis_limit == pytest.approx(
        anomaly_limit(held_out_distances(latents), rate), rel=1e-3
    )
    for name in ("mahalanobis", "surprise", "sigreg"):
        limit = getattr(calibration, f"{name}_limit")
        assert limit > getattr(calibration, f"{name}_quantiles")[-2]


def test_an_answer_with_three_frames_has_ten_scores() -> None:
    # Norm and distance of three frames and a goal, surprise, SIGReg.
    assert scores_per_answer(3) == 10


def test_new_ordinary_frames_are_within_the_limit(model: LeWM, card: ModelCard) -> None:
    episodes = (example_episode(seed) for seed in range(100))
    calibration, reference = run_calibration(model, card, episodes)
    assert calibration.mahalanobis_limit is not None
    new_latents = latents_of(model, (example_episode(1000 + seed) for seed in range(100)))
    alarms = (reference.distances(new_latents) > calibration.mahalanobis_limit).float().mean()
    assert float(alarms) <= 1e-3


def test_one_step_errors_are_distances_from_the_model_s_predictions(
    model: LeWM, card: ModelCard
) -> None:
    episode = example_episode(0)
    assert episode.actions is not None
    latents = latents_of(model, [episode])
    actions = episode.actions.clone()
    actions[7] = torch.nan
    errors = one_step_errors(model, card, latents=latents, actions=actions, context=2)
    zscored = (actions - torch.tensor([0.1, -0.1])) / torch.tensor([0.5, 0.6])
    zscored[7] = 0
    start = 3
    blocks = zscored[start : start + 10].reshape(1, 2, 10)
    with torch.inference_mode():
        predicted = model.predict(latents[None, [start, start + 5]], blocks)[0, -1]
    assert len(errors) == STEPS + 1 - 10
    assert float(errors[start]) == pytest.approx(float((latents[start + 10] - predicted).norm()))
    too_short = one_step_errors(model, card, latents=latents[:10], actions=actions[:9], context=2)
    assert len(too_short) == 0


def test_one_frame_a_block_gives_the_errors_of_these_frames(model: LeWM, card: ModelCard) -> None:
    episode = example_episode(0)
    assert episode.actions is not None
    latents = latents_of(model, [episode])
    steps = STEPS // 5 * 5
    complete = one_step_errors(
        model, card, latents=latents[: steps + 1], actions=episode.actions[:steps], context=2
    )
    sparse = one_step_errors(
        model,
        card,
        latents=latents[: steps + 1 : 5],
        actions=episode.actions[:steps],
        context=2,
        frame_every=5,
    )
    assert torch.allclose(sparse, complete[::5], rtol=1e-4)
    with pytest.raises(ValueError, match=r"action block of 5 is no multiple of 4"):
        one_step_errors(
            model, card, latents=latents, actions=episode.actions, context=1, frame_every=4
        )


def test_a_calibration_of_one_frame_a_block(model: LeWM, card: ModelCard) -> None:
    sparse = []
    for seed in range(130):
        episode = example_episode(seed)
        assert episode.actions is not None
        steps = STEPS // 5 * 5
        frames, actions = episode.frames[: steps + 1 : 5], episode.actions[:steps]
        sparse.append(CalibrationEpisode(frames, actions, frame_every=5))
    calibration, _ = run_calibration(model, card, sparse)
    count = STEPS // 5 + 1
    assert calibration.frames == 130 * count
    assert calibration.steps == 130 * (count - 1) + 130 * (count - 2)
    assert calibration.sigreg_limit is not None


def test_without_actions_surprise_is_not_calibrated(model: LeWM, card: ModelCard) -> None:
    episodes = [example_episode(seed, with_actions=False) for seed in range(30)]
    calibration, _ = run_calibration(model, card, episodes)
    assert (calibration.steps, calibration.surprise_limit) == (None, None)
    assert calibration.sigreg_limit is not None


def test_a_window_of_sigreg_has_a_fixed_size(model: LeWM, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one run as long as a window, all windows hold the same latents."""
    monkeypatch.setattr(module, "SIGREG_RUN_FRAMES", module.SIGREG_WINDOW)
    monkeypatch.setattr(module, "SIGREG_WINDOW_COUNT", 3)
    latents = torch.randn(module.SIGREG_WINDOW, 8, generator=torch.Generator().manual_seed(0))
    expected = float(sigreg(latents[None], fixed_sigreg_directions(8)))
    assert sigreg_window_scores([(latents, 1)]).tolist() == pytest.approx([expected] * 3)
    assert len(sigreg_window_scores([(latents[1:], 1)])) == 0


def test_too_few_frames_are_refused(model: LeWM, card: ModelCard) -> None:
    with pytest.raises(ValueError, match="at least 1000 frames, got 82"):
        calibrate(model, card, [example_episode(0), example_episode(1)])


def test_frames_with_the_same_latent_are_refused(model: LeWM, card: ModelCard) -> None:
    black = CalibrationEpisode(torch.zeros(1200, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="the same latent"):
        calibrate(model, card, [black])


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    source = EnvironmentSource("two-room", episodes=5, steps=9, image_size=32, seed=0)
    return source.prepare(tmp_path, lambda done, total: None, lambda line: None)


def test_prepared_episodes_have_the_model_s_image_size(data: PreparedData) -> None:
    episodes = list(prepared_episodes(data, np.array([3, 4]), image_size=16))
    assert len(episodes) == 2
    for piece, episode in zip((3, 4), episodes, strict=True):
        rows = np.array(data.rows(piece))
        frames = torch.from_numpy(data.frames.read(rows))
        assert torch.equal(episode.frames, resize(frames, 16))
        assert episode.actions is not None
        assert np.array_equal(episode.actions.numpy(), data.actions[rows[:-1]])


def test_states_that_a_model_takes_belong_to_their_frames(data: PreparedData) -> None:
    assert data.states is not None
    model = tiny_model(image_size=32, state_input=STATE_INPUT)
    (episode,) = prepared_episodes(data, np.array([3]), image_size=32, with_states=True)
    assert episode.states is not None
    assert np.array_equal(episode.states.numpy(), data.states[np.array(data.rows(3))])
    with torch.no_grad():
        expected = model.encode(episode.frames, episode.states)
    torch.testing.assert_close(module._encode(model, episode), expected)
    (hidden,) = prepared_episodes(data, np.array([3]), image_size=32)
    assert hidden.states is None


def test_of_many_data_evenly_spaced_episodes_are_taken(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RECORDED_FRAMES", 35)
    episodes = list(prepared_episodes(data, np.arange(5), image_size=32))
    assert len(episodes) == 3
    for piece, episode in zip((0, 2, 4), episodes, strict=True):
        assert np.array_equal(episode.frames.numpy(), data.frames.read(np.array(data.rows(piece))))


def test_a_long_episode_is_given_in_parts(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EPISODE_FRAMES", 4)
    monkeypatch.setattr(module, "MAX_RECORDED_FRAMES", 9)
    episodes = list(prepared_episodes(data, np.array([2]), image_size=32))
    assert [len(episode.frames) for episode in episodes] == [4, 4]
    assert all(episode.actions is not None and len(episode.actions) == 3 for episode in episodes)
