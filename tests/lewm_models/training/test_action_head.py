"""The head that only training has."""

import torch

from lewm_models.training.action_head import ActionHead
from tests.lewm_models.training.short_run import CONFIG


def test_it_learns_which_actions_led_from_one_latent_to_another() -> None:
    torch.manual_seed(0)
    head = ActionHead(CONFIG)
    effects = torch.randn(CONFIG.block_width, CONFIG.latent_dim) / CONFIG.block_width**0.5
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        # The same block at all steps, so that it can be told from frames of any distance.
        actions = torch.randn(64, 1, CONFIG.block_width).expand(-1, CONFIG.history, -1)
        start = torch.randn(64, 1, CONFIG.latent_dim)
        moved = (actions @ effects).cumsum(dim=1)
        latents = start + torch.cat([torch.zeros_like(start), moved], dim=1)
        loss = head.loss(latents, actions)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert losses[-1] < 0.3


def test_its_gradients_reach_all_latents() -> None:
    latents = torch.randn(2, CONFIG.history + 1, CONFIG.latent_dim, requires_grad=True)
    actions = torch.randn(2, CONFIG.history, CONFIG.block_width)
    (gradients,) = torch.autograd.grad(ActionHead(CONFIG).loss(latents, actions), latents)
    assert (gradients.abs().sum(dim=-1) > 0).all()
