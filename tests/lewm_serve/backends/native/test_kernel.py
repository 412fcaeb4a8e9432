"""The native roll-out against the model in float32."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_models.importing import import_checkpoint
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.native.backend import NativeKernel, supports
from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.native.library import WORK_KINDS, load_library, read_ticks
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout
from tests.lewm_models.examples import PARITY_FOLDER, TINY, import_card
from tests.lewm_serve.backends.native import roll_out_program
from tests.patience import PATIENCE_S

BFLOAT16_TOLERANCE = 0.015
"""The largest error of results in bfloat16, relative to their norm."""

ODD_WIDTHS = LeWMConfig(
    image_size=16,
    patch_size=8,
    encoder_width=12,
    encoder_depth=1,
    encoder_heads=3,
    encoder_mlp=24,
    latent_dim=24,
    projector_mlp=16,
    predictor_width=48,
    predictor_output=20,
    predictor_depth=3,
    predictor_heads=1,
    predictor_head_dim=64,
    predictor_mlp=40,
    pred_proj_mlp=32,
    action_dim=3,
    action_block=2,
    action_mlp=16,
)
"""Widths that are not multiples of the block size, and all optional projections."""

MODELS: dict[str, Callable[[], LeWM]] = {
    "parity": lambda: import_checkpoint(PARITY_FOLDER, import_card(action_block=7))[0],
    "odd widths": lambda: random_model(ODD_WIDTHS),
    "paper": lambda: random_model(LeWMConfig(predictor_depth=2, encoder_depth=1)),
    "long history": lambda: random_model(replace(ODD_WIDTHS, history=5)),
    "history of one": lambda: random_model(replace(ODD_WIDTHS, history=1)),
}


@pytest.fixture(scope="module")
def code() -> ctypes.CDLL:
    try:
        return load_library()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LeWM:
    return MODELS[request.param]()


@pytest.fixture(scope="module", params=["tiles", "dot products"])
def kernel(request: pytest.FixtureRequest, code: ctypes.CDLL, model: LeWM) -> NativeKernel:
    if request.param == "tiles" and not code.tiles_available():
        pytest.skip("the processor has no tile registers")
    return NativeKernel(model, code, use_tiles=request.param == "tiles")


def error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to the norm of what is expected."""
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def plans(
    config: LeWMConfig, count: int, context: int, samples: int, horizon: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, past actions and candidates."""
    generator = torch.Generator().manual_seed(context)
    shapes = (
        (count, context, config.latent_dim),
        (count, context - 1, config.block_width),
        (count, samples, horizon, config.block_width),
    )
    latents, past, candidates = (torch.randn(shape, generator=generator) for shape in shapes)
    return latents, past, candidates


@pytest.mark.parametrize("horizon", [1, 2, 5, 7])
@torch.inference_mode()
def test_results_are_close_to_the_model(model: LeWM, kernel: NativeKernel, horizon: int) -> None:
    for context in range(1, model.config.history + 1):
        inputs = plans(model.config, 2, context, 37, horizon)
        expected = torch.stack([model.rollout(*plan) for plan in zip(*inputs, strict=True)])
        predicted = SharedContextRollout(kernel, RowThreads(1))(*inputs)
        assert predicted.dtype == torch.float32
        assert 0 < error(predicted, expected) < BFLOAT16_TOLERANCE


@torch.inference_mode()
def test_results_are_close_to_the_public_library(code: ctypes.CDLL) -> None:
    kernel = NativeKernel(MODELS["parity"](), code)
    with np.load(PARITY_FOLDER / "expected.npz") as arrays:
        expected = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for context in (1, 3):
        inputs = (
            expected["latents"][:context],
            expected["action_history"][: context - 1],
            expected["candidates"],
        )
        predicted = SharedContextRollout(kernel, RowThreads(1))(
            *(part.unsqueeze(0) for part in inputs)
        )[0]
        assert error(predicted, expected[f"rollout_context{context}"]) < BFLOAT16_TOLERANCE


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 33, 64, 75])
@torch.inference_mode()
def test_threads_and_other_candidates_change_no_bit(
    model: LeWM, kernel: NativeKernel, samples: int
) -> None:
    context = min(2, model.config.history)
    latents, past, candidates = plans(model.config, 1, context, 75, 4)
    all_rows = SharedContextRollout(kernel, RowThreads(1))(latents, past, candidates)[:, :samples]
    for threads in (1, 3):
        part = SharedContextRollout(kernel, RowThreads(threads, min_rows=2))(
            latents, past, candidates[:, :samples]
        )
        assert torch.equal(part, all_rows)


@torch.inference_mode()
def test_the_newest_latent_is_predicted_as_by_the_model(model: LeWM, kernel: NativeKernel) -> None:
    for context in range(2, model.config.history + 1):
        latents, past, _ = plans(model.config, 2, context, 1, 1)
        expected = [
            model.rollout(own[:-1], actions[:-1], actions[None, -1:])[0, 0]
            for own, actions in zip(latents, past, strict=True)
        ]
        prediction = SharedContextRollout(kernel, RowThreads(1)).predict_newest(latents, past)
        assert 0 < error(prediction, torch.stack(expected)) < BFLOAT16_TOLERANCE


@torch.inference_mode()
def test_models_that_run_in_turns_do_not_disturb_each_other(code: ctypes.CDLL) -> None:
    # All models share the scratch memory of a thread.
    kernels = {name: NativeKernel(make(), code) for name, make in MODELS.items()}
    configs = {name: make().config for name, make in MODELS.items()}
    inputs = {name: plans(config, 1, config.history, 20, 3) for name, config in configs.items()}
    first = {
        name: SharedContextRollout(kernels[name], RowThreads(1))(*inputs[name]) for name in MODELS
    }
    broken = [part.clone() for part in inputs["paper"]]
    broken[0][:] = float("nan")
    SharedContextRollout(kernels["paper"], RowThreads(1))(*broken)
    for name in MODELS:
        assert torch.equal(
            SharedContextRollout(kernels[name], RowThreads(1))(*inputs[name]), first[name]
        )


@torch.inference_mode()
def test_ticks_are_counted_by_kind_of_work(code: ctypes.CDLL) -> None:
    rollout = SharedContextRollout(NativeKernel(MODELS["odd widths"](), code), RowThreads(1))
    start, before = read_ticks(code)
    rollout(*plans(ODD_WIDTHS, 1, 1, 20, 3))
    end, after = read_ticks(code)
    assert list(after) == list(WORK_KINDS)
    spent = [after[kind] - before[kind] for kind in WORK_KINDS]
    assert min(spent) > 0
    assert sum(spent) < end - start


def test_without_tiles_the_code_uses_no_tile_instruction(code: ctypes.CDLL) -> None:
    if not code.tiles_available():
        pytest.skip("the processor has no tile registers")
    here = roll_out_program.results()
    assert here["as usual"] != here["on dot products"]
    result = subprocess.run(
        [sys.executable, roll_out_program.PROGRAM, "--refuse-tiles"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0, result.stderr
    there = json.loads(result.stdout)
    assert there["tiles"] is False
    assert there["as usual"] == there["on dot products"] == here["on dot products"]


def test_which_models_are_supported() -> None:
    assert supports(LeWMConfig())
    assert supports(ODD_WIDTHS)
    assert not supports(TINY)
