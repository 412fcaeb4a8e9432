"""The predictor on a GPU, eagerly on a CPU: against the public library and PyTorch's backend."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.results import ROOT
from lewm_models.config import PRESETS
from lewm_models.importing import import_checkpoint
from lewm_models.random_weights import random_model
from lewm_serve.backends.folded import FoldedKernel, attend, check_operations, gated_norm
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout
from lewm_serve.backends.torch import TorchBackend
from tests.lewm_models.examples import PARITY_FOLDER, import_card
from tests.lewm_serve.backends.test_forms import FLOAT32_TOLERANCE, FORMS

CPU = torch.device("cpu")
LATENT_TOLERANCE, COST_TOLERANCE = 1e-5, 1e-4
"""Those of the suite, see `tests/parity/README.md`."""

BFLOAT16_TOLERANCE = 0.03
"""The largest error of roll-outs in bfloat16, relative to the norm; 0.012 was measured."""


def inputs(config: object, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two plans of six candidates, over a horizon in which the window slides."""
    generator = torch.Generator().manual_seed(context)
    shapes = (
        (2, context, config.latent_dim),  # type: ignore[attr-defined]
        (2, context - 1, config.block_width),  # type: ignore[attr-defined]
        (2, 6, 5, config.block_width),  # type: ignore[attr-defined]
    )
    latents, past, candidates = (torch.randn(shape, generator=generator) for shape in shapes)
    return latents, past, candidates


@pytest.mark.parametrize("context", [1, 3])
@torch.inference_mode()
def test_values_are_those_of_the_public_library(context: int) -> None:
    model = import_checkpoint(PARITY_FOLDER, import_card(action_block=7))[0]
    with np.load(PARITY_FOLDER / "expected.npz") as arrays:
        expected = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    rollout = SharedContextRollout(FoldedKernel(model, CPU, torch.float32), RowThreads(1))
    predicted = rollout(
        expected["latents"][None, :context],
        expected["action_history"][None, : context - 1],
        expected["candidates"][None],
    )[0]
    assert predicted.shape == expected[f"rollout_context{context}"].shape
    error = (predicted - expected[f"rollout_context{context}"]).abs().max()
    assert float(error) < LATENT_TOLERANCE
    costs = (predicted[:, -1] - expected["goal_latent"]).square().sum(-1)
    assert float((costs - expected[f"cost_context{context}"]).abs().max()) < COST_TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_every_form_of_the_model(form: str) -> None:
    model = random_model(FORMS[form])
    rollout = SharedContextRollout(FoldedKernel(model, CPU, torch.float32), RowThreads(1))
    reference = TorchBackend(model, CPU)
    for context in (1, 2, 3):
        arguments = inputs(FORMS[form], context)
        expected = reference.rollout(*arguments)
        error = torch.linalg.vector_norm(rollout(*arguments) - expected)
        assert float(error) < FLOAT32_TOLERANCE * float(torch.linalg.vector_norm(expected))


@torch.inference_mode()
def test_bfloat16() -> None:
    config = replace(PRESETS["edge"], encoder_depth=1)
    model = random_model(config)
    rollout = SharedContextRollout(FoldedKernel(model, CPU, torch.bfloat16), RowThreads(1))
    arguments = inputs(config, 2)
    expected = TorchBackend(model, CPU).rollout(*arguments)
    predicted = rollout(*arguments)
    assert predicted.dtype == torch.float32
    error = torch.linalg.vector_norm(predicted - expected) / torch.linalg.vector_norm(expected)
    assert float(error) < BFLOAT16_TOLERANCE


def test_attention_is_causal_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(tokens, 5, 2, 8, generator=generator) for tokens in (2, 3, 3)
    )
    mask = torch.tensor([[True, True, False], [True, True, True]])
    query, key, value = (part.permute(1, 2, 0, 3) for part in (queries, keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=1.0
    )
    attended = attend(queries, keys, values)
    torch.testing.assert_close(attended, expected.permute(2, 0, 1, 3).flatten(2))


def test_a_branch_is_added_before_the_norms() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gate, output, shift, scale = torch.randn(5, 2, 3, 16, generator=generator)
    added, normed = gated_norm(x, (gate, output), shift, scale, (1e-6, 1e-5))
    torch.testing.assert_close(added, x + gate * output)
    norm = torch.nn.functional.layer_norm
    expected = norm(norm(added, (16,), eps=1e-6) * scale + shift, (16,), eps=1e-5)
    torch.testing.assert_close(normed, expected)
    assert gated_norm(x, None, shift, scale, (1e-6, 1e-5))[0] is x


def test_operations_that_compute_something_else_are_refused() -> None:
    def without_mask(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(queries[:1], keys, values).expand(len(queries), -1, -1)

    check_operations((gated_norm, attend), CPU)
    with pytest.raises(ValueError, match="something else"):
        check_operations((gated_norm, without_mask), CPU)


INTERPRETED = """
from dataclasses import replace

import torch
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_model
from lewm_serve.backends import folded, fused
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout

generator = torch.Generator().manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.07)):
    for new, before, rows, heads, head in ((1, 0, 5, 3, 8), (1, 2, 7, 2, 20), (3, 0, 9, 16, 64)):
        def drawn(*shape):
            return torch.randn(*shape, generator=generator).to(dtype)
        queries, keys, values = drawn(new, rows, 3, heads, head).unbind(2)
        if before:
            keys = torch.cat([drawn(before, rows, heads, head), keys])
            values = torch.cat([drawn(before, rows, heads, head), values])
        torch.testing.assert_close(
            fused.attend(queries, keys, values), folded.attend(queries, keys, values),
            atol=tolerance, rtol=0)
        width = heads * head
        shift, scale, gate = drawn(new + 1, rows, 2, 3, width)[1:, :, 1].unbind(2)
        x, output = drawn(new, rows, width), drawn(new, rows, width)
        for branch in (None, (gate, output)):
            arguments = x, branch, shift, scale, (1e-6, 1e-5)
            torch.testing.assert_close(
                fused.gated_norm(*arguments), folded.gated_norm(*arguments),
                atol=tolerance, rtol=0)

folded.check_operations((fused.gated_norm, fused.attend), torch.device("cpu"))
config = replace(PRESETS["edge"], encoder_depth=1)
model, device = random_model(config), torch.device("cpu")
latents = torch.randn(2, 3, config.latent_dim, generator=generator)
past = torch.randn(2, 2, config.block_width, generator=generator)
candidates = torch.randn(2, 4, 5, config.block_width, generator=generator)
with torch.inference_mode():
    for context in (1, 3):
        predicted = []
        for operations in (folded.operations, lambda device: (fused.gated_norm, fused.attend)):
            folded.operations = operations
            kernel = folded.FoldedKernel(model, device, torch.float32)
            rollout = SharedContextRollout(kernel, RowThreads(1))
            predicted.append(rollout(latents[:, :context], past[:, :context - 1], candidates))
        torch.testing.assert_close(*predicted, atol=1e-4, rtol=0)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_fused_operations_compute_the_same() -> None:
    """By Triton's interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
