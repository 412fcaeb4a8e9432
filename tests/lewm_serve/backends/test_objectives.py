"""Every backend, with each objective, against the embedded model in PyTorch: costs and actions."""

from collections.abc import Callable

import pytest
import torch

from lewm_models import checkpoint
from lewm_models.card import SolverConfig
from lewm_models.checkpoint import EMBEDDED_MODEL, Checkpoint
from lewm_models.distance.network import GoalDistance
from lewm_models.environments.two_room import render
from lewm_models.preprocessing import resize
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.choice import native_problem
from lewm_serve.backends.native.backend import NativeBackend, distance_on
from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.cli.search import search_space
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.solvers import SOLVERS

CPU = torch.device("cpu")
SOLVER = SolverConfig("icem", samples=24, iterations=2, elites=5, horizon=5)
MAX_REGRET = {"float32": 1e-3, "bfloat16": 0.05}
"""How much worse the chosen actions may be than those of the reference, relative to the range of
the candidates' costs."""


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return checkpoint.load(EMBEDDED_MODEL)


def native(model: Checkpoint) -> Backend:
    if (problem := native_problem(model.model.config, CPU)) is not None:
        pytest.skip(problem)
    return NativeBackend(model.model, TorchBackend(model.model, CPU))


BACKENDS: dict[str, Callable[[Checkpoint], Backend]] = {
    "torch": lambda model: TorchBackend(model.model, CPU),
    "onnx": lambda model: OnnxBackend(model.model, CPU),
    "native": native,
}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, embedded: Checkpoint) -> Backend:
    return BACKENDS[request.param](embedded)


@pytest.fixture(params=["latent", "distance"])
def objective(request: pytest.FixtureRequest, embedded: Checkpoint) -> Objective:
    network: GoalDistance | None = embedded.distance
    assert network is not None
    return LATENT if request.param == "latent" else DistanceObjective(network, CPU)


def test_costs_and_chosen_actions_are_those_of_the_model(
    backend: Backend, embedded: Checkpoint, objective: Objective
) -> None:
    places = torch.tensor([[60.0, 150.0], [170.0, 60.0], [150.0, 180.0], [40.0, 40.0]])
    frames = resize(render(places), embedded.card.config.image_size)
    with torch.inference_mode():
        latents = embedded.model.encode(frames)
    space = search_space(embedded.card)
    for start, goal in ((0, 1), (1, 2), (3, 2)):
        solver = SOLVERS[SOLVER.name](SOLVER, space, seed=start)
        candidates = solver.ask()
        past_actions = candidates[:0, 0]
        with torch.inference_mode():
            reference = objective(
                embedded.model.rollout(latents[start, None], past_actions, candidates),
                latents[goal],
            )
        predicted = backend.rollout(
            latents[start].view(1, 1, -1), past_actions.unsqueeze(0), candidates.unsqueeze(0)
        )
        beside_backend = objective
        if isinstance(objective, DistanceObjective):
            beside_backend = distance_on(backend, objective)
        costs = beside_backend(predicted[0], latents[goal])
        cost_range = float(reference.max() - reference.min())
        tolerance = MAX_REGRET[backend.precision] * cost_range
        assert float((costs - reference).abs().max()) <= tolerance
        assert float(reference[costs.argmin()] - reference.min()) <= tolerance


def test_gradients_are_those_of_the_objective(
    backend: Backend, embedded: Checkpoint, objective: Objective
) -> None:
    generator = torch.Generator().manual_seed(0)
    config = embedded.card.config
    latents = torch.randn(1, 1, config.latent_dim, generator=generator)
    candidates = torch.randn(1, 3, 2, config.block_width, generator=generator)
    inputs = latents, candidates[:, 0, :0], candidates
    goals = torch.randn(1, config.latent_dim, generator=generator)
    costs, gradients = backend.gradients(*inputs, goals=goals, objective=objective)
    model = TorchBackend(embedded.model, CPU)
    assert torch.allclose(costs, objective(model.rollout(*inputs), goals), rtol=1e-3, atol=1e-3)
    step = 1e-3 * gradients / gradients.norm()
    above, below = (
        objective(model.rollout(*inputs[:2], candidates + sign * step), goals).sum()
        for sign in (1, -1)
    )
    assert float((above - below) / 2) == pytest.approx(float((gradients * step).sum()), rel=0.05)
