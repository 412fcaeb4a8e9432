"""The improved cross-entropy method: coloured noise, elites kept, fewer and fewer samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.card import SolverDefaults
from service.planning.cem import CEM
from service.planning.solver import Problem

EXPONENT = 2.0
"""Noise power falls with frequency to this power: 0 is white, 2 is a random walk's."""

KEPT = 5
"""Elites that are scored again beside the next iteration's samples."""

DECAY = 1.25
"""The sample count shrinks by this factor from one iteration to the next."""


class ICEM(CEM):
    """iCEM (Pinneri et al., Sample-efficient Cross-Entropy Method, CoRL 2020, arXiv 2008.06389).

    Noise that is correlated in time moves an agent somewhere, where white noise over many steps
    cancels out, so that far fewer candidates reach as far. ``samples`` is the first iteration's
    count; ``momentum`` keeps a tenth of the old mean and deviation. Scoring, answer and
    convergence are those of CEM.
    """

    momentum = 0.1

    def __init__(self, settings: SolverDefaults, problem: Problem, seed: int) -> None:
        super().__init__(settings, problem, seed)
        self.kept = self.mean.unsqueeze(0)

    def workload(self) -> list[int]:
        """See `Solver.workload`."""
        fresh = [self._fresh(iteration) for iteration in range(self.settings.iterations)]
        kept = min(KEPT, self.settings.elites)
        return [count + (kept if index else 1) for index, count in enumerate(fresh)] + [1]

    def _fresh(self, iteration: int) -> int:
        """How many samples an iteration draws."""
        most, least = self.settings.samples, 2 * self.settings.elites
        return min(most, max(int(most * DECAY**-iteration), least))

    def _sample(self) -> Tensor:
        """Fresh samples, fewer each time but enough to choose elites from, and those kept."""
        shrunk = self._fresh(self.iterations)
        horizon, block = self.mean.shape
        action_dim = self.problem.action_dim
        steps = horizon * block // action_dim
        noise = coloured_noise(self.generator, shrunk, steps, action_dim)
        fresh = self.mean + self.std * noise.reshape(-1, horizon, block)
        return torch.cat([self.clip(fresh), self.kept])

    def _learn(self, candidates: Tensor, costs: Tensor) -> None:
        kept = min(KEPT, self.settings.elites)
        self.kept = candidates[costs.argsort(stable=True)[:kept]]
        super()._learn(candidates, costs)


def coloured_noise(
    generator: np.random.Generator, samples: int, steps: int, action_dim: int
) -> Tensor:
    """Noise (S, steps, action_dim) whose power falls as 1 / frequency² along the steps.

    Each sequence of each action dimension is scaled to a root mean square of 1 (Timmer and König,
    On generating power law noise, 1995). One step has one frequency, and white noise.
    """
    frequencies = np.fft.rfftfreq(steps)
    frequencies[0] = 1 / steps
    shape = (samples, action_dim, len(frequencies))
    spectrum = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    if steps == 1:
        return torch.from_numpy(spectrum.real.transpose(0, 2, 1).astype(np.float32))
    # The constant part is real; it gets the power that the others share out over two parts.
    spectrum[..., 0] = np.sqrt(2) * spectrum[..., 0].real
    noise = np.fft.irfft(spectrum * frequencies ** (-EXPONENT / 2), n=steps)
    noise /= np.sqrt(np.square(noise).mean(axis=-1, keepdims=True))
    return torch.from_numpy(noise.transpose(0, 2, 1).astype(np.float32))
