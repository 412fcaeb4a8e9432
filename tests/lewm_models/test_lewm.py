"""Shapes, causality and initial weights of the model; its numbers are in `test_parity.py`."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lewm_models import lewm
from lewm_models.config import PRESETS, StateInput
from lewm_models.lewm import LeWM, initialise
from tests.lewm_models.examples import STATE_INPUT, TINY, tiny_model

BATCH = 4


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> LeWM:
    return tiny_model()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frames(count: int = 1) -> Tensor:
    shape = (count, TINY.image_size, TINY.image_size, 3)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def latents() -> Tensor:
    return noise(BATCH, TINY.history, TINY.latent_dim)


@pytest.fixture
def actions() -> Tensor:
    return noise(BATCH, TINY.history, TINY.block_width, seed=1)


@pytest.mark.parametrize(
    ("preset", "tensors", "values"), [("paper", 303, 18_042_672), ("edge", 136, 2_321_136)]
)
def test_presets_have_the_expected_size(preset: str, tensors: int, values: int) -> None:
    with torch.device("meta"):
        state = LeWM(PRESETS[preset]).state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, values)


def test_a_prediction_depends_on_its_own_and_earlier_steps_only(
    model: LeWM, latents: Tensor, actions: Tensor
) -> None:
    before = model.predict(latents, actions)
    for changed in (latents, actions):
        for step in range(TINY.history):
            original = changed[:, step].clone()
            changed[:, step] *= -1
            after = model.predict(latents, actions)
            changed[:, step] = original
            differs = (after - before).abs().amax(dim=(0, 2)) > 1e-4
            assert differs.tolist() == [position >= step for position in range(TINY.history)]


def test_a_shorter_window_gives_the_same_predictions(
    model: LeWM, latents: Tensor, actions: Tensor
) -> None:
    full = model.predict(latents, actions)
    for steps in range(1, TINY.history):
        shorter = model.predict(latents[:, :steps], actions[:, :steps])
        torch.testing.assert_close(shorter, full[:, :steps])


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_rollout_equals_successive_predictions(model: LeWM, context: int) -> None:
    horizon = 2 * TINY.history
    start = noise(context, TINY.latent_dim)
    past = noise(context - 1, TINY.block_width, seed=1)
    candidates = noise(BATCH, horizon, TINY.block_width, seed=2)
    rollout = model.rollout(start, past, candidates)
    assert rollout.shape == (BATCH, horizon, TINY.latent_dim)
    for candidate, predicted in zip(candidates, rollout, strict=True):
        blocks = torch.cat([past, candidate])
        expected = start
        for step in range(context, context + horizon):
            window = slice(max(0, step - TINY.history), step)
            following = model.predict(expected[window][None], blocks[window][None])[0, -1:]
            expected = torch.cat([expected, following])
        torch.testing.assert_close(predicted, expected[context:])


@pytest.mark.parametrize(
    ("name", "latents_shape", "actions_shape"),
    [
        ("latents", (2, 8), (2, 3, 10)),
        ("latents", (2, 0, 8), (2, 0, 10)),
        ("latents", (2, 4, 8), (2, 4, 10)),
        ("latents", (2, 3, 7), (2, 3, 10)),
        ("actions", (2, 3, 8), (3, 10)),
        ("actions", (2, 3, 8), (1, 3, 10)),
        ("actions", (2, 3, 8), (2, 1, 10)),
        ("actions", (2, 3, 8), (2, 3, 5)),
    ],
)
def test_a_window_of_a_wrong_shape_is_refused(
    model: LeWM, name: str, latents_shape: tuple[int, ...], actions_shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected shape"):
        model.predict(noise(*latents_shape), noise(*actions_shape))


@pytest.mark.parametrize(
    ("name", "latents_shape", "past_shape", "candidates_shape"),
    [
        ("latents", (1, 1, 8), (0, 10), (5, 2, 10)),
        ("latents", (0, 8), (0, 10), (5, 2, 10)),
        ("latents", (4, 8), (3, 10), (5, 2, 10)),
        ("latents", (1, 9), (0, 10), (5, 2, 10)),
        ("past_actions", (3, 8), (1, 10), (5, 2, 10)),
        ("past_actions", (1, 8), (1, 10), (5, 2, 10)),
        ("past_actions", (2, 8), (1, 1), (5, 2, 10)),
        ("candidates", (1, 8), (0, 10), (2, 10)),
        ("candidates", (1, 8), (0, 10), (5, 0, 10)),
        ("candidates", (1, 8), (0, 10), (5, 2, 2)),
    ],
)
def test_a_rollout_of_wrong_shapes_is_refused(
    model: LeWM,
    name: str,
    latents_shape: tuple[int, ...],
    past_shape: tuple[int, ...],
    candidates_shape: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected shape"):
        model.rollout(noise(*latents_shape), noise(*past_shape), noise(*candidates_shape))


@pytest.mark.parametrize(
    "wrong",
    [
        frames().float(),
        frames()[0],
        frames().permute(0, 3, 1, 2),
        frames()[:, 1:],
        frames()[..., :1],
    ],
    ids=["float", "no batch", "channels first", "not square", "grey"],
)
def test_frames_of_a_wrong_shape_are_refused(model: LeWM, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^frames: expected uint8 of shape \(N, 16, 16, 3\)"):
        model.encode(wrong)


def test_pixels_are_normalised_with_the_config_s_statistics(model: LeWM) -> None:
    other = tiny_model(pixel_mean=(0.1, 0.2, 0.3))
    assert not torch.allclose(model.encode(frames()), other.encode(frames()))
    assert not any("pixel" in name for name in model.state_dict())


def test_actions_matter_in_a_random_model_but_not_in_an_initialised_one(
    latents: Tensor, actions: Tensor
) -> None:
    random, initialised = tiny_model(), tiny_model()
    initialise(initialised, torch.Generator().manual_seed(0))
    changes = [
        float((model.predict(latents, actions) - model.predict(latents, -actions)).abs().max())
        for model in (random, initialised)
    ]
    assert changes[0] > 0.1
    assert changes[1] == 0


def test_initial_weights_depend_on_the_seed_only() -> None:
    first, again, other = (LeWM(TINY) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        initialise(model, torch.Generator().manual_seed(seed))
    for parameter, same in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, same)
    assert not torch.equal(first.predictor.pos_embedding, other.predictor.pos_embedding)


def test_initial_positions_have_unit_deviation() -> None:
    model = LeWM(PRESETS["edge"])
    initialise(model, torch.Generator().manual_seed(0))
    for positions in (model.encoder.embeddings.position_embeddings, model.predictor.pos_embedding):
        assert abs(float(positions.std()) - 1) < 0.1


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        ({}, {"attn.to_out"}, {"input_proj", "cond_proj", "output_proj"}),
        ({"predictor_width": 10}, {"input_proj", "cond_proj", "output_proj"}, set()),
        ({"predictor_output": 6}, {"output_proj"}, {"input_proj", "cond_proj"}),
        ({"predictor_heads": 1, "predictor_head_dim": 8}, set(), {"attn.to_out"}),
        ({"predictor_heads": 1, "predictor_head_dim": 6}, {"attn.to_out"}, set()),
    ],
)
def test_projections_exist_only_between_different_widths(
    changes: dict[str, int], present: set[str], absent: set[str]
) -> None:
    model = tiny_model(**changes)
    names = " ".join(model.state_dict())
    assert all(name in names for name in present)
    assert not any(name in names for name in absent)
    candidates = noise(BATCH, 4, TINY.block_width)
    rollout = model.rollout(noise(1, TINY.latent_dim), candidates[0, :0], candidates)
    assert rollout.shape == (BATCH, 4, TINY.latent_dim)


def test_predictions_are_deterministic_except_in_training(
    model: LeWM, latents: Tensor, actions: Tensor
) -> None:
    assert torch.equal(model.predict(latents, actions), model.predict(latents, actions))
    in_training = tiny_model().train()
    first, second = (in_training.predict(latents, actions) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.fixture(scope="module")
def seeing() -> LeWM:
    """A model that takes two states."""
    return tiny_model(state_input=STATE_INPUT)


def states(count: int) -> Tensor:
    """States (count, 2) of the distribution of training."""
    return torch.tensor([100.0, -3.0]) + torch.tensor([50.0, 0.25]) * noise(count, 2)


def test_states_join_the_feature_of_the_frame(seeing: LeWM) -> None:
    given = states(3)
    latents = seeing.encode(frames(3), given)
    zscored = (given - torch.tensor([100.0, -3.0])) / torch.tensor([50.0, 0.25])
    added = seeing.state_encoder(torch.cat([zscored, torch.ones(3, 1)], dim=1))
    expected = seeing.projector(seeing.features(frames(3)) + added)
    torch.testing.assert_close(latents, expected)
    for state in range(2):
        moved = given.clone()
        moved[1, state] += 0.1 * STATE_INPUT.std[state]
        differs = (seeing.encode(frames(3), moved) - latents).abs().amax(dim=1) > 1e-5
        assert differs.tolist() == [False, True, False]


def test_statistics_may_be_integers_as_json_has_them() -> None:
    whole = StateInput(names=("x", "y"), mean=(100, -3), std=(50, 1))
    model = tiny_model(state_input=whole)
    assert model.encode(frames(2)).isfinite().all()
    assert model.encode(frames(2), states(2)).isfinite().all()


@pytest.mark.parametrize("hidden", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_hidden_and_nothing_of_it_shows(
    seeing: LeWM, hidden: float
) -> None:
    given = states(3)
    given[1, 0] = hidden
    latents, without = seeing.encode(frames(3), given), seeing.encode(frames(3))
    assert (latents[[0, 2]] - without[[0, 2]]).abs().amax(dim=1).min() > 1e-3
    torch.testing.assert_close(latents[1], without[1])
    average = seeing.encode(frames(3), torch.tensor([STATE_INPUT.mean] * 3))
    assert (average[1] - without[1]).abs().max() > 1e-3  # hidden is not the mean
    moved = given.clone()
    moved[1, 1] += 1.0
    torch.testing.assert_close(seeing.encode(frames(3), moved), latents)


def test_states_of_another_shape_are_refused(model: LeWM, seeing: LeWM) -> None:
    with pytest.raises(ValueError, match=r"states: expected shape \(3, 2\), got \(3, 3\)"):
        seeing.encode(frames(3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"states: expected shape \(3, 2\), got \(1, 2\)"):
        seeing.encode(frames(3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="states: expected none, since the model has no state"):
        model.encode(frames(3), torch.zeros(3, 2))


def test_frames_are_encoded_in_parts_with_their_states(
    seeing: LeWM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lewm, "PART_FRAMES", 2)
    expected = seeing.encode(frames(5), states(5))
    torch.testing.assert_close(lewm.encode_in_parts(seeing, frames(5), states(5)), expected)
    torch.testing.assert_close(lewm.encode_in_parts(seeing, frames(5)), seeing.encode(frames(5)))
