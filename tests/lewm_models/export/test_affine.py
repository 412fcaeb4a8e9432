"""What is folded gives what the modules give one after the other."""

import numpy as np
import pytest
import torch
from torch import nn

from lewm_models.export.affine import affine

WIDTH = 6


def standardised(width: int) -> nn.LayerNorm:
    """A LayerNorm whose affine part alone counts: `affine` is given what is standardised."""
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def moved(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm.eval()


@torch.no_grad()
def test_modules_become_one_map() -> None:
    torch.manual_seed(0)
    norm = standardised(WIDTH)
    modules = [nn.Linear(WIDTH, 8), nn.Identity(), moved(nn.BatchNorm1d(8)), nn.Linear(8, 3)]
    folded = affine(norm, *modules)
    x = torch.randn(5, WIDTH)
    expected = nn.Sequential(*modules)(x * norm.weight + norm.bias).numpy()
    assert np.allclose(x.numpy() @ folded.weight + folded.bias, expected, atol=1e-5)


@torch.no_grad()
def test_a_convolution_of_kernel_1_is_linear() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv1d(WIDTH, 4, kernel_size=1)
    folded = affine(convolution)
    x = torch.randn(2, WIDTH, 7)
    actual = x.transpose(1, 2).numpy() @ folded.weight + folded.bias
    assert np.allclose(actual, convolution(x).transpose(1, 2).numpy(), atol=1e-6)


def test_parts_and_scales() -> None:
    folded = affine(nn.Linear(WIDTH, 4, bias=False)).part(1, 3).scaled(2).shifted(1)
    assert folded.weight.shape == (WIDTH, 2)
    assert folded.bias.tolist() == [1, 1]


def test_what_is_not_affine_is_refused() -> None:
    with pytest.raises(TypeError, match="GELU"):
        affine(nn.Linear(2, 2), nn.GELU())
