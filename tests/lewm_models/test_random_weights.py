"""Random models behave like trained ones: every part takes effect and nothing explodes."""

import torch

from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM, initialise
from lewm_models.random_weights import random_card, random_model
from tests.lewm_models.examples import TINY, tiny


def test_the_seed_fixes_the_weights() -> None:
    first, again, other = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.dtype == torch.int64 or not torch.equal(tensor, other.state_dict()[name])


def test_no_gate_norm_or_statistic_is_at_its_start() -> None:
    model = tiny()
    start = LeWM(TINY)
    initialise(start, torch.Generator().manual_seed(0))
    before = start.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 or "adaLN" in name:
            assert not torch.equal(tensor, before[name]), name
            assert "running_var" not in name or float(tensor.min()) > 0.5


@torch.inference_mode()
def test_rollouts_keep_their_scale_and_follow_the_actions() -> None:
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


def test_the_card_leaves_actions_as_they_are() -> None:
    card = random_card("random", TINY, {"command": "again"})
    assert (card.action_mean, card.action_std) == ((0.0, 0.0), (1.0, 1.0))
    assert (card.action_low, card.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert card.provenance == {"weights": "random, untrained", "command": "again"}
