"""A folded map gives what its modules give one after another."""

import numpy as np
import pytest
import torch
from torch import nn

from lewm_models.export.weights import fold_modules

WIDTH = 6


def random_layer_norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def random_batch_norm(width: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm.eval()


@torch.no_grad()
def test_modules_are_folded_into_one_map() -> None:
    torch.manual_seed(0)
    norm = random_layer_norm(WIDTH)
    modules = [nn.Linear(WIDTH, 8), nn.Identity(), random_batch_norm(8), nn.Linear(8, 3)]
    folded = fold_modules(norm, *modules)
    standardised = torch.randn(5, WIDTH)
    expected = nn.Sequential(*modules)(standardised * norm.weight + norm.bias).numpy()
    assert np.allclose(standardised.numpy() @ folded.weight + folded.bias, expected, atol=1e-5)


@torch.no_grad()
def test_a_convolution_of_kernel_size_1_is_linear() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv1d(WIDTH, 4, kernel_size=1)
    folded = fold_modules(convolution)
    x = torch.randn(2, WIDTH, 7)
    actual = x.transpose(1, 2).numpy() @ folded.weight + folded.bias
    assert np.allclose(actual, convolution(x).transpose(1, 2).numpy(), atol=1e-6)


def test_outputs_are_selected_scaled_and_shifted() -> None:
    linear = nn.Linear(WIDTH, 4, bias=False)
    folded = fold_modules(linear).slice_outputs(1, 3).scaled(2).shifted(1)
    assert np.allclose(folded.weight, 2 * linear.weight.detach().numpy()[1:3].T)
    assert folded.bias.tolist() == [1, 1]


def test_a_module_that_is_not_affine_is_refused() -> None:
    with pytest.raises(TypeError, match="GELU"):
        fold_modules(nn.Linear(2, 2), nn.GELU())
