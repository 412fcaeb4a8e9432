"""Measures of models that know their world, and of models that do not."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from lewm_models.calibration.reference import LatentReference
from lewm_models.card import Calibration
from lewm_models.distance.network import GoalDistance
from lewm_models.judging import latent_space, measure
from lewm_models.judging.latent_space import latent_measures, probe_measures
from lewm_models.judging.measure import Measure
from lewm_models.judging.prediction import prediction_measures, shuffled
from lewm_models.judging.recovery import Plan, recovery_measures
from lewm_models.judging.surprise import surprise_measures
from lewm_models.probe.fit import LabelledLatents, ProbeTraining, fit_probe
from lewm_models.probe.network import StateProbe, StateSpace
from lewm_models.recorded_sample import RecordedSample
from tests.lewm_models.judging.worlds import DIM, World, exact_plan, no_plan, walks

SPACE = StateSpace.of(("x", "y"), {})


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESAMPLES", 20)


def by_name(measures: list[Measure]) -> dict[str, Measure]:
    assert all(
        found.estimate.interval_95 is not None and found.baselines and found.samples
        for found in measures
    )
    return {found.name: found for found in measures}


def value(found: Measure) -> float:
    return found.estimate.value


def predictions(model: World) -> dict[str, Measure]:
    return by_name(
        prediction_measures(model, training=walks(seed=1), held_out=walks(seed=2), horizon=5)
    )


def test_a_model_that_knows_the_world_predicts_at_all_horizons() -> None:
    found = predictions(World())
    copies = []
    for horizon in range(1, 11):
        error = found[f"prediction_error_{horizon}"]
        assert value(error) < 1e-6
        assert error.samples == 30 * (13 - horizon)
        copies.append(error.baselines["copy the last"].value)
        if horizon <= 5:  # the world is linear, but a longer horizon needs more episodes
            assert error.baselines["linear model"].value < 0.3 * copies[-1]
    assert copies == sorted(copies)
    for horizon in (1, 5):
        assert value(found[f"action_sensitivity_{horizon}"]) > 1e3
    assert value(found["cost_range"]) > 2


def test_a_model_that_does_not_listen_is_as_good_as_copying() -> None:
    found = predictions(World(effect=0))
    for horizon in range(1, 11):
        error = found[f"prediction_error_{horizon}"]
        assert value(error) == pytest.approx(error.baselines["copy the last"].value)
        assert error.baselines["linear model"].value < value(error)
    assert value(found["action_sensitivity_1"]) == pytest.approx(1)
    assert value(found["cost_range"]) == pytest.approx(1)


def test_horizons_that_no_episode_has_are_left_out() -> None:
    found = by_name(
        prediction_measures(World(), training=walks(steps=3), held_out=walks(steps=4), horizon=5)
    )
    assert "prediction_error_4" in found
    assert "linear model" not in found["prediction_error_4"].baselines
    assert "prediction_error_5" not in found
    assert "action_sensitivity_5" not in found


def test_nothing_stays_in_its_place() -> None:
    assert (shuffled(100) != np.arange(100)).all()
    assert sorted(shuffled(100).tolist()) == list(range(100))


@cache
def quick_probe() -> StateProbe:
    training = walks(episodes=60, seed=1)
    assert training.states is not None
    labelled = LabelledLatents.finite(training.latents, training.states, training.episodes)
    return fit_probe(labelled, SPACE, ProbeTraining(steps=300, batch=256, width=32))


def recovery(
    plan: Plan, held_out: RecordedSample | None = None, blocks: int = 1
) -> dict[str, Measure]:
    return by_name(
        recovery_measures(
            World(),
            held_out or walks(episodes=60, seed=2),
            plan,
            blocks=blocks,
            plans=100,
            action_dim=2,
            probe=quick_probe(),
            space=SPACE,
        )
    )


@pytest.mark.parametrize("blocks", [1, 4])
def test_plans_that_reach_the_goal_are_told_from_random_ones(blocks: int) -> None:
    good, bad = recovery(exact_plan, blocks=blocks), recovery(no_plan, blocks=blocks)
    names = {f"recovery_{blocks}_{name}" for name in ("action_error", "action_correlation")}
    names |= {f"recovery_{blocks}_{name}" for name in ("latent_error", "state_error_x")}
    assert names < set(good)
    error = f"recovery_{blocks}_action_error"
    assert value(good[error]) < 0.7 * good[error].baselines["random actions"].value
    assert value(bad[error]) > 0.9 * bad[error].baselines["random actions"].value
    correlation = f"recovery_{blocks}_action_correlation"
    assert value(good[correlation]) > 0.7
    assert abs(value(bad[correlation])) < 0.3
    latent = f"recovery_{blocks}_latent_error"
    assert value(good[latent]) < 1e-6
    assert good[latent].baselines["logged actions"].value < 1e-6
    assert value(bad[latent]) > 0.5 * bad[latent].baselines["random actions"].value
    state = f"recovery_{blocks}_state_error_x"
    assert value(good[state]) < 5 < good[state].baselines["stay"].value
    assert value(good[state]) == pytest.approx(
        good[state].baselines["goal's own frame"].value, rel=1e-3
    )
    assert value(bad[state]) > 2 * value(good[state])


def test_goals_that_no_episode_has_are_not_planned_to() -> None:
    assert recovery(exact_plan, walks(steps=3), blocks=4) == {}


def test_states_that_are_missing_are_not_compared() -> None:
    held_out = walks(episodes=60, seed=2)
    assert held_out.states is not None
    held_out.states[::2] = np.nan
    found = recovery(exact_plan, held_out, blocks=2)
    assert 0 < found["recovery_2_state_error_x"].samples < found["recovery_2_latent_error"].samples


def test_surprise_tells_what_did_not_happen() -> None:
    found = by_name(surprise_measures(World(), walks(), calibration=None, reference=None))
    assert value(found["surprise_true"]) < 1e-5
    assert found["surprise_true"].baselines["copy the last"].value > 0.5
    for kind in ("shuffled", "jumped", "frozen"):
        assert value(found[f"surprise_{kind}"]) > 0.5
        assert value(found[f"surprise_{kind}_above_true"]) == 1
    assert not [name for name in found if name.startswith(("false_alarms", "surprise_true_"))]


def test_a_model_that_copies_does_not_notice_a_frozen_camera() -> None:
    found = by_name(surprise_measures(World(effect=0), walks(), calibration=None, reference=None))
    assert value(found["surprise_frozen_above_true"]) == 0
    assert value(found["surprise_shuffled_above_true"]) > 0.9


def test_alarms_are_counted_against_the_limits() -> None:
    sample = walks()
    norms = sample.latents.norm(dim=1)
    calibration = Calibration(
        frames=1000,
        norm_mean=float(norms.mean()),
        norm_std=float(norms.std()),
        zscore_limit=1.0,
        false_alarm_rate=1e-3,
        mahalanobis_limit=1e6,
        surprise_limit=0.5,
        sigreg_window=128,
        sigreg_limit=1e6,
    )
    reference = LatentReference.fit(sample.latents)
    measures = surprise_measures(World(), sample, calibration=calibration, reference=reference)
    found = {measure.name: measure for measure in measures}
    assert value(found["false_alarms_mahalanobis"]) == 0
    assert value(found["false_alarms_surprise"]) == 0
    assert 0.2 < value(found["false_alarms_norm"]) < 0.4
    assert value(found["false_alarms_any"]) == value(found["false_alarms_norm"])
    assert value(found["false_alarms_sigreg"]) == 0
    assert found["false_alarms_any"].baselines["expected at most"].value == 1e-3
    detected = found["surprise_shuffled_detected"]
    assert value(detected) > 0.9
    assert detected.baselines["true"].value == 0


def straight_paths() -> RecordedSample:
    sample = walks(episodes=60)
    directions = torch.randn(60, 1, DIM, generator=torch.Generator().manual_seed(1))
    times = torch.arange(13.0)[:, None]
    return replace(
        sample, latents=(times * directions / directions.norm(dim=-1, keepdim=True)).flatten(0, 1)
    )


def test_straight_paths_are_straight_and_ranked_by_their_length() -> None:
    found = by_name(latent_measures(straight_paths(), None))
    assert value(found["straightness"]) == pytest.approx(1, abs=1e-5)
    assert found["straightness"].baselines["pixels"].value == pytest.approx(-0.5, abs=0.1)
    assert value(found["rank_correlation_latent"]) > 0.98
    assert abs(found["rank_correlation_latent"].baselines["pixels"].value) < 0.1
    assert "rank_correlation_distance" not in found


def test_a_learned_distance_is_compared_with_the_latents() -> None:
    torch.manual_seed(0)
    distance = GoalDistance(torch.zeros(DIM), torch.ones(DIM), width=4).requires_grad_(False)
    found = by_name(latent_measures(walks(), distance))["rank_correlation_distance"]
    assert set(found.baselines) == {"latent", "pixels"}
    assert -1 < value(found) < found.baselines["latent"].value


def test_the_spread_of_gaussian_and_of_flat_latents() -> None:
    sample = walks(episodes=60)
    gaussian = torch.randn(len(sample), DIM, generator=torch.Generator().manual_seed(3))
    found = by_name(latent_measures(replace(sample, latents=gaussian), None))
    assert value(found["sigreg"]) == pytest.approx(
        found["sigreg"].baselines["Gaussian"].value, rel=0.2
    )
    assert value(found["sigreg"]) == pytest.approx(1.05, rel=0.2)
    assert value(found["effective_rank"]) == pytest.approx(DIM, rel=0.03)
    flat = gaussian * torch.tensor([1.0, 1.0] + [0.0] * (DIM - 2))
    found = by_name(latent_measures(replace(sample, latents=flat), None))
    assert value(found["effective_rank"]) == pytest.approx(2, rel=0.02)
    assert value(found["sigreg"]) > 5


def test_sigreg_needs_enough_frames() -> None:
    names = {found.name for found in latent_measures(walks(episodes=5), None)}
    assert "sigreg" not in names
    assert latent_space.MIN_SIGREG_FRAMES > 5 * 13


def test_a_probe_is_compared_with_one_of_pixels() -> None:
    training, held_out = walks(episodes=60, seed=1), walks(episodes=40, seed=2)
    found = by_name(probe_measures(quick_probe(), SPACE, training=training, held_out=held_out))
    assert set(found) == {"probe_r2_x", "probe_r2_y", "probe_error_x", "probe_error_y"}
    assert value(found["probe_r2_x"]) > 0.98
    assert found["probe_r2_x"].baselines["linear probe"].value > 0.999
    assert found["probe_r2_x"].baselines["pixels"].value < 0.1
    error = found["probe_error_x"]
    assert error.unit == "of x"
    assert value(error) < 3 < 15 < error.baselines["mean"].value
