"""BatchNorm's statistics after training are plain averages of what training saw."""

import pytest
import torch
from torch import nn

from lewm_models.training import normalisation
from lewm_models.training.normalisation import reestimate
from lewm_models.training.recording import Recording, batch_order
from tests.lewm_models.training.short_run import CONFIG, trainer


@pytest.fixture(autouse=True)
def _few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "BATCHES", 3)


def test_statistics_are_the_averages_over_batches(recording: Recording) -> None:
    run = trainer(recording)
    model, windows = run.model.eval(), run.windows
    order = batch_order(len(windows), 16, 0, 0)
    means, variances = [], []
    with torch.no_grad():
        for _ in range(3):
            frames, _ = windows.batch(next(order))
            hidden = model.projector.net[0](model.features(frames.flatten(0, 1)))
            means.append(hidden.mean(0))
            variances.append(hidden.var(0))

    reestimate(model, windows, batch=16, seed=0)
    norm = model.projector.net[1]
    assert isinstance(norm, nn.BatchNorm1d)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == 0.1
    assert not model.training
    assert not norm.training


def test_nothing_but_statistics_changes(recording: Recording) -> None:
    run, untouched = trainer(recording), trainer(recording)
    reestimate(run.model, run.windows, batch=16, seed=0)
    for mine, other in zip(run.model.parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    latents = torch.zeros(1, CONFIG.history, CONFIG.latent_dim)
    actions = torch.zeros(1, CONFIG.history, CONFIG.block_width)
    assert not torch.equal(
        run.model.predict(latents, actions), untouched.model.eval().predict(latents, actions)
    )
