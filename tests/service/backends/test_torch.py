"""The eager backend: what it promises beyond the model it runs."""

import pytest
import torch

from models.config import PRESETS
from models.lewm import LeWM, initialise
from service.backends.torch import ENCODE_ROWS, TorchBackend

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    model = LeWM(PRESETS["edge"])
    initialise(model, torch.Generator().manual_seed(0))
    backend = TorchBackend(model, CPU)
    backend.warm_up()
    return backend


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    size = PRESETS["edge"].image_size
    shape = (ENCODE_ROWS + 5, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("rows", [2, 3, 8, 9, ENCODE_ROWS, ENCODE_ROWS + 5])
def test_a_latent_is_the_same_bit_for_bit_whatever_it_is_encoded_with(
    backend: TorchBackend, frames: torch.Tensor, rows: int
) -> None:
    alone = torch.cat([backend.encode(frames[row : row + 1]) for row in range(rows)])
    assert torch.equal(backend.encode(frames[:rows]), alone)


def test_it_encodes_as_the_model_does(backend: TorchBackend, frames: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = backend.model.encode(frames)
    assert torch.allclose(backend.encode(frames), expected, atol=1e-5)


def test_batches_are_given_up_where_they_would_change_a_latent() -> None:
    class Entangled(LeWM):
        """Adds the batch's size to every latent."""

        def features(self, frames: torch.Tensor) -> torch.Tensor:
            return super().features(frames) + len(frames)

    model = Entangled(PRESETS["edge"])
    initialise(model, torch.Generator().manual_seed(0))
    backend = TorchBackend(model, CPU)
    backend.warm_up()
    size = PRESETS["edge"].image_size
    frames = torch.zeros(3, size, size, 3, dtype=torch.uint8)
    assert torch.equal(backend.encode(frames)[:1], backend.encode(frames[:1]))
