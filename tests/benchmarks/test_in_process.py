"""Plans in this process are those of the server."""

from pathlib import Path

import pytest
import torch

from benchmarks.in_process import (
    SearchLoop,
    describe_model,
    load_like_server,
    plain_rollout,
    predict_newest,
)
from lewm_client import PlannerClient
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_model
from lewm_serve.cli.local_server import LocalServer
from lewm_serve.registry.registry import LoadedModel


@pytest.fixture(scope="module")
def model(quick_folder: Path) -> LoadedModel:
    """The model of `quick_server`, loaded with the same settings."""
    return load_like_server(quick_folder, backend="onnx", threads=1)


def test_a_loaded_model_is_described(model: LoadedModel) -> None:
    description = describe_model(model)
    assert description["model"] == "random-edge"
    assert description["version"] == model.version
    assert (description["backend"], description["precision"]) == ("onnx", "float32")
    assert (description["device"], description["threads"]) == ("cpu", 1)


@pytest.mark.parametrize("frame_count", [1, 2, 3])
def test_a_search_finds_the_plan_of_the_server(
    model: LoadedModel, quick_server: LocalServer, frame_count: int
) -> None:
    config, seed = model.card.config, 3
    generator = torch.Generator().manual_seed(frame_count)
    *context, goal = torch.randn(frame_count + 1, config.latent_dim, generator=generator)
    rows = torch.rand((frame_count - 1) * config.action_block, 2, generator=generator).numpy()
    with PlannerClient(quick_server.target) as client:
        expected = client.plan(
            [latent.numpy() for latent in context],
            goal.numpy(),
            past_actions=rows if frame_count > 1 else None,
            seed=seed,
        )
    search = SearchLoop(
        model,
        model.card.solver,
        latents=torch.stack(context),
        goal=goal,
        past_actions=model.to_blocks(rows) if frame_count > 1 else None,
        seed=seed,
    )
    solution = search.run()
    assert model.to_rows(solution.actions).tolist() == expected.actions.tolist()
    assert solution.cost == expected.cost
    assert search.solver.scored_candidates == expected.candidates


def test_one_step_predictions_are_those_of_a_rollout(model: LoadedModel) -> None:
    config = model.card.config
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 2, config.latent_dim, generator=generator)
    actions = torch.randn(2, 1, config.block_width, generator=generator)
    predicted = predict_newest(model, latents, actions)
    none = torch.empty(2, 0, config.block_width)
    rolled_out = model.backend.rollout(latents[:, :1], none, actions[:, None])[:, 0, 0]
    assert torch.allclose(predicted, rolled_out, atol=1e-5)


def test_the_plain_rollout_is_the_reference() -> None:
    config = PRESETS["edge"]
    model = random_model(config)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.latent_dim, generator=generator)
    candidates = torch.randn(3, 5, config.block_width, generator=generator)
    none = torch.empty(0, config.block_width)
    with torch.inference_mode():
        expected = model.rollout(latents, none, candidates)
    assert torch.allclose(plain_rollout(model, latents, none, candidates), expected, atol=1e-5)
