"""In a random model every part has an effect, and latents keep a stable scale."""

import torch

from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM, initialise
from lewm_models.random_weights import random_card, random_model
from tests.lewm_models.examples import TINY, tiny_model


def test_weights_depend_on_the_seed_only() -> None:
    first, again, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.dtype == torch.int64 or not torch.equal(tensor, other.state_dict()[name])


def test_every_gate_norm_and_statistic_differs_from_its_initial_value() -> None:
    model = tiny_model()
    initialised = LeWM(TINY)
    initialise(initialised, torch.Generator().manual_seed(0))
    initial_state = initialised.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 or "adaLN" in name:
            assert not torch.equal(tensor, initial_state[name]), name
            assert "running_var" not in name or float(tensor.min()) > 0.5


@torch.inference_mode()
def test_rollouts_keep_their_scale_and_depend_on_the_actions() -> None:
    config = PRESETS["edge"]
    model = random_model(config)
    generator = torch.Generator().manual_seed(0)
    shape = (4, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames[0], frames[1] = 0, 255
    latents = model.encode(frames)
    candidates = torch.randn(8, 5, config.block_width, generator=generator)
    predicted = model.rollout(latents[:1], candidates[0, :0], candidates)
    for values in (latents, *predicted.unbind(1)):
        spread = float((values - values.mean(0)).std())
        assert 0.1 < spread < 2
        assert 0.1 < float(values.std()) < 2


def test_the_card_s_statistics_change_no_action() -> None:
    card = random_card("random", TINY, {"command": "again"})
    assert (card.action_mean, card.action_std) == ((0.0, 0.0), (1.0, 1.0))
    assert (card.action_low, card.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert card.provenance == {"weights": "random, untrained", "command": "again"}
