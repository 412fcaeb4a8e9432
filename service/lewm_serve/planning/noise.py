"""Noise that is correlated in time, from which most solvers draw their candidates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_serve.planning.solver import Problem


def coloured_noise(
    generator: np.random.Generator, problem: Problem, samples: int, exponent: float
) -> Tensor:
    """Noise (S, T, A) whose power falls as 1 / frequencyᵉ along the time steps of the horizon.

    An exponent of 0 is white noise, 2 that of a random walk. Noise that is correlated in time moves
    an agent somewhere, where white noise over many steps cancels out. Each sequence of each action
    dimension has a root mean square of 1 (Timmer and König, On generating power law noise, 1995).
    One step has one frequency, and white noise.
    """
    horizon, width = problem.start.shape
    steps = horizon * width // problem.action_dim
    if steps == 1:
        white = generator.standard_normal((samples, horizon, width), dtype=np.float32)
        return torch.from_numpy(white)
    amplitudes = _amplitudes(steps, exponent)
    shape = (samples, problem.action_dim, len(amplitudes))
    spectrum = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    # The constant part is real; it gets the power that the others share out over two parts.
    spectrum[..., 0] = np.sqrt(2) * spectrum[..., 0].real
    noise = np.fft.irfft(spectrum * amplitudes, n=steps)
    noise /= np.sqrt(np.square(noise).mean(axis=-1, keepdims=True))
    by_step = noise.transpose(0, 2, 1).astype(np.float32)
    return torch.from_numpy(by_step.reshape(samples, horizon, width))


@lru_cache(maxsize=64)
def _amplitudes(steps: int, exponent: float) -> NDArray[np.float64]:
    """Of each frequency that so many steps have, from the lowest on."""
    frequencies = np.fft.rfftfreq(steps)
    frequencies[0] = 1 / steps
    amplitudes: NDArray[np.float64] = np.power(frequencies, -exponent / 2, dtype=np.float64)
    return amplitudes
