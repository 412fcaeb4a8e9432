"""Probes of worlds in which the right answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lewm_models.probe.fit import (
    LabelledLatents,
    ProbeTraining,
    TooFewStates,
    fit_probe,
    read_states,
)
from lewm_models.probe.network import StateSpace
from lewm_models.probe.quality import describe_probe, mean_errors, r_squared
from lewm_models.probe.ridge import fit_ridge

SPACE = StateSpace.of(("x", "angle", "noise"), {"angle": 360.0})
QUICK = ProbeTraining(steps=400, width=32, batch=256)


def world(frames: int, seed: int) -> LabelledLatents:
    """Latents that are linear in x and in the sine and cosine of an angle, and do not know the
    third state."""
    generator = np.random.default_rng(seed)
    x, angle = generator.uniform(0, 200, frames), generator.uniform(-180, 180, frames)
    features = np.stack([x / 100, np.sin(np.radians(angle)), np.cos(np.radians(angle))], axis=1)
    mixing = np.random.default_rng(0).normal(size=(3, 8))
    states = np.stack([x, angle, generator.normal(size=frames)], axis=1).astype(np.float32)
    return LabelledLatents(
        torch.from_numpy((features @ mixing).astype(np.float32)), states, np.arange(frames) // 20
    )


def test_what_the_latents_know_is_read_and_what_they_do_not_know_is_not() -> None:
    training, held_out = world(2000, seed=1), world(500, seed=2)
    probe = fit_probe(training, SPACE, QUICK)
    card = describe_probe(probe, SPACE, training=training, held_out=held_out)
    assert (card.states, card.periods) == (("x", "angle", "noise"), (0.0, 360.0, 0.0))
    assert min(card.r2[:2]) > 0.99
    assert min(card.ridge_r2[:2]) > 0.999
    assert card.error[0] < 5
    assert card.error[1] < 8
    assert -0.3 < card.r2[2] < 0.1
    assert (card.training_frames, card.held_out_frames) == (2000, 500)
    assert card.low == pytest.approx(training.states.min(axis=0))
    assert card.high == pytest.approx(training.states.max(axis=0))


def test_the_mlp_reads_what_no_linear_map_can() -> None:
    training, held_out = world(2000, seed=1), world(500, seed=2)

    def curved(part: LabelledLatents) -> LabelledLatents:
        states = part.latents[:, :1].square().numpy()
        return replace(part, states=states)

    space = StateSpace.of(("square",), {})
    probe = fit_probe(curved(training), space, QUICK)
    card = describe_probe(probe, space, training=curved(training), held_out=curved(held_out))
    assert card.r2[0] > 0.97
    assert card.ridge_r2[0] < 0.9


def test_the_same_data_give_the_same_probe() -> None:
    training = world(300, seed=1)
    first, second = (fit_probe(training, SPACE, replace(QUICK, steps=3)) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()


def test_a_state_that_does_not_change_is_read_as_it_is() -> None:
    training = world(300, seed=1)
    training.states[:, 2] = 7
    probe = fit_probe(training, SPACE, replace(QUICK, steps=50))
    read = read_states(probe, training.latents)
    assert np.allclose(read[:, 2], 7, atol=1e-3)
    assert r_squared(SPACE, read, training.states)[2] == 0


def test_frames_without_a_finite_state_are_left_out_and_too_few_are_refused() -> None:
    frames = world(230, seed=1)
    frames.states[:31, 1] = np.nan
    known = LabelledLatents.finite(frames.latents, frames.states, frames.groups)
    assert len(known) == 199
    assert np.isfinite(known.states).all()
    assert torch.equal(known.latents, frames.latents[31:])
    with pytest.raises(TooFewStates, match="have 199 frames with states, a probe needs 200"):
        fit_probe(known, SPACE)


def test_errors_and_shares_of_angles_do_not_know_full_turns() -> None:
    space = StateSpace.of(("angle",), {"angle": 360.0})
    recorded = np.array([[179.0], [-179.0], [178.0], [-178.0]])
    read = recorded + 360 + 0.5
    assert mean_errors(space, read, recorded) == pytest.approx([0.5])
    assert r_squared(space, read, recorded) == pytest.approx([1 - 4 * 0.25 / (2 * 1 + 2 * 4)])


def test_ridge_finds_a_map_and_does_not_follow_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 50, generator=generator)
    weight = torch.randn(50, 2, generator=generator)
    groups = np.arange(400) // 20
    found = fit_ridge(inputs, inputs @ weight + 3, groups)
    assert torch.allclose(found.weight, weight, atol=1e-2)
    assert torch.allclose(found(inputs[:5]), inputs[:5] @ weight + 3, atol=5e-2)
    noise = torch.randn(60, 1, generator=generator)
    of_noise = fit_ridge(inputs[:60], noise, groups[:60] // 1)
    least_squares = torch.linalg.lstsq(inputs[:60], noise).solution
    assert of_noise.weight.norm() < 0.5 * least_squares.norm()
